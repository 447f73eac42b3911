"""A fitted detector behind one call, whether torch computes it or the runtime of an exported file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from efficientad.data.transforms import to_unit_range
from efficientad.detector.calibration import Calibration
from efficientad.detector.checkpoint import load_model
from efficientad.detector.networks import EfficientAD
from efficientad.exported import SUFFIXES, load_exported
from efficientad.system.devices import (
    autocast,
    describe_device,
    keep_freed_memory,
    resolve_device,
    resolve_precision,
)


class Detector(Protocol):
    """What the commands need of a detector.

    Attributes:
        image_size: side S of the square images that it takes.
        calibration: its own threshold, where the training could find one.
        provenance: how and with what it was trained, as far as its file tells; see checkpoint.save_model.
        description: runtime, device and precision, for people.
    """

    model_size: str
    image_size: int
    calibration: Calibration | None
    provenance: Mapping[str, Any]
    description: str

    def __call__(self, pixels: Tensor) -> Tensor:
        """Anomaly maps N x 1 x S x S, float32, 0-255 scale, of uint8 RGB images N x 3 x S x S on the host.

        The maps may be on a GPU that is still at work on them.
        """


class TorchDetector:
    """The networks as train.py left them."""

    def __init__(self, model: EfficientAD, device: torch.device, precision: str) -> None:
        """
        Args:
            model: in eval mode, on `device`.
            precision: resolved: fp32, bf16 or fp16.
        """
        self.model_size, self.image_size, self.calibration = model.model_size, model.image_size, model.calibration
        self.provenance, self.description = model.provenance, describe_device(device, precision)
        self._model, self._device, self._precision = model, device, precision

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        if self._device.type == "cuda":
            pixels = pixels.pin_memory()  # else the copy would wait for the batch before
        with autocast(self._device, self._precision):
            return self._model(to_unit_range(pixels.to(self._device, non_blocking=True)))


def load_detector(path: Path, device_name: str, precision_name: str) -> Detector:
    """The detector of a training's folder or of an exported file.

    Args:
        device_name: auto, cuda or cpu.
        precision_name: auto, fp32, bf16 or fp16.

    Raises:
        UserError: see load_model, resolve_device, resolve_precision and load_exported.
    """
    if path.suffix in SUFFIXES.values() and not path.is_dir():
        return load_exported(path, device_name, precision_name)
    device = resolve_device(device_name)
    keep_freed_memory(device)
    precision = resolve_precision(precision_name, device)
    return TorchDetector(load_model(path, device), device, precision)
