"""The formats of exported detectors, the packages that they need, and how they compare."""

import pytest
import torch

from conftest import make_dataset
from efficientad.benchmarking.workloads import draw_global_score
from efficientad.detector.checkpoint import save_model
from efficientad.detector.global_score import GlobalScore
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


@torch.inference_mode()
def add_global_score(model, images):
    """A drawn global score, about as high as the maps of the patches, that depends on the image.

    Args:
        images: N x 3 x H x W in [0, 1]; the statistics of the teacher are fitted already.
    """
    score = GlobalScore(model.grid)
    draw_global_score(score)
    averages = score.average(model.teacher_features(model.normalize(model.cut(images))))
    score.mean.copy_(0.5 * score.describe(averages).mean(dim=0))
    distances = score.energies(averages).sum(dim=2).mean(dim=0)
    score.levels.copy_(torch.tensor([(0.2 * distance, distance) for distance in distances] + [(0.1, 1.0)]))
    model.global_score = score
