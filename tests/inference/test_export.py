"""Exported detectors answer as torch does, and every command takes them."""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import eval as eval_script
from conftest import draw_part, fail, fill_folder
from efficientad import export, predict
from efficientad.benchmarking import reference
from efficientad.data import images
from efficientad.data.images import UnreadableImageError, read_image
from efficientad.data.transforms import to_square
from efficientad.data.views import View
from efficientad.detector.calibration import calibrate
from efficientad.detector.checkpoint import load_model, load_teacher_weights
from efficientad.detector.model import EfficientAD
from efficientad.inference import export_check, exporting
from efficientad.inference.detectors import TorchDetector
from efficientad.inference.export_check import SeenImage
from efficientad.inference.exportable import ExportableDetector
from efficientad.inference.exported import load_exported
from efficientad.inference.exporting import write_export
from efficientad.inference.metadata import Metadata
from efficientad.system.errors import UserError
from efficientad.system.runs import lock_output
from exports import (
    SUFFIXES,
    VARIANTS,
    add_global_score,
    compare_with_torch,
    random_pixels,
    save_training,
    skip_without,
)

CPU = torch.device("cpu")


def run(*words):
    export.main(export.get_parser().parse_args([str(word) for word in words]))


@pytest.fixture
def weights(tmp_path, tiny_model):
    """A training's folder, with statistics that are not the neutral ones, and a global score."""
    generator = torch.Generator().manual_seed(1)
    tiny_model.teacher_mean.copy_(torch.rand(1, 384, 1, 1, generator=generator) - 0.5)
    tiny_model.teacher_std.copy_(torch.rand(1, 384, 1, 1, generator=generator) + 0.5)
    tiny_model.quantiles.copy_(torch.tensor([[0.1, 0.9], [0.2, 1.1], [0.0, 0.1]]))
    tiny_model.calibration = calibrate([10.0, 20.0, 30.0, 40.0, 55.0], 0.4)
    add_global_score(tiny_model, random_pixels(2) / 255)
    return save_training(tiny_model, tmp_path)


def seen(pixels):
    """Images that count everywhere."""
    return [SeenImage(image, None) for image in pixels]


@torch.inference_mode()
def fit_quantiles(model, pixels):
    """Of the maps that the model makes."""
    for row, raw in enumerate(model.raw_maps(pixels / 255).local):
        if raw is not None:
            model.quantiles[row] = torch.quantile(raw, torch.tensor([0.9, 0.995]))


_written = {}


@pytest.fixture
def detector_file(weights, tmp_path):
    """The training as ONNX; made once, since it is the same in every test."""
    skip_without("onnx")
    path = tmp_path / "detector.onnx"
    if not _written:
        run("-w", weights, "-o", path)
        _written["onnx"] = path.read_bytes()
    path.write_bytes(_written["onnx"])
    return path


def test_normalization_is_folded_exactly(weights, tiny_model):
    """And the model itself stays as it is."""
    pixels = random_pixels(2)
    with torch.inference_mode():
        expected = tiny_model(pixels / 255)
        maps, scores = ExportableDetector(tiny_model)(pixels.permute(0, 2, 3, 1))
        assert torch.equal(tiny_model(pixels / 255), expected)
    np.testing.assert_allclose(maps, expected[:, 0], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(scores, reference.scores(maps))


@pytest.mark.parametrize(("name", "precision"), VARIANTS)
def test_exports_answer_as_torch_does(weights, tiny_model, tmp_path, name, precision, capsys):
    skip_without(name)
    output = tmp_path / f"exported{SUFFIXES[name]}"
    run("-w", weights, "--format", name, "--precision", precision, "-o", output)
    printed = capsys.readouterr().out
    assert "Difference to torch" in printed and "of 10 decisions agree" in printed and f"Wrote {output}" in printed
    expected_files = {output.name, "exported.bin"} if name == "openvino" else {output.name}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == expected_files
    detector = load_exported(output, "cpu", "auto")
    assert (detector.view, detector.model_size) == (View(), "small")
    assert detector.metadata.precision == precision
    assert detector.calibration == tiny_model.calibration
    assert detector.metadata.versions["torch"] == torch.__version__
    pixels = random_pixels(3)
    expected = TorchDetector(tiny_model, CPU, "fp32")(pixels)
    tolerance = {"fp32": 1e-3, "fp16": 0.01, "bf16": 0.05, "int8": 0.2}[precision]
    for batch in (pixels, pixels[:1]):  # the batch size is free
        maps = detector(batch)
        assert maps.shape == (len(batch), 1, 256, 256) and maps.dtype == torch.float32
        np.testing.assert_allclose(maps, expected[: len(batch)], rtol=tolerance, atol=25 * tolerance)
        _, scores = detector.answer(batch)
        np.testing.assert_allclose(scores, reference.scores(maps), rtol=1e-5)


def test_onnx_metadata_and_contents(detector_file):
    import onnx

    model = onnx.load(detector_file)
    texts = {item.key: item.value for item in model.metadata_props}
    assert float(texts["threshold"]) == 40 and texts["image_size"] == "256 256" and texts["precision"] == "fp32"
    assert json.loads(texts["calibration"])["target_fpr"] == 0.4
    (image,) = model.graph.input
    shape = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert image.name == "images" and shape == ["batch", 256, 256, 3]
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [output.name for output in model.graph.output] == ["anomaly_map", "score"]
    contents = detector_file.read_bytes()
    assert str(export.__file__).encode() not in contents and b"/torch/" not in contents


def test_eval_and_predict_take_an_export(weights, detector_file, tmp_path, capsys):
    capsys.readouterr()
    tables, scores = [], []
    for number, path in enumerate((weights, detector_file)):
        out = tmp_path / str(number)
        words = ["-d", "custom", "-c", tmp_path / "parts", "-w", path, "-o", out, "-f", "none", "-m", "small"]
        eval_script.main(eval_script.get_parser().parse_args(list(map(str, words))))
        tables.append(capsys.readouterr().out.split("Class ")[1])
        words = ["-w", path, "-i", tmp_path / "parts" / "test", "-o", out / "predictions", "--save_regions"]
        predict.main(predict.get_parser().parse_args(list(map(str, words))))
        assert "Threshold 40 (calibrated" in capsys.readouterr().out
        regions = json.loads((out / "predictions" / "regions.json").read_text())
        scores.append([len(regions["annotations"]), len(regions["images"])])
    assert tables[0].split("Label and score")[0] == tables[1].split("Label and score")[0]
    assert scores[0] == scores[1]


def test_too_great_a_difference_leaves_no_file(weights, tmp_path, monkeypatch, capsys):
    skip_without("torch")
    monkeypatch.setitem(export_check.BOUNDS, "fp32", export_check.Bound(0.0, -1.0))
    words = ["-w", weights, "--format", "torch", "-o", tmp_path / "d.pt2"]
    assert "is not written" in fail(monkeypatch, capsys, export, *words)
    assert not [path for path in tmp_path.iterdir() if "d.pt2" in path.name]


def test_parity_of_values_that_are_not_finite_fails():
    differences = export_check.Differences(0.0, 0.0, 0.0, 0.0)
    broken = export_check.Differences(*[float("nan")] * 4)
    assert export_check.Parity(differences, differences, 1, 1).keeps(export_check.BOUNDS["fp32"])
    assert not export_check.Parity(broken, differences, 1, 1).keeps(export_check.BOUNDS["int8"])


def test_images_of_the_training_or_others(weights, tmp_path, monkeypatch, capsys):
    (tmp_path / "parts").rename(tmp_path / "moved")
    words = ["-w", weights, "--format", "torch", "-o", tmp_path / "d.pt2"]
    assert "name a folder of good images with --images" in fail(monkeypatch, capsys, export, *words)
    fill_folder(tmp_path / "other", 3)
    run(*words, "--images", tmp_path / "other")
    assert "of 3 decisions agree" in capsys.readouterr().out
    (tmp_path / "other" / "001.png").write_text("text")
    assert "cannot read 1 image" in fail(
        monkeypatch, capsys, export, *words, "--overwrite", "--images", tmp_path / "other"
    )


def test_images_that_the_training_skipped_are_left_out(weights, tmp_path, monkeypatch, capsys):
    bad = sorted((tmp_path / "parts" / "train" / "good").iterdir())[0]
    bad.write_text("text")
    words = ["-w", weights, "--format", "torch", "-o", tmp_path / "d.pt2"]
    assert "cannot read 1 image" in fail(monkeypatch, capsys, export, *words)
    images.write_skipped(weights, [UnreadableImageError(str(bad), "not an image, or damaged")])
    run(*words)
    assert "decisions agree" in capsys.readouterr().out


def test_wrong_commands_are_refused(weights, tmp_path, monkeypatch, capsys):
    def error(*words):
        return fail(monkeypatch, capsys, export, "-w", weights, *words)

    assert "choose from fp32, bf16" in error("--format", "torch", "--precision", "int8")
    assert "must end in .onnx" in error("-o", tmp_path / "d.xml")
    assert "there is no folder" in error("-o", tmp_path / "nowhere" / "d.onnx")
    (tmp_path / "d.pt2").write_text("mine")
    assert "add --overwrite" in error("--format", "torch", "-o", tmp_path / "d.pt2")
    assert (tmp_path / "d.pt2").read_text() == "mine"
    with lock_output(tmp_path / "e.pt2", "--output"):
        message = error("--format", "torch", "-o", tmp_path / "e.pt2")
    assert "e.pt2 is in use by another run" in message and not list(tmp_path.glob("*e.pt2*"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    message = error("-o", tmp_path / "d.onnx")
    assert "onnx is missing; install it with: pip install onnx onnxscript onnxruntime" in message


@pytest.mark.parametrize("name", ["onnx", "openvino", "torch"])
def test_damaged_exports_are_reported(tmp_path, monkeypatch, capsys, name):
    skip_without(name)
    path = tmp_path / f"d{SUFFIXES[name]}"
    fill_folder(tmp_path / "in", 1)
    words = ["-w", path, "-i", tmp_path / "in", "-o", tmp_path / "out"]
    assert "does not exist" in fail(monkeypatch, capsys, predict, *words)
    path.write_text("text")
    assert "is no detector that efficientad.export wrote" in fail(monkeypatch, capsys, predict, *words)


@pytest.mark.parametrize("name", ["onnx", "openvino", "torch"])
def test_an_export_of_a_newer_version_is_called_newer(weights, tmp_path, monkeypatch, name):
    """Even if other facts in it are new, too."""
    skip_without(name)

    def as_text(metadata):
        texts = as_text_now(metadata) | {"efficientad_format": "5", "calibration": '{"thresholds": [1, 2]}'}
        return {key: text for key, text in texts.items() if key != "view"}

    as_text_now = Metadata.as_text
    monkeypatch.setattr(Metadata, "as_text", as_text)
    model, path = load_model(weights, CPU), tmp_path / f"d{SUFFIXES[name]}"
    exporting.write_export(name, model, exporting.describe(model, "fp32"), path)
    with pytest.raises(UserError, match="newer version of this toolkit; update, or export again"):
        load_exported(path, "cpu", "auto")


def test_flags_that_a_file_cannot_follow(detector_file, tmp_path, monkeypatch, capsys):
    words = ["-i", tmp_path / "parts", "-o", tmp_path / "out", "-w"]
    message = fail(monkeypatch, capsys, predict, *words, detector_file, "--precision", "bf16")
    assert "computes in fp32, not in bf16" in message
    if not torch.cuda.is_available():
        for device in ("cuda", "cuda:1"):
            message = fail(monkeypatch, capsys, predict, *words, detector_file, "--device", device)
            assert f"--device {device}: this ONNX Runtime has no CUDA" in message
    assert "does not run there" in fail(monkeypatch, capsys, predict, *words, detector_file, "--device", "mps")
    (tmp_path / "d.pt2").write_text("text")
    message = fail(monkeypatch, capsys, predict, *words, tmp_path / "d.pt2", "--device", "cuda")
    assert "runs on the CPU only" in message


def test_the_real_networks_export(tmp_path):
    """Every layer of the autoencoder and of both sizes has its counterpart in ONNX."""
    skip_without("onnx")
    model = EfficientAD().eval()
    load_teacher_weights(model, None)
    write_export("onnx", model, exporting.describe(model, "fp32"), tmp_path / "d.onnx")
    found = compare_with_torch(model, tmp_path / "d.onnx", seen(random_pixels(1)))
    assert found.keeps(export_check.BOUNDS["fp32"]) and found.same_decisions == 1


def test_int8_sees_what_the_exact_detector_sees(tmp_path):
    """A student near its teacher, as a trained one is: rounding errors must be small beside what is left.

    The first convolutions are left exact for that.
    """
    skip_without("onnx")
    pixels = torch.stack([to_square(draw_part(seed, seed % 2 == 1), 256) for seed in range(4)])
    model = EfficientAD().eval()
    load_teacher_weights(model, None)
    with torch.inference_mode():
        features = model.teacher(model.normalize(pixels / 255))
        model.teacher_mean.copy_(features.mean((0, 2, 3), keepdim=True))
        model.teacher_std.copy_(features.std((0, 2, 3), keepdim=True))
        model.student[:-1].load_state_dict(model.teacher[:-1].state_dict())
        scale = 0.8 / model.teacher_std.flatten()
        for half in (slice(0, 384), slice(384, 768)):
            model.student[-1].weight[half] = model.teacher[-1].weight * scale[:, None, None, None]
            model.student[-1].bias[half] = (model.teacher[-1].bias - model.teacher_mean.flatten()) * scale
        fit_quantiles(model, pixels)
    metadata = exporting.describe(model, "int8")
    calibration = [metadata.inputs(image[None], None) for image in pixels]
    write_export("onnx", model, metadata, tmp_path / "d.onnx", calibration)
    found = compare_with_torch(model, tmp_path / "d.onnx", seen(pixels))
    assert found.maps.relative_mean < 0.008 and found.scores.relative_largest < 0.06  # with those rounded 0.46, 1.4


def test_the_consumer_in_the_readme(detector_file, tmp_path, tiny_model):
    """Its ten lines, as printed, decide as predict does."""
    readme = (Path(export.__file__).resolve().with_name("README.md")).read_text(encoding="utf-8")
    (block,) = re.findall(r"(?:^    .*\n)*^    import onnxruntime\n(?:^    .*\n)*", readme, flags=re.MULTILINE)
    code = textwrap.dedent(block)
    assert len(code.splitlines()) == 10
    modules = set(re.findall(r"^(?:import|from) (\w+)", code, flags=re.MULTILINE))
    assert modules == {"sys", "numpy", "onnxruntime", "PIL"}
    (tmp_path / "consumer.py").write_text(code)
    for image in ("good/000.png", "defect_type_1/001.png"):
        path = tmp_path / "parts" / "test" / image
        done = subprocess.run([sys.executable, "consumer.py", path], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        decision, score = done.stdout.split()
        pixels = to_square(read_image(path), 256)[None]
        expected = float(reference.scores(TorchDetector(tiny_model, CPU, "fp32")(pixels)))
        assert float(score) == pytest.approx(expected, rel=1e-3)
        assert decision == ("anomalous" if expected > tiny_model.calibration.threshold else "good")
