"""python -m efficientad.pretrain, as a user calls it."""

import csv
import re
import sys

import pytest
import torch

from conftest import fail, fill_folder
from efficientad import pretrain
from efficientad.detector import checkpoint
from efficientad.detector.model import EfficientAD
from efficientad.detector.networks import build_pdn
from efficientad.pretraining import backbones
from efficientad.pretraining import loop as pretraining_loop
from efficientad.system.errors import UserError
from efficientad.system.runs import lock_output
from stubs import random_backbone


@pytest.fixture
def natural(tmp_path):
    fill_folder(tmp_path / "natural" / "deep", 6)
    return tmp_path / "natural"


@pytest.fixture
def run(monkeypatch, capsys, tiny_networks, natural, tmp_path):
    """Runs the command with tiny networks; returns what it prints."""
    monkeypatch.setattr(backbones, "load_backbone", random_backbone)

    def run(*words):
        standard = [
            "--images",
            natural,
            "--output",
            tmp_path / "new" / "teacher.pth",
            "--steps",
            2,
            "--window",
            133,
        ]
        arguments = [*standard, "--batch_size", 2, "--device", "cpu", "--num_workers", 0, *words]
        pretrain.main(pretrain.get_parser().parse_args([str(word) for word in arguments]))
        return capsys.readouterr().out

    return run


def test_the_result_is_a_teacher_for_train(run, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining_loop, "_FEWEST_IMAGES", 20)
    said = run("--solve_output", "--projection", "pca")
    teacher = tmp_path / "new" / "teacher.pth"
    assert "5 natural images, 1 more held out" in said and "At most 2 steps of batch size 2" in said
    assert f"train.py --model_size small --weights {teacher}" in said
    assert sorted(path.name for path in teacher.parent.iterdir()) == ["teacher.pth", "teacher.pth.csv"]
    checkpoint.load_teacher_weights(EfficientAD(), teacher)
    rows = list(csv.DictReader((tmp_path / "new" / "teacher.pth.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["0", "1", "2", "2"]  # the last one after solving again
    assert float(rows[0]["explained_variance"]) > 0.2


def test_nothing_is_replaced_unasked(run, tmp_path, natural, monkeypatch, capsys):
    run()
    output = tmp_path / "new" / "teacher.pth"
    before = output.read_bytes()
    error = fail(monkeypatch, capsys, pretrain, "--images", natural, "--output", output)
    assert f"{output} exists; continue that run with --resume, replace it with --overwrite" in error
    assert output.read_bytes() == before
    run("--overwrite", "--seed", 7)
    assert output.read_bytes() != before


def stop_after_one_step(monkeypatch, run, *words):
    learn = pretraining_loop.Distillation._train_on

    def learn_once(self, *args):
        if self.step == 1:
            raise KeyboardInterrupt
        return learn(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(pretraining_loop.Distillation, "_train_on", learn_once)
        with pytest.raises(KeyboardInterrupt):
            run(*words)


def test_interrupted_and_resumed(run, tmp_path, natural, monkeypatch, capsys):
    stop_after_one_step(monkeypatch, run)
    output = tmp_path / "new" / "teacher.pth"
    words = ["--images", natural, "--output", output, "--resume", "--steps", 2, "--window", 133, "--batch_size", 2]
    error = fail(monkeypatch, capsys, pretrain, *words, "--lr", 1e-3)
    assert "other settings or images (lr 0.0001, now 0.001); give the same ones with --resume" in error
    assert "Resuming after 1 steps" in run("--resume")
    error = fail(monkeypatch, capsys, pretrain, *words)
    assert "teacher.pth.state does not exist, so there is nothing to resume" in error


def test_the_backbones_weights_may_move_but_not_change(run, tmp_path, monkeypatch):
    given, moved, other = (tmp_path / name for name in ("given.pth", "moved.pth", "other.pth"))
    given.write_bytes(b"some weights")
    other.write_bytes(b"other weights")
    stop_after_one_step(monkeypatch, run, "--backbone_weights", given)
    given.rename(moved)
    for words in (["--backbone_weights", other], []):
        with pytest.raises(UserError, match=r"images .backbone_weights of sha256 \w{64}, now (of|None)"):
            run("--resume", *words)
    assert "Resuming after 1 steps" in run("--resume", "--backbone_weights", moved)


def test_a_state_is_not_resumed_by_another_run(run, tmp_path, natural, monkeypatch):
    stop_after_one_step(monkeypatch, run)
    fill_folder(natural / "more", 1)
    with pytest.raises(UserError, match="other settings or images .images found 6, now 7."):
        run("--resume")
    state = tmp_path / "new" / "teacher.pth.state"
    assert state.exists()
    with monkeypatch.context() as patch:
        patch.setattr(pretraining_loop.StateSaver, "save", lambda self: None)  # killed before it came to that
        stop_after_one_step(patch, run, "--overwrite")
    assert not state.exists()


def test_a_state_without_finite_weights_is_not_saved(run, tmp_path, monkeypatch):
    stop_after_one_step(monkeypatch, run)
    state = tmp_path / "new" / "teacher.pth.state"
    before = state.read_bytes()

    def diverge(self, *args):
        with torch.no_grad():
            self.pdn[-1].weight.fill_(float("nan"))
        return torch.zeros(())

    monkeypatch.setattr(pretraining_loop.Distillation, "_train_on", diverge)
    monkeypatch.setattr(pretraining_loop.Distillation, "_evaluate", lambda *args: None)
    with pytest.raises(UserError, match="not finite; try a smaller --lr"):
        run("--resume")
    assert state.read_bytes() == before


def test_bad_arguments_are_one_line(natural, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    torch.save({"layer9.weight": torch.zeros(1)}, tmp_path / "other.pt")
    weights = ["--images", natural, "--backbone", "resnet18", "--backbone_weights"]
    output = ["--output", tmp_path / "teacher.pth"]
    for words, message in (
        (["--images", tmp_path / "missing"], "missing: no such file or folder"),
        (["--images", tmp_path / "empty"], "empty: holds no images"),
        (["--images", natural, "--window", 134], "--window 134.*take 133"),
        (["--images", natural, "--backbone", "resnet1"], "resnet1: no such classification network"),
        ([*weights, tmp_path / "no.pth"], "no.pth does not exist"),
        ([*weights, tmp_path / "empty"], "empty is a folder; name a file"),
        ([*weights, tmp_path / "other.pt"], "other.pt does not .* resnet18: .* 100 missing .*1 unexpected .layer9"),
        (["--images", natural, "--init_weights", tmp_path / "no.pth"], "no.pth does not exist"),
    ):
        error = fail(monkeypatch, capsys, pretrain, *words, *output)
        assert error.count("\n") == 1
        assert re.search(message, error), error
    error = fail(monkeypatch, capsys, pretrain, "--images", natural, "--output", tmp_path)
    assert "is a folder; name a file with --output" in error
    state = tmp_path / "other.pth.state"
    torch.save([1], state)
    error = fail(monkeypatch, capsys, pretrain, "--images", natural, "--output", tmp_path / "other.pth", "--resume")
    assert "other.pth.state is not the state of a pretraining" in error


def test_light_only_gets_stronger(natural, tmp_path, monkeypatch, capsys):
    words = ["--images", natural, "--output", tmp_path / "teacher.pth", "--relight", 0.5]
    assert "--relight: expects a number >= 1, not '0.5'" in fail(monkeypatch, capsys, pretrain, *words)


def test_a_medium_teacher_does_not_start_a_small_one(natural, tmp_path, monkeypatch, capsys):
    torch.save(build_pdn("medium", 384).state_dict(), tmp_path / "medium.pth")
    words = ["--images", natural, "--output", tmp_path / "teacher.pth", "--init_weights", tmp_path / "medium.pth"]
    assert "a medium teacher and does not fit into a small one" in fail(monkeypatch, capsys, pretrain, *words)
    assert checkpoint.teacher_size(tmp_path / "medium.pth") == "medium"


def test_one_image_is_too_few(tmp_path, monkeypatch, capsys):
    fill_folder(tmp_path / "one", 1)
    monkeypatch.setattr(backbones, "load_backbone", random_backbone)
    words = ["--images", tmp_path / "one", "--output", tmp_path / "teacher.pth"]
    assert "1 natural images are too few" in fail(monkeypatch, capsys, pretrain, *words)


def test_the_command_is_named_in_its_errors(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pretrain.py"])
    with pytest.raises(SystemExit):
        pretrain.get_parser().parse_args([])
    assert "python -m efficientad.pretrain: error: the following arguments are required" in capsys.readouterr().err


def test_one_run_at_a_time(natural, tmp_path, monkeypatch, capsys):
    output = tmp_path / "teacher.pth"
    with lock_output(output, "--output"):
        message = fail(monkeypatch, capsys, pretrain, "--images", natural, "--output", output, "--steps", 1)
    assert f"{output} is in use by another run (process " in message and "choose another --output" in message
    assert not output.exists()
