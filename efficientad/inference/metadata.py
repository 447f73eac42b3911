"""The format of exported detectors: names of inputs and outputs, and the facts in the file."""

from __future__ import annotations

import json
import math
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
# Of the outputs that only some files have, for clients that expect decisions: N in [0, 1], N, and N x H x W
DECISIONS = {"pred_score": "float32", "pred_label": "bool", "pred_mask": "bool"}
METADATA_FILE = "metadata.json"  # within a .pt2
_FORMAT_VERSION = 4  # 3 had two outputs and one size; 2 knew no bit depth; 1 saw whole images, squares
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
    any_size: bool = False  # images of any size are resized in the file; see View.is_whole
    decides: bool = False  # the file has the outputs DECISIONS, too
    given_threshold: float | None = None  # in place of the model's own

    @property
    def threshold(self) -> float:
        """What the file's decisions, and those of other programs, go by."""
        if self.given_threshold is not None:
            return self.given_threshold
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

    def port_type(self, name: str) -> str:
        """The type of an input or output, as numpy names it."""
        inputs = dict.fromkeys((INPUT_NAME, INSPECTED_NAME), "uint8")
        return (inputs | dict.fromkeys(OUTPUT_NAMES, "float32") | DECISIONS)[name]

    def input_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Of the file's inputs, by name; None: any number of images, or size."""
        size = self.view.size
        inspected = {INSPECTED_NAME: (None, *size)} if self.takes_inspected else {}
        return {INPUT_NAME: (None, *((None, None) if self.any_size else size), 3), **inspected}

    def shapes_of_one(self) -> dict[str, tuple[int, ...]]:
        """Of the inputs for one image of the size that the networks see."""
        sides = (1, *self.view.size, 3)
        return {name: sides[: len(shape)] for name, shape in self.input_shapes().items()}

    def output_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Of the file's outputs, in their order; None: the number of images."""
        of_map, of_score = (None, *self.view.size), (None,)
        decisions = dict(zip(DECISIONS, (of_score, of_score, of_map), strict=True)) if self.decides else {}
        return dict(zip(OUTPUT_NAMES, (of_map, of_score), strict=True)) | decisions

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
            "any_size": json.dumps(self.any_size),
            "decides": json.dumps(self.decides),
            "given_threshold": json.dumps(self.given_threshold),
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
                *(_parse(text[key]) for key in ("any_size", "decides", "given_threshold") if int(version) > 3),
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
    if type(metadata.any_size) is not bool or type(metadata.decides) is not bool:
        raise ValueError("any_size or decides is neither true nor false")
    given = metadata.given_threshold
    if given is not None and not (type(given) is float and math.isfinite(given)):
        raise ValueError("given_threshold is no number")
    if metadata.any_size and not metadata.view.is_whole:
        raise ValueError("images of its view cannot have any size")
    if metadata.view.height * metadata.view.width > MOST_EXPORTED_PIXELS:
        raise ValueError(f"its images have more than {MOST_EXPORTED_PIXELS:,} pixels")
    expected = metadata.as_text()
    stated = ("threshold",) if version == "1" else ("threshold", "image_size")
    if any(text[key] != expected[key] for key in stated):
        raise ValueError(f"its {' or '.join(stated)} is not that of its other facts")


TEXT_KEYS = tuple(Metadata("", View(), "", None, {}).as_text())
