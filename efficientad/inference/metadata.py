"""The format of exported detectors: names of inputs and outputs, and the facts in the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

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
        if version.isdecimal() and int(version) > _FORMAT_VERSION:  # whatever else is new in it
            raise UserError(f"{path} was written by a newer version of this toolkit; update, or export again")
        try:
            calibration = json.loads(text["calibration"]) or {}
            lists = {key: tuple(value) for key, value in calibration.items() if isinstance(value, list)}
            if version == "1":
                view = View().as_dict() | {"size": 2 * [int(text["image_size"])]}
            else:
                view = json.loads(text["view"])
            return cls(
                text["model_size"],
                View.from_dict(view),
                text["precision"],
                Calibration(**calibration | lists) if calibration else None,
                json.loads(text["versions"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            raise UserError(f"{path} is no detector that efficientad.export wrote") from None


TEXT_KEYS = tuple(Metadata("", View(), "", None, {}).as_text())
