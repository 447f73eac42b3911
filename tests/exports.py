"""The formats of exported detectors, and the packages that they need."""

import pytest
import torch

from efficientad import export

NEEDS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "torch": (),
}
VARIANTS = [(name, precision) for name, precisions in export.PRECISIONS.items() for precision in precisions]
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}


def skip_without(name):
    for package in NEEDS[name]:
        pytest.importorskip(package)


def random_pixels(count, size=(256, 256)):
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
