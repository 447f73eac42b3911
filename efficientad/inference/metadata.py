"""The format of exported detectors: names of inputs and outputs, and the facts in the file."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efficientad.data.views import FIT, View
from efficientad.detector.calibration import DEFAULT_THRESHOLD, Calibration
from efficientad.system.errors import UserError

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
INPUT_NAME = "images"  # uint8 RGB, N x H x W x 3
INSPECTED_NAME = "inspected"  # uint8, N x H x W, not 0 where a pixel counts; see Metadata.takes_inspected
OUTPUT_NAMES = ("anomaly_map", "score")  # float32, N x H x W and N
METADATA_FILE = "metadata.json"  # within a .pt2
_FORMAT_VERSION = 3  # 2 knew no bit depth; 1 saw whole images, squares
_MODEL_SIZES, _PRECISIONS = ("small", "medium"), ("fp32", "fp16", "bf16", "int8")
_LONGEST_VERSION = 100  # letters
# Of an input: a file computes an image in one pass, and from here on that takes more than 17 GB.
MOST_EXPORTED_PIXELS = 2**24


@dataclass(frozen=True)
class Metadata:
    """The facts in an exported file."""

    model_size: str
    view: View
    precision: str
    calibration: Calibration | None
    versions: dict[str, str]  # of this toolkit and of torch

    @property
    def threshold(self) -> float:
        return self.calibration.threshold if self.calibration else DEFAULT_THRESHOLD

    @property
    def takes_inspected(self) -> bool:
        """Whether the file has a second input: where the picture lies depends on each image's shape."""
        return self.view.resize == FIT

    def inputs(self, pixels: Tensor, inspected: Tensor | None) -> dict[str, np.ndarray]:
        """The file's inputs by name; see detectors.Detector for the arguments."""
        arrays = {INPUT_NAME: pixels.permute(0, 2, 3, 1).contiguous().numpy()}
        if self.takes_inspected:
            arrays[INSPECTED_NAME] = inspected.to(torch.uint8).numpy()
        return arrays

    @property
    def port_types(self) -> dict[str, str]:
        """Types of the file's inputs and outputs, as numpy names them."""
        return {"inputs": "uint8", "outputs": "float32"}

    def input_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Of the file's inputs, by name; None: the number of images."""
        size = self.view.size
        inspected = {INSPECTED_NAME: (None, *size)} if self.takes_inspected else {}
        return {INPUT_NAME: (None, *size, 3), **inspected}

    def output_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Of the file's outputs; see input_shapes."""
        return dict(zip(OUTPUT_NAMES, ((None, *self.view.size), (None,)), strict=True))

    def as_text(self) -> dict[str, str]:
        """Texts by name, which every format can hold."""
        return {
            "efficientad_format": str(_FORMAT_VERSION),
            "model_size": self.model_size,
            "image_size": f"{self.view.height} {self.view.width}",
            "view": json.dumps(self.view.as_dict()),
            "precision": self.precision,
            "threshold": f"{self.threshold:.9g}",
            "calibration": json.dumps(asdict(self.calibration) if self.calibration else None),
            "versions": json.dumps(self.versions),
        }

    @classmethod
    def from_text(cls, text: Mapping[str, str], path: Path) -> Metadata:
        """Read texts that as_text made, or that of an earlier version.

        Raises:
            UserError: a newer version wrote them, or they are not those of efficientad.export.
        """
        version = text.get("efficientad_format", "")
        if re.fullmatch("[0-9]{1,9}", version) and int(version) > _FORMAT_VERSION:  # whatever else is new in it
            raise UserError(f"{path} was written by a newer version of this toolkit; update, or export again")
        try:
            if version not in map(str, range(1, _FORMAT_VERSION + 1)):
                raise ValueError("it has no efficientad_format")
            if version == "1":
                view = View.from_dict(View().as_dict() | {"size": 2 * [int(text["image_size"])]})
            else:
                view = View.from_dict(_parse(text["view"]))
            calibration, versions = _parse(text["calibration"]), _parse(text["versions"])
            found = cls(
                text["model_size"],
                view,
                text["precision"],
                None if calibration is None else Calibration.from_dict(calibration),
                versions,
            )
            _check(found, text, version)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            reason = textwrap.shorten(str(error), 100)
            raise UserError(f"{path} is no detector that efficientad.export wrote ({reason})") from None
        return found


def _parse(text: str) -> Any:
    """JSON, in which NaN and infinity are errors, too.

    Raises:
        ValueError, RecursionError
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number")

    return json.loads(text, parse_constant=refuse)


def _check(metadata: Metadata, text: Mapping[str, str], version: str) -> None:
    """Raise ValueError unless the facts are those of an export, and agree with the texts for other programs."""
    if metadata.model_size not in _MODEL_SIZES or metadata.precision not in _PRECISIONS:
        raise ValueError("its model_size or precision is none")
    texts = (
        [part for pair in metadata.versions.items() for part in pair] if type(metadata.versions) is dict else [0]
    )
    if not all(isinstance(part, str) and part.isprintable() and len(part) <= _LONGEST_VERSION for part in texts):
        raise ValueError("its versions are not short texts")
    if metadata.view.height * metadata.view.width > MOST_EXPORTED_PIXELS:
        raise ValueError(f"its images have more than {MOST_EXPORTED_PIXELS:,} pixels")
    expected = metadata.as_text()
    stated = ("threshold",) if version == "1" else ("threshold", "image_size")
    if any(text[key] != expected[key] for key in stated):
        raise ValueError(f"its {' or '.join(stated)} is not that of its other facts")


TEXT_KEYS = tuple(Metadata("", View(), "", None, {}).as_text())
