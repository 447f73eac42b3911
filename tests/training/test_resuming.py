"""Trainings that are killed, stopped or fail, and go on as if nothing had happened."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import train as train_script
from conftest import draw_part, fail, fill_folder
from efficientad.detector.model import EfficientAD
from efficientad.system import runs
from efficientad.system.errors import Interrupted
from efficientad.system.runs import LOCK_FILE, stop_requests
from efficientad.training import loop as training_loop
from efficientad.training import run as training_run
from trainings import assert_same_model, folder_of, read_log, stop_at

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def tiny_training(tiny_teacher, dataset_folder, tmp_path):
    """The words of a training of milliseconds, which writes to tmp_path / "out"."""
    return tiny_words(dataset_folder, tiny_teacher, tmp_path / "out")


def tiny_words(dataset, teacher, output, steps=12):
    words = ["-d", "custom", "-c", dataset, "-w", teacher, "-o", output, "--train_steps", steps, "-b", 2]
    words += ["--image_size", 64]
    return [str(word) for word in [*words, "--recipe", "paper", "--device", "cpu", "--num_workers", 0]]


def train(words):
    train_script.main(train_script.get_parser().parse_args([str(word) for word in words]))


def start_worker(words, **more):
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "train_worker.py"), *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes, **more)


def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path, dataset_folder, tiny_teacher):
    fill_folder(tmp_path / "natural", 5)
    more = ["--memory", 50, "-i", tmp_path / "natural", "--checkpoint_minutes", 0.0005]
    whole, killed = (
        [*tiny_words(dataset_folder, tiny_teacher, tmp_path / name, steps=125), *more]
        for name in ("whole", "killed")
    )
    state_file = folder_of(tmp_path / "killed") / "checkpoint.pt"
    rng = random.Random(0)
    kills = 0
    for _ in range(2):
        process = start_worker([*killed, "--cache_gb", kills % 2, "--resume"])
        before = state_file.stat().st_mtime_ns if state_file.exists() else 0
        while process.poll() is None and not (state_file.exists() and state_file.stat().st_mtime_ns > before):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        process.communicate()
    assert kills >= 1  # a fast machine may have finished before the second
    process = start_worker([*killed, "--resume"])
    said, error = process.communicate()
    assert process.returncode == 0, error
    assert "Resuming after" in said or "nothing to resume" in said
    process = start_worker(whole)
    assert process.wait() == 0, process.communicate()
    assert_same_model(tmp_path / "whole", tmp_path / "killed")
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "killed")
    assert [row["step"] for row in read_log(tmp_path / "killed")] == ["1", *map(str, range(10, 130, 10)), "125"]
    files = sorted(path.name for path in folder_of(tmp_path / "killed").iterdir())
    assert files == ["args.json", "log.csv", "model.pt", "training.png", "training_scores.csv"]


def test_a_signal_saves_and_says_how_to_go_on(tiny_training, tmp_path, monkeypatch, capsys):
    """Between two looks at the loss, in the second epoch, on two signals apart."""
    train([*tiny_training[:6], "-o", tmp_path / "whole", *tiny_training[8:]])
    for step in (6, 8):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(Interrupted, match=f"interrupted after step {step + 1}; continue with --resume"):
                train([*tiny_training, *(["--resume"] if step == 8 else [])])
    capsys.readouterr()
    train([*tiny_training, "--resume"])
    assert "Resuming after 9 of 12 steps" in capsys.readouterr().out
    assert_same_model(tmp_path / "whole", tmp_path / "out")
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "out")
    train([*tiny_training, "--resume"])
    assert "already holds this trained model: nothing to resume" in capsys.readouterr().out


def test_below_torchrun_the_echo_of_a_signal_is_no_second_one(monkeypatch):
    """The system tells all processes to end, and then torchrun tells its own once more."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with stop_requests("") as asked, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
        os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    with stop_requests("") as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
        monkeypatch.setattr(runs, "ECHO_SECONDS", 0)
    with stop_requests("") as asked, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)


def test_the_same_seed_gives_the_same_bits(tiny_training, tmp_path):
    for name in ("first", "second"):
        train([*tiny_training[:6], "-o", tmp_path / name, *tiny_training[8:], "--deterministic"])
    torch.use_deterministic_algorithms(False)
    assert_same_model(tmp_path / "first", tmp_path / "second")


def test_what_is_resumed_must_be_the_same(tiny_training, dataset_folder, tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, 3)
    with pytest.raises(Interrupted):
        train(tiny_training)
    before = (folder_of(tmp_path / "out") / "checkpoint.pt").read_bytes()

    def error(*more):
        return fail(monkeypatch, capsys, train_script, *tiny_training, *more)

    assert "holds an interrupted training; continue it with --resume, begin anew with --overwrite" in error()
    assert "(lr 0.0001, now 0.001; seed 42, now 7)" in error("--resume", "--lr", 1e-3, "--seed", 7)
    assert "(steps 12, now 15)" in error("--resume", "--train_steps", 15)
    assert "not allowed with argument" in error("--resume", "--overwrite")
    torch.save(EfficientAD().teacher.state_dict(), tmp_path / "other.pth")
    assert "was made with another teacher than" in error("--resume", "-w", tmp_path / "other.pth")
    image = dataset_folder / "train" / "good" / "004.png"
    draw_part(99).save(image)
    assert "other images: train/good/004.png is another image; bring" in error("--resume")
    assert (folder_of(tmp_path / "out") / "checkpoint.pt").read_bytes() == before
    draw_part(4).save(image)
    shutil.move(dataset_folder, tmp_path / "moved")  # the same images elsewhere are the same
    train([*tiny_training, "-c", tmp_path / "moved", "--resume"])
    assert "Resuming after 4 of 12 steps" in capsys.readouterr().out


def test_a_finished_training_must_be_the_one_that_is_resumed(
    tiny_training, dataset_folder, tmp_path, monkeypatch, capsys
):
    train(tiny_training)
    before = (folder_of(tmp_path / "out") / "model.pt").read_bytes()

    def error(*more):
        return fail(monkeypatch, capsys, train_script, *tiny_training, "--resume", *more)

    message = error("--train_steps", 15)
    assert "holds a model that is trained otherwise (steps 12, now 15); to go on from it use --init_from" in message
    assert "(lr 0.0001, now 0.001; seed 42, now 7)" in error("--lr", 1e-3, "--seed", 7)
    torch.save(EfficientAD().teacher.state_dict(), tmp_path / "other.pth")
    assert "holds a model with another teacher than" in error("-w", tmp_path / "other.pth")
    image = dataset_folder / "train" / "good" / "004.png"
    kept = image.read_bytes()
    draw_part(99).save(image)
    assert "is trained on other images" in error()
    image.rename(image.with_name("new.png"))
    assert "is trained on other images" in error()
    image.with_name("new.png").unlink()
    image.write_bytes(kept)
    shutil.move(dataset_folder, tmp_path / "moved")
    train([*tiny_training, "-c", tmp_path / "moved", "--resume"])
    assert "already holds this trained model: nothing to resume" in capsys.readouterr().out
    assert (folder_of(tmp_path / "out") / "model.pt").read_bytes() == before


def test_a_finished_model_is_trained_further(tiny_training, dataset_folder, tmp_path, monkeypatch, capsys):
    train(tiny_training)
    first = folder_of(tmp_path / "out") / "model.pt"
    for number in range(3):
        draw_part(50 + number).save(dataset_folder / "train" / "good" / f"new{number}.png")
    place = tiny_training.index("-w")
    words = [*tiny_training[:place], *tiny_training[place + 2 :], "--lr", 1e-12, "--train_steps", 1]
    words.remove("paper"), words.remove("--recipe")
    train([*words, "--init_from", first, "-o", tmp_path / "more"])
    then, now = (torch.load(each, weights_only=True) for each in (first, folder_of(tmp_path / "more") / "model.pt"))
    networks = [key for key in then["state_dict"] if key.split(".")[0] in ("teacher", "student", "autoencoder")]
    for key in networks:
        assert torch.allclose(now["state_dict"][key], then["state_dict"][key], atol=1e-6), key
    assert not torch.equal(now["state_dict"]["teacher_mean"], then["state_dict"]["teacher_mean"])
    assert (
        now["training"]["recipe"] == "paper" and now["training"]["train_images"] > then["training"]["train_images"]
    )
    train([*words, "--init_from", first.parent, "-o", tmp_path / "folder"])  # the same
    assert_same_model(tmp_path / "more", tmp_path / "folder")

    def error(*more):
        return fail(monkeypatch, capsys, train_script, *words, "-o", tmp_path / "not", *more)

    assert "there is no model.pt" in error("--init_from", tmp_path)
    assert "a model brings its teacher along" in error("--init_from", first, "-w", tiny_training[place + 1])
    assert "add --model_size" in error("--init_from", first, "-m", "medium")
    fast = [*words[: words.index("--train_steps")], "--recipe", "fast"]
    message = fail(monkeypatch, capsys, train_script, *fast, "-o", tmp_path / "not", "--init_from", first)
    assert "has no networks to train further" in message
    assert not (tmp_path / "not").exists() or not list((tmp_path / "not").rglob("model.pt"))


def test_the_folder_of_penalty_images_may_move_but_not_change(tiny_training, tmp_path, monkeypatch, capsys):
    first, moved = tmp_path / "natural", tmp_path / "elsewhere" / "renamed"
    fill_folder(first, 3)
    train([*tiny_training, "-i", first, "-o", tmp_path / "whole"])
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 3)
        train([*tiny_training, "-i", first])
    moved.parent.mkdir()
    first.rename(moved)
    (moved / "002.png").rename(moved / "2.png")
    words = [*tiny_training, "--resume", "-i", moved]
    assert "was made with other images for the penalty" in fail(monkeypatch, capsys, train_script, *words)
    (moved / "2.png").rename(moved / "002.png")
    (moved / "003.png").write_bytes((moved / "002.png").read_bytes())
    assert "penalty 3 natural images, now 4 natural" in fail(monkeypatch, capsys, train_script, *words)
    (moved / "003.png").unlink()
    train(words)
    assert_same_model(tmp_path / "whole", tmp_path / "out")


def test_damaged_state_is_one_line(tiny_training, tmp_path, monkeypatch, capsys):
    folder_of(tmp_path / "out").mkdir(parents=True)
    state_file = folder_of(tmp_path / "out") / "checkpoint.pt"
    torch.save([1], state_file)
    assert "is not the state of a training" in fail(monkeypatch, capsys, train_script, *tiny_training, "--resume")
    torch.save({"settings": {}, "augmentation": None}, state_file)
    error = fail(monkeypatch, capsys, train_script, *tiny_training, "--resume")
    assert "was saved by another version of this toolkit, which draws other random numbers" in error
    state_file.write_text("text")
    error = fail(monkeypatch, capsys, train_script, *tiny_training, "--resume")
    assert "is not a torch file, or damaged; begin anew with --overwrite" in error


def test_a_full_disk_is_one_line_and_leaves_what_was_good(tiny_training, tmp_path, monkeypatch, capsys):
    """A limit on the size of files is as near to a full disk as a test comes."""
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Interrupted):
            train(tiny_training)
    before = (folder_of(tmp_path / "out") / "checkpoint.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        error = fail(monkeypatch, capsys, train_script, *tiny_training, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.count("\n") == 1
    assert "File too large: " in error and "checkpoint.pt is whole: solve that and continue with --resume" in error
    assert (folder_of(tmp_path / "out") / "checkpoint.pt").read_bytes() == before
    assert sorted(path.name for path in folder_of(tmp_path / "out").iterdir()) == [
        "args.json",
        "checkpoint.pt",
        "log.csv",
    ]
    train([*tiny_training, "--resume"])


def test_an_output_folder_that_is_removed_meanwhile_comes_back(tiny_training, tmp_path, monkeypatch):
    learn = training_loop.Learner.step

    def learn_and_remove(self, *args):
        if self.steps_done == 5:
            shutil.rmtree(tmp_path / "out")
        return learn(self, *args)

    monkeypatch.setattr(training_loop.Learner, "step", learn_and_remove)
    train(tiny_training)
    assert (folder_of(tmp_path / "out") / "model.pt").is_file()
    assert [row["step"] for row in read_log(tmp_path / "out")] == ["1", "10", "12"]


def test_a_model_that_appears_before_the_lock_is_had_is_not_replaced(tiny_training, monkeypatch, capsys):
    lock = training_run.lock_folder

    @contextmanager
    def lock_late(folder):
        monkeypatch.setattr(training_run, "lock_folder", lock)
        train(tiny_training)  # by another process, which had the lock first
        with lock(folder):
            yield

    monkeypatch.setattr(training_run, "lock_folder", lock_late)
    error = fail(monkeypatch, capsys, train_script, *tiny_training)
    assert "already holds a trained model; add --overwrite" in error


def test_one_run_at_a_time(tiny_training, tmp_path, monkeypatch, capsys):
    folder = folder_of(tmp_path / "out")
    holder = "import sys, time, pathlib\nfrom efficientad.system.runs import lock_folder\n"
    holder += "with lock_folder(pathlib.Path(sys.argv[1])):\n    print(flush=True)\n    time.sleep(60)\n"
    command = [sys.executable, "-c", holder, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(TESTS.parent)})
    process.stdout.read(1)
    error = fail(monkeypatch, capsys, train_script, *tiny_training)
    assert f"{folder} is in use by another run (process {process.pid} on " in error
    process.kill()
    process.wait()
    assert (folder / LOCK_FILE).exists()  # left behind, but it locks nothing
    train(tiny_training)
    assert not (folder / LOCK_FILE).exists()
