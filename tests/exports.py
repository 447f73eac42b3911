"""The formats of exported detectors, the packages that they need, and how they compare."""

import pytest
import torch

from conftest import make_dataset
from efficientad.detector.checkpoint import save_model
from efficientad.inference import export_check
from efficientad.inference.export_options import PRECISIONS

NEEDS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "torch": (),
}
VARIANTS = [(name, precision) for name, precisions in PRECISIONS.items() for precision in precisions]
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}


def save_training(model, folder):
    """The folder of a training of the model, in `folder` beside the data set that it names; returns it."""
    dataset = make_dataset(folder / "parts")
    training = {"dataset": "custom", "custom_dataset_path": str(dataset), "subdataset": "", "seed": 1}
    (folder / "trained").mkdir()
    save_model(model, folder / "trained" / "model.pt", training)
    return folder / "trained"


def skip_without(name):
    for package in NEEDS[name]:
        pytest.importorskip(package)


def compare_with_torch(model, path, images, threshold=80.0):
    """The parity of a file that takes images of the model's size."""
    expected = export_check.answer_as_torch(model, images)
    return export_check.compare_file(expected, path, export_check.CheckImages(images, [], []), threshold)


def random_pixels(count, size=(256, 256)):
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
