"""A detector behind one call, computed by torch or by the runtime of an exported file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from efficientad.data.transforms import to_unit_range
from efficientad.data.views import View
from efficientad.detector.calibration import Calibration
from efficientad.detector.checkpoint import load_model
from efficientad.detector.model import EfficientAD
from efficientad.inference.exported import load_exported
from efficientad.inference.metadata import SUFFIXES
from efficientad.system.cuda_graph import CudaGraphs, GraphedStep
from efficientad.system.devices import (
    autocast,
    describe_device,
    keep_freed_memory,
    resolve_device,
    resolve_precision,
)


class Detector(Protocol):
    """The interface that the commands use.

    Attributes:
        view: of the images; its height H and width W are those of the input.
        calibration: its own threshold, if the training found one.
        provenance: how and with what it was trained, if its file says so; see checkpoint.save_model.
        description: runtime, device and precision, in words.
    """

    model_size: str
    view: View
    calibration: Calibration | None
    provenance: Mapping[str, Any]
    description: str

    def images_per_pass(self, most: int) -> int:
        """How many images to give at once, for bounded memory: 1 to `most`."""

    def __call__(self, pixels: Tensor, inspected: Tensor | None = None) -> Tensor:
        """Anomaly maps N x 1 x H x W, float32, 0-255 scale; they may be on a GPU that is still computing them.

        Args:
            pixels: uint8 RGB, N x 3 x H x W, on the host; see View.pixels.
            inspected: bools N x H x W, where the map is not 0; see View.inspected. None only where the view counts
                everywhere.
        """


class TorchDetector:
    """A Detector that torch computes."""

    def __init__(self, model: EfficientAD, device: torch.device, precision: str) -> None:
        """
        Args:
            model: in eval mode, on `device`.
            precision: resolved: fp32, bf16 or fp16.
        """
        self.model_size, self.view, self.calibration = model.model_size, model.view, model.calibration
        self.provenance, self.description = model.provenance, describe_device(device, precision)
        self.images_per_pass = model.images_per_pass
        self._model, self._device, self._precision = model, device, precision
        self._run = GraphedStep(self._map, CudaGraphs(device)) if device.type == "cuda" else self._map

    @torch.inference_mode()
    def __call__(self, pixels: Tensor, inspected: Tensor | None = None) -> Tensor:
        return self._run(self._copy(pixels), None if inspected is None else self._copy(inspected))

    def _map(self, pixels: Tensor, inspected: Tensor | None) -> Tensor:
        with autocast(self._device, self._precision):
            return self._model(to_unit_range(pixels), inspected)

    def _copy(self, values: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return values.to(self._device)
        # Otherwise the copy would wait for the previous batch
        return values.pin_memory().to(self._device, non_blocking=True)


def open_detector(path: str | Path, device_name: str = "auto", precision_name: str = "auto") -> Detector:
    """The detector of a training's folder or of an exported file.

    Args:
        device_name: auto, cpu, cuda, cuda:N or mps.
        precision_name: auto, fp32, bf16 or fp16.

    Raises:
        UserError: see load_model, resolve_device, resolve_precision and load_exported.
    """
    path = Path(path)
    if path.suffix in SUFFIXES.values() and not path.is_dir():
        return load_exported(path, device_name, precision_name)
    device = resolve_device(device_name)
    keep_freed_memory(device)
    precision = resolve_precision(precision_name, device)
    return TorchDetector(load_model(path, device), device, precision)
