"""Detectors of other tools become a training's folder that answers as they do."""

import argparse
import csv
import json

import pytest
import torch
from torch.nn import functional as F

import efficientad.convert
import efficientad.export
import efficientad.predict
import eval as eval_script
from commands import evaluate
from conftest import fail, fill_folder, tiny_autoencoder, tiny_pdn, write_six_files
from efficientad.data.views import View
from efficientad.detector import foreign_networks
from efficientad.detector.checkpoint import load_model
from efficientad.detector.model import EfficientAD
from efficientad.detector.other_tools import build, read_foreign_detector
from efficientad.system.errors import UserError
from efficientad.training.converting import split_images
from efficientad.training.resuming import refuse_foreign_settings
from other_tools import save_anomalib, save_whole

CPU = torch.device("cpu")
NORMALIZATION = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, None, :, None, None]


def convert(*words):
    efficientad.convert.main(efficientad.convert.get_parser().parse_args([str(word) for word in words]))


def read_training(folder):
    return json.loads((folder / "args.json").read_text())


@pytest.fixture
def tiny_sizes(monkeypatch):
    """Tiny networks have other widths."""
    monkeypatch.setattr(foreign_networks, "infer_model_size", lambda weight: "small")


@pytest.fixture
def fitted(tiny_model):
    tiny_model.teacher_mean.uniform_(-0.1, 0.1)
    tiny_model.teacher_std.uniform_(0.5, 2)
    tiny_model.quantiles[:2] = torch.tensor([[0.125, 0.5], [0.25, 0.75]])
    return tiny_model


@pytest.fixture
def good(tmp_path):
    fill_folder(tmp_path / "good", 12)
    return tmp_path / "good"


def read_images(paths):
    """N x 3 x 256 x 256, normalized."""
    pixels = torch.stack([View().read(path)[0] for path in paths]).float() / 255
    return (pixels - NORMALIZATION[0]) / NORMALIZATION[1], pixels


@torch.inference_mode()
def test_three_whole_networks_answer_as_before(tiny_networks, tiny_sizes, tmp_path, capsys):
    """As nelson1425's script leaves them: statistics, quantiles and maps by the formulas of the paper."""
    torch.manual_seed(0)
    networks = {name: tiny_pdn("small", channels) for name, channels in (("teacher", 384), ("student", 768))}
    networks["autoencoder"] = tiny_autoencoder()
    save_whole(tmp_path / "theirs", **networks)
    fill_folder(tmp_path / "good", 4)
    words = ["--input", tmp_path / "theirs", "--images", tmp_path / "good", "--output", tmp_path / "ours"]
    convert(*words, "--precision", "fp32")
    printed = capsys.readouterr().out
    assert "EfficientAD small in" in printed and "Networks: taken from the files" in printed
    assert "Statistics: fitted on 3 of 4 images\nQuantiles: fitted on 1 of 4 images" in printed
    assert "Threshold: none, for lack of images" in printed

    split = split_images(tmp_path / "good", fits_statistics=True)
    model = load_model(tmp_path / "ours", CPU)
    teacher, student, autoencoder = networks["teacher"], networks["student"], networks["autoencoder"].eval()
    features = teacher(read_images(split.train)[0])
    mean = features.mean(dim=(0, 2, 3), keepdim=True)
    std = (features - mean).square().mean(dim=(0, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(model.teacher_mean, mean, rtol=1e-3, atol=1e-4)  # of features in float16
    torch.testing.assert_close(model.teacher_std, std, rtol=1e-3, atol=1e-4)
    normalized, pixels = read_images(split.validation)
    features = (teacher(normalized) - model.teacher_mean) / model.teacher_std
    answers = student(normalized)
    raws = [
        (one - two).square().mean(dim=1, keepdim=True)
        for one, two in ((features, answers[:, :384]), (autoencoder(normalized), answers[:, 384:]))
    ]
    ends = torch.stack([torch.quantile(raw, torch.tensor([0.9, 0.995])) for raw in raws])
    torch.testing.assert_close(model.quantiles[:2], ends, rtol=1e-4, atol=1e-6)
    combined = sum(0.05 * (raw - low) / (high - low) for raw, (low, high) in zip(raws, ends, strict=True))
    theirs = F.interpolate(F.pad(combined, (4, 4, 4, 4)), (256, 256), mode="bilinear")
    assert (model(pixels) / 255 - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_the_held_out_images_are_those_of_the_training(tmp_path):
    """Where the script that leaves three networks has split its images with random_split and the seed 42."""
    fill_folder(tmp_path / "good", 23)
    images = sorted((tmp_path / "good").iterdir())
    sizes = [int(0.9 * 23), 23 - int(0.9 * 23)]
    theirs = torch.utils.data.random_split(images, sizes, torch.Generator().manual_seed(42))
    ours = split_images(tmp_path / "good", fits_statistics=True)
    assert ours.train == list(theirs[0]) and ours.validation == list(theirs[1])


@pytest.mark.parametrize("whole", [True, False])
def test_six_files_keep_what_is_fitted(fitted, tiny_sizes, good, tmp_path, capsys, whole):
    write_six_files(fitted, tmp_path / "six")
    if whole:
        names = ("teacher", "student", "autoencoder")
        save_whole(tmp_path / "six", **{name: fitted.get_submodule(name) for name in names})
    convert("--input", tmp_path / "six", "--images", good, "--output", tmp_path / "ours")
    printed = capsys.readouterr().out
    assert "Statistics: taken from the files\nQuantiles: taken from the files" in printed
    assert "Threshold: fitted on 12 images" in printed and "from 12 held-out good images" in printed
    model = load_model(tmp_path / "ours", CPU)
    for key, tensor in fitted.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    assert len(model.calibration.scores) == 12
    facts = read_training(tmp_path / "ours")
    assert facts["converted_from"] == str(tmp_path / "six") and facts["validation_images"] == 12
    assert model.provenance["converted_from"] == facts["converted_from"]
    eval_script.get_parser().parse_args(["--args", str(tmp_path / "ours" / "args.json")])
    printed = capsys.readouterr().out
    assert "Took " in printed and "unknown" not in printed


def test_quantiles_alone_are_not_taken(fitted, tiny_sizes, good, tmp_path, capsys):
    """They are those of maps with other statistics."""
    write_six_files(fitted, tmp_path / "six")
    (tmp_path / "six" / "teacher_std.pt").unlink()
    convert("--input", tmp_path / "six", "--images", good, "--output", tmp_path / "ours")
    assert "Quantiles: fitted on 2 of 12 images" in capsys.readouterr().out
    assert not torch.equal(load_model(tmp_path / "ours", CPU).quantiles, fitted.quantiles)


@pytest.mark.parametrize("prefix", ["model.", "", "module.model."])
def test_a_checkpoint_of_anomalib(fitted, tiny_sizes, good, tmp_path, capsys, prefix):
    save_anomalib(tmp_path / "model.ckpt", fitted, prefix)
    convert("--input", tmp_path / "model.ckpt", "--images", good, "--output", tmp_path / "ours")
    assert "Quantiles: taken" in capsys.readouterr().out
    model = load_model(tmp_path / "ours", CPU)
    for key, tensor in fitted.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


def test_the_layers_of_anomalib_in_their_order(tmp_path):
    model = EfficientAD()
    model.quantiles[:2, 0] = torch.tensor([0.01, 0.02])
    model.teacher_mean += 1
    save_anomalib(tmp_path / "model.ckpt", model)
    state = torch.load(tmp_path / "model.ckpt", weights_only=False)["state_dict"]
    assert state["model.ae.encoder.enconv6.weight"].shape == (64, 64, 8, 8)
    assert state["model.ae.decoder.deconv8.weight"].shape == (384, 64, 3, 3)
    for key, tensor in build(read_foreign_detector(tmp_path / "model.ckpt")).state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


def test_what_anomalib_has_not_fitted_yet(fitted, tiny_sizes, good, tmp_path, capsys):
    for name, kept in (("quantiles", "mean_std"), ("mean_std", "quantiles")):

        def reset(state, name=name):
            for key in state:
                if name in key:
                    state[key] = torch.zeros_like(state[key])

        save_anomalib(tmp_path / "model.ckpt", fitted, change=reset)
        convert("--input", tmp_path / "model.ckpt", "--images", good, "--output", tmp_path / f"without {name}")
        printed = capsys.readouterr().out
        assert "Quantiles: fitted on" in printed
        assert ("Statistics: taken" in printed) == (kept == "mean_std")


class Resize:
    def __init__(self, size):
        self.size = size


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"padding": True}, "was trained with padding=True, which this toolkit does not compute"),
        ({"pad_maps": False}, "was trained with pad_maps=False"),
        ({"teacher_out_channels": 256}, "teacher_out_channels=256"),
        ({"pre_processor": {"transform": [Resize([512, 512])]}}, "changed by Resize(512, 512)"),
        ({"pre_processor": Resize(256)}, "changed by Resize(256);"),
        ({"change": lambda s: s.pop("model.student.conv2.bias")}, "not hold the weights of a small student"),
        ({"change": lambda s: s.pop("model.teacher.conv1.weight")}, "is no checkpoint of anomalib's EfficientAD"),
        ({"change": lambda s: s.update({"model.mean_std.std": torch.zeros(1, 384, 1, 1)})}, "are degenerate"),
        (
            {"change": lambda s: s.update({"model.mean_std.std": torch.zeros(384)})},
            "holds mean_std.std that is not",
        ),
        ({"change": lambda s: s.update({"model.quantiles.qa_ae": torch.zeros(2)})}, "its quantiles are no numbers"),
        ({"change": lambda s: s.update({"b.teacher.conv1.weight": torch.zeros(2)})}, "holds 2 teachers"),
    ],
)
def test_checkpoints_of_anomalib_that_are_refused(
    fitted, tiny_sizes, good, tmp_path, monkeypatch, capsys, more, message
):
    save_anomalib(tmp_path / "model.ckpt", fitted, **more)
    words = ["--input", tmp_path / "model.ckpt", "--images", good, "--output", tmp_path / "ours"]
    assert message in fail(monkeypatch, capsys, efficientad.convert, *words)
    assert not (tmp_path / "ours").exists()


def test_settings_in_a_namespace_are_compared(tiny_model, tiny_sizes, tmp_path):
    """As Lightning keeps them of a module that was given one."""
    path = tmp_path / "model.ckpt"
    save_anomalib(path, tiny_model)
    contents = torch.load(path, weights_only=False)
    for padding in (True, False):
        torch.save(contents | {"hyper_parameters": argparse.Namespace(padding=padding)}, path)
        if padding:
            with pytest.raises(UserError, match="was trained with padding=True"):
                read_foreign_detector(path)
    assert not any("does not say how" in note for note in read_foreign_detector(path).notes)
    torch.save(contents | {"hyper_parameters": {"lr": 1e-4}}, path)
    assert any("does not say how" in note for note in read_foreign_detector(path).notes)


def test_what_cannot_be_converted(fitted, tiny_sizes, good, tmp_path, monkeypatch, capsys):
    def error(given, images=good, output=tmp_path / "ours"):
        words = ["--input", given, "--images", images, "--output", output]
        return fail(monkeypatch, capsys, efficientad.convert, *words)

    assert "nowhere does not exist" in error(tmp_path / "nowhere")
    assert "lacks teacher_final.pth" in error(good)
    write_six_files(fitted, tmp_path / "six")
    assert "no checkpoint of anomalib" in error(tmp_path / "six" / "student_final.pth")
    torch.save(fitted.student, tmp_path / "six" / "student_final.pth")
    assert "name the folder of the three networks" in error(tmp_path / "six" / "student_final.pth")
    assert "nowhere does not exist; name a folder of good images" in error(tmp_path / "six", tmp_path / "nowhere")
    (tmp_path / "one").mkdir()
    (good / "000.png").rename(tmp_path / "one" / "000.png")
    (tmp_path / "six" / "teacher_mean.pt").unlink()
    assert "holds 1 image; name more good images" in error(tmp_path / "six", tmp_path / "one")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.pt").write_text("x")
    assert "already holds a model; add --overwrite" in error(tmp_path / "six", output=tmp_path / "old")
    convert("--input", tmp_path / "six", "--images", good, "--output", tmp_path / "old", "--overwrite")
    load_model(tmp_path / "old", CPU)


def test_eval_predict_and_export_take_the_model_file(
    fitted, tiny_sizes, dataset_folder, tmp_path, monkeypatch, capsys
):
    """A data set's own folder serves as the good images, and model.pt stands for its folder."""
    write_six_files(fitted, tmp_path / "six")
    (tmp_path / "six" / "teacher_mean.pt").unlink()
    words = ["-d", "custom", "-c", dataset_folder, "-o", tmp_path / "out"]
    message = fail(monkeypatch, capsys, eval_script, *words, "-w", tmp_path / "six")
    command = f"python -m efficientad.convert --input {tmp_path / 'six'} --images GOOD --output DIR"
    assert message == f"error: {tmp_path / 'six'} lacks teacher_mean.pt; fit that with: {command}\n"
    convert("--input", tmp_path / "six", "--images", dataset_folder, "--output", tmp_path / "ours")
    assert "fitted on 9 of 10 images" in capsys.readouterr().out
    evaluate(*words, "-w", tmp_path / "ours" / "model.pt")
    with (tmp_path / "out/anomaly_maps/custom/scores.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 7
    for command, more in ((efficientad.predict, ["--input", "x"]), (efficientad.export, [])):
        args = command.get_parser().parse_args(["-w", str(tmp_path / "ours" / "model.pt"), *more])
        assert args.weights_dir == tmp_path / "ours"


def test_a_file_of_the_user_is_not_replaced(tmp_path):
    (tmp_path / "args.json").write_text("mine")
    with pytest.raises(UserError, match="args.json is not of a training with this toolkit; move it away"):
        refuse_foreign_settings(tmp_path, "choose another --output")
    (tmp_path / "args.json").write_text(json.dumps({"train_images": 3}))
    refuse_foreign_settings(tmp_path, "choose another --output")
