"""The commands and the detector on a CUDA GPU, beside the CPU in fp32."""

import csv

import numpy as np
import pytest
import torch

from commands import evaluate, train
from conftest import fill_folder
from efficientad import predict as predict_script
from efficientad.detector import model as model_module
from efficientad.detector.checkpoint import load_model
from efficientad.detector.model import EfficientAD
from efficientad.inference.detectors import TorchDetector
from efficientad.system.cuda_graph import GraphedStep
from efficientad.system.errors import Interrupted
from trainings import assert_same_model, folder_of, stop_at

pytestmark = pytest.mark.cuda
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def words(dataset_folder, tmp_path):
    return ["-d", "custom", "-c", dataset_folder, "--num_workers", 2]


@pytest.fixture
def exact_convolutions(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def scores_of(output):
    with (output / "anomaly_maps" / "custom" / "scores.csv").open(newline="") as file:
        return {row["path"]: float(row["y_score"]) for row in csv.DictReader(file)}


def random_model(has_student, memory_patches):
    torch.manual_seed(0)
    model = EfficientAD(has_student=has_student, memory_patches=memory_patches, border="mirror").eval()
    model.memory.normal_()
    weights = (0.25, 0.25, 0.5) if has_student else (0.0, 0.0, 1.0)
    model.map_weights.copy_(torch.tensor(weights))
    return model


def random_pixels(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 256, 256), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_default_training_scores_alike_on_both(words, device, tmp_path, exact_convolutions):
    train(*words, "-o", tmp_path, "--device", device, "--precision", "fp32", "--memory", 300)
    for where in ("cuda", "cpu"):
        evaluate(*words, "-o", tmp_path, "--device", where, "--precision", "fp32")
        found = scores_of(tmp_path)
        if where == "cuda":
            on_gpu = found
    assert on_gpu.keys() == found.keys() and len(found) == 7
    np.testing.assert_allclose([on_gpu[name] for name in found], list(found.values()), rtol=0.01, atol=0.05)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_separates_defects_too(words, precision, tmp_path):
    train(*words, "-o", tmp_path, "--device", "cuda", "--precision", precision)
    evaluate(*words, "-o", tmp_path, "--device", "cuda", "--precision", precision)
    found = scores_of(tmp_path)
    good = [score for name, score in found.items() if "good" in name]
    assert max(good) < min(score for name, score in found.items() if "good" not in name) and len(good) == 3


def test_a_training_of_the_networks_with_windows_and_everything_drawn(words, tmp_path, capsys):
    train(*words, "-o", tmp_path, "--recipe", "paper", "--train_steps", 12, "-b", 4, "--image_size", 320)
    train(
        *words, "-o", tmp_path / "drawn", "--recipe", "paper", "--train_steps", 8, "-b", 2, "--image_size", 256,
        "--imagenet_train_path", "drawn", "--memory", 200, "--evaluate_every", 4,
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "no CUDA graph" not in printed and "Step 8: image AUROC" in printed
    evaluate(*words, "-o", tmp_path)
    assert all(np.isfinite(score) for score in scores_of(tmp_path).values())


def test_an_interrupted_training_goes_on(words, tmp_path, monkeypatch):
    words = [*words, "--recipe", "paper", "--train_steps", 10, "-b", 2, "--image_size", 256]
    with monkeypatch.context() as patched:
        stop_at(patched, 6)
        with pytest.raises(Interrupted):
            train(*words, "-o", tmp_path / "stopped")
    train(*words, "-o", tmp_path / "stopped", "--resume")
    train(*words, "-o", tmp_path / "whole")
    one, other = (load_model(folder_of(tmp_path / name), CPU).state_dict() for name in ("stopped", "whole"))
    for name, value in one.items():
        if name.startswith("student"):
            torch.testing.assert_close(value, other[name], rtol=0.05, atol=1e-3)


def test_deterministic_means_the_same_bits(words, tmp_path):
    words = [*words, "--recipe", "paper", "--train_steps", 8, "-b", 2, "--image_size", 256, "--deterministic"]
    try:
        train(*words, "-o", tmp_path / "one")
        train(*words, "-o", tmp_path / "other")
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_model(tmp_path / "one", tmp_path / "other")


def test_predict_from_the_shell(words, tmp_path, capsys):
    train(*words, "-o", tmp_path, "--memory", 300)
    fill_folder(tmp_path / "new", 3)
    arguments = ["-w", folder_of(tmp_path), "-i", tmp_path / "new", "-o", tmp_path / "scores", "--device", "cuda"]
    parser = predict_script.get_parser()
    predict_script.main(parser.parse_args([str(word) for word in arguments]))
    assert "cuda" in capsys.readouterr().out


@pytest.mark.parametrize("has_student", [False, True])
def test_a_replayed_detector_answers_as_the_model_does(has_student, exact_convolutions):
    model = random_model(has_student, 9000)  # two blocks of the memory
    with torch.inference_mode():
        wanted = [model(random_pixels(2, seed).float() / 255) for seed in range(6)]
    model.to(GPU, memory_format=torch.channels_last)
    detector = TorchDetector(model, GPU, "fp32")
    found = [detector(random_pixels(2, seed)) for seed in range(6)]
    assert isinstance(detector._run, GraphedStep) and detector._run._replay is not None
    for maps, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(maps.cpu(), right, rtol=1e-3, atol=1e-3 * float(right.abs().max()))
    other = random_pixels(1, 9)
    torch.testing.assert_close(detector(other).cpu(), model.cpu()(other / 255).detach(), rtol=0.01, atol=0.1)


def test_tiles_on_a_gpu_give_the_whole(monkeypatch, exact_convolutions):
    model = random_model(True, 500).to(GPU, memory_format=torch.channels_last)
    pixels = random_pixels(1)
    whole = TorchDetector(model, GPU, "fp32")(pixels)
    monkeypatch.setattr(model_module, "_GPU_BYTES_PER_PIXEL", 2**60)
    model.most_pixels = 150**2
    assert len(model.tiles()) > 1
    tiled = TorchDetector(model, GPU, "fp32")(pixels)
    torch.testing.assert_close(tiled, whole, rtol=1e-3, atol=1e-3 * float(whole.abs().max()))
