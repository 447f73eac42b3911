"""What an export is asked for; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

PRECISIONS = {"onnx": ("fp32", "fp16", "int8"), "openvino": ("fp32", "bf16", "int8"), "torch": ("fp32", "bf16")}
MODEL_SIZE, ANY_SIZE = "model", "any"  # of --input
SCORES, ALL = "scores", "all"  # of --outputs
LOWEST_OPSET, HIGHEST_OPSET = 13, 20  # of ONNX; ONNX Runtime 1.17 knows no higher one
PARITY_IMAGES = 32
CALIBRATION_IMAGES = 48


@dataclass(frozen=True)
class ExportOptions:
    """What a file takes and gives."""

    any_size: bool = False  # ONNX only: images are resized in the file
    decides: bool = False  # the outputs metadata.DECISIONS, too
    threshold: float | None = None  # of these, and of the metadata; None: the model's own
    opset: int | None = None  # of ONNX; None: the lowest that can express the graph
