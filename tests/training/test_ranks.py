"""Several processes do what one does."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import eval as eval_script
import joined_worker
import train as train_script
from conftest import fail, make_dataset
from efficientad.detector.checkpoint import save_model

TESTS = Path(__file__).resolve().parents[1]


def environment(**variables):
    paths = f"{TESTS}{os.pathsep}{TESTS.parent}"
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **variables}


def run_torchrun(worker, *words, **variables):
    """Two processes with gloo on the CPU; returns the finished launcher."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    command = [sys.executable, *launcher, str(TESTS / worker), *map(str, words)]
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True)


def run_ranks(worker, *words, **variables):
    """The same without the launcher, which only costs time here: status of both, output and errors of the first."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port, **variables}
    command = [sys.executable, str(TESTS / worker), *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    second = subprocess.Popen(command, env=environment(RANK="1", LOCAL_RANK="1", **common), **pipes)
    first = subprocess.run(command, env=environment(RANK="0", LOCAL_RANK="0", **common), **pipes)
    said, error = second.communicate()
    statuses = [first.returncode, second.returncode]
    return subprocess.CompletedProcess(command, statuses, first.stdout + said, first.stderr + error)


def evaluate(words):
    eval_script.main(eval_script.get_parser().parse_args([str(word) for word in words]))


def test_losses_gradients_and_statistics_are_those_of_the_joined_batch(tiny_networks, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes have; with another number the sums differ a little more
    one = joined_worker.joined_work()
    torch.set_num_threads(threads)
    done = run_ranks("joined_worker.py", tmp_path / "two.pt")
    assert done.returncode == [0, 0], done.stderr
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    for ours, theirs in zip(two["losses"], one["losses"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    for ours, theirs in zip(two["gradients"], one["gradients"], strict=True):
        for gradient, expected in zip(ours, theirs, strict=True):
            scale = expected.abs().max().item()
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * scale)
    statistics = ("teacher_mean", "teacher_std", "memory", "quantiles", "map_weights")
    for name in (*statistics, "global_score.levels", "global_score.peak"):
        torch.testing.assert_close(two["state"][name], one["state"][name], rtol=1e-6, atol=1e-6)
    for name in ("scores", "left_out", "factors"):  # in the same order
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=0)


@pytest.fixture
def categories(tmp_path):
    """Two categories of MVTec AD's layout, and one that has no images to learn from."""
    for name in ("nut", "bolt"):
        make_dataset(tmp_path / "sets" / name, train=6, test={"good": 3, "bad": 2})
    return tmp_path / "sets"


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_training_that_loses_a_rank_is_resumed(dataset_folder, tiny_teacher, tmp_path):
    """Nine images, batches of two times two: in the last step of each epoch one rank has nothing to do.

    The other training is evaluated on the way, which must not show.
    """
    words = ["-d", "custom", "-c", dataset_folder, "-w", tiny_teacher, "-e", 4, "-b", 2, "--device", "cpu"]
    words += ["--recipe", "paper", "--memory", 40, "--num_workers", 0, "--checkpoint_minutes", 0.0001]
    whole = run_ranks("train_worker.py", *words, "-o", tmp_path / "whole", "--evaluate_every", 5)
    assert whole.returncode == [0, 0], whole.stderr
    assert "12 steps of batch size 2 on each of 2 processes" in whole.stdout
    assert whole.stdout.count("Trained in") == 1
    found = [line.split(":")[0] for line in whole.stdout.splitlines() if "with the labels of 7 test images" in line]
    assert found == ["Step 5", "Step 10", "Step 12"]

    # A launcher would stop the one that is left, often before it has found out
    lost = run_ranks("train_worker.py", *words, "-o", tmp_path / "lost", DIE_IN_STEP="7")
    assert sorted(lost.returncode) == [-signal.SIGKILL, 2]
    assert "Traceback" not in lost.stderr
    assert "train.py: error: another process of this run has ended" in lost.stderr
    resumed = run_ranks("train_worker.py", *words, "-o", tmp_path / "lost", "--resume")
    assert resumed.returncode == [0, 0], resumed.stderr
    assert "Resuming after 7 of 12 steps" in resumed.stdout
    one, other = (
        torch.load(tmp_path / name / "trainings/custom/model.pt", weights_only=True)["state_dict"]
        for name in ("whole", "lost")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    steps = [row["step"] for row in read_rows(tmp_path / "lost/trainings/custom/log.csv")]
    assert steps == ["1", "10", "12"]


def test_training_whose_first_process_is_stopped_saves_first(dataset_folder, tiny_teacher, tmp_path):
    """torchrun ends the others as soon as one has ended."""
    words = ["-d", "custom", "-c", dataset_folder, "-w", tiny_teacher, "-e", 4, "-b", 2, "--device", "cpu"]
    words += ["--recipe", "paper"]
    stopped = run_torchrun("train_worker.py", *words, "--num_workers", 0, "-o", tmp_path, STOP_IN_STEP="5")
    assert stopped.returncode != 0
    assert "interrupted after step 6; continue with --resume" in stopped.stderr
    assert torch.load(tmp_path / "trainings/custom/checkpoint.pt", weights_only=False)["step"] == 6


def test_two_processes_evaluate_as_one(dataset_folder, tiny_model, tmp_path):
    folder = tmp_path / "out/trainings/custom"
    folder.mkdir(parents=True)
    save_model(tiny_model, folder / "model.pt", {})
    (dataset_folder / "test/good/001.png").write_text("text")
    for path in (dataset_folder / "test/defect_type_1").iterdir():
        mask = Image.new("L", (60, 40))
        mask.paste(255, (20, 10, 30, 20))
        (dataset_folder / "ground_truth/defect_type_1").mkdir(parents=True, exist_ok=True)
        mask.save(dataset_folder / f"ground_truth/defect_type_1/{path.stem}_mask.png")
    words = ["-d", "custom", "-c", dataset_folder, "-w", folder, "-f", "tiff", "-T", 5, "--on_error", "skip"]
    evaluate([*words, "-o", tmp_path / "one"])
    done = run_ranks("eval_worker.py", *words, "-o", tmp_path / "two")
    assert done.returncode == [0, 0], done.stderr
    assert done.stdout.count("Final image auc") == 1 and "Skipped 1 file" in done.stdout
    one, two = (tmp_path / name / "anomaly_maps/custom" for name in ("one", "two"))
    assert sorted(path.relative_to(one) for path in one.rglob("*")) == sorted(
        path.relative_to(two) for path in two.rglob("*")
    )
    for ours, theirs in zip(read_rows(two / "scores.csv"), read_rows(one / "scores.csv"), strict=True):
        assert float(ours.pop("y_score")) == pytest.approx(float(theirs.pop("y_score")), rel=1e-4)
        assert ours == theirs  # the decisions, too
    ours, theirs = (
        json.loads((folder / "metrics.json").read_text())["pixel_metrics"]["overall"] for folder in (two, one)
    )
    assert theirs["images"] == ours["images"] == 2
    for metric in ("auroc", "f1_max", "au_pro_30"):
        assert ours[metric] == pytest.approx(theirs[metric], rel=1e-4)


def test_every_category_over_two_processes(categories, tiny_teacher, tmp_path):
    (categories / "broken" / "train").mkdir(parents=True)
    words = ["-d", "mvtec_ad", "--mvtec_ad_path", categories, "-s", "all", "-o", tmp_path / "out"]
    train = ["-w", tiny_teacher, "--device", "cpu", "--num_workers", 0]
    done = run_ranks("train_worker.py", *words, *train)
    assert done.returncode == [2, 0], done.stderr
    assert "broken failed: " in done.stderr
    assert "train.py: error: 1 of 3 data sets failed: broken; their messages are above" in done.stderr
    for name in ("nut", "bolt"):
        assert (tmp_path / "out/trainings/mvtec_ad" / name / "model.pt").is_file()
    table = done.stdout[done.stdout.index("\nData set  ") :].splitlines()
    assert [line.split()[0] for line in table[3:6]] == ["bolt", "nut", "mean"]


def test_every_category_one_after_another(categories, tiny_networks, tiny_teacher, tmp_path, monkeypatch, capsys):
    words = ["-d", "mvtec_ad", "--mvtec_ad_path", categories, "-s", "all", "-o", tmp_path / "out"]
    train_words = [*words, "-w", tiny_teacher, "--num_workers", 0]
    train_script.main(train_script.get_parser().parse_args([str(word) for word in train_words]))
    command = capsys.readouterr().out.strip().splitlines()[-1].split("Evaluate them with: ")[1].split()
    assert command[:2] == ["python", "eval.py"]
    evaluate([*command[2:], "-f", "none"])
    printed = capsys.readouterr().out
    assert printed.count("Final image auc") == 2
    rows = read_rows(tmp_path / "out/anomaly_maps/mvtec_ad/summary.csv")
    assert [row["category"] for row in rows] == ["bolt", "nut", "mean"]
    aurocs = [float(row["image_auroc"]) for row in rows]
    assert aurocs[2] == pytest.approx((aurocs[0] + aurocs[1]) / 2)
    summary = json.loads((tmp_path / "out/anomaly_maps/mvtec_ad/summary.json").read_text())
    assert [row["image_auroc"] for row in summary] == pytest.approx(aurocs)
    (tmp_path / "out/trainings/mvtec_ad/nut/model.pt").unlink()
    train_script.main(train_script.get_parser().parse_args([str(word) for word in [*train_words, "--resume"]]))
    table = capsys.readouterr().out.split("\nData set  ")[1].splitlines()
    assert [line.split()[0] for line in table[2:4]] == ["nut", "mean"]  # the other was finished
    train_script.main(train_script.get_parser().parse_args([str(word) for word in [*train_words, "--resume"]]))
    printed = capsys.readouterr().out
    assert "Trained before, nothing to do: bolt, nut\n" in printed and "mean" not in printed
    error = fail(monkeypatch, capsys, train_script, *train_words)
    assert "all 2 data sets failed; their messages are above" in error
    error = fail(monkeypatch, capsys, eval_script, *words, "-w", tmp_path)
    assert "--weights_dir names one detector" in error
