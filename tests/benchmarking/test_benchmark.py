"""The benchmark runs the toolkit's own steps, and its numbers agree with each other."""

import json
import sys
import time

import pytest
import torch
from torch import nn

from conftest import fail
from efficientad import benchmark
from efficientad.benchmarking import measuring, reference, workloads
from efficientad.benchmarking.measuring import count_flops, matrix_rate, peak_memory_of, time_side_by_side

CPU = torch.device("cpu")


@pytest.fixture
def quick(tiny_networks, monkeypatch):
    monkeypatch.setattr(measuring, "TRAINING_BATCHES", (1, 2))
    monkeypatch.setattr(measuring, "PHOTO_SIZE", (40, 30))
    monkeypatch.setattr(measuring, "READ_SIZES", ((48, 32), (64, 40)))
    monkeypatch.setattr(measuring, "READ_PIXELS", 6000)
    monkeypatch.setattr(measuring, "LARGE_SIDES", (320,))
    monkeypatch.setattr(measuring, "LARGE_TRAINING_SIDE", 320)
    monkeypatch.setattr(workloads, "EXPORTS", ())


def run(*words):
    benchmark.main(benchmark.get_parser().parse_args(["--device", "cpu", "--seconds", "0.01", *map(str, words)]))


def test_table_and_json_agree(quick, tmp_path, capsys):
    run("--json", tmp_path / "b.json", "--precision", "fp32")
    printed = capsys.readouterr().out
    contents = json.loads((tmp_path / "b.json").read_text())
    rows = {row["task"]: row for row in contents["rows"]}
    assert all(row["task"] in printed and f"{row['value']:.3g}" in printed for row in contents["rows"])
    of_the_paper = [f"inference with student and autoencoder, batch {size}" for size in (1, 16)]
    for task in (
        "training, batch 1",
        "training, batch 2",
        "inference, batch 1",
        "inference, batch 16",
        *of_the_paper,
    ):
        row = rows[task]
        assert row["unit"] == "images/s" and row["value"] / row["plain"] == pytest.approx(row["ratio"])
        assert row["share_of_matrix_rate"] > 0 and row["peak_memory_gb"] > 0.1
    latency = rows["latency, batch 1"]
    assert latency["value"] == pytest.approx(1000 / rows["inference, batch 1"]["value"])
    names = " ".join(rows)
    for task in (
        "inference, 320x320, ",
        "training, batch 1, 320x320, ",
        "reading JPEG, 40x30",
        *(f"reading {kind}, {size}" for kind in ("JPEG", "PNG") for size in ("48x32", "64x40")),
        "writing tiff",
        "writing jpg",
        "eval with tiff",
        "eval with jpg",
        "eval with jpg and report",
    ):
        assert task in names
    assert "of the network's rate" in names
    assert "precision fp32" in contents["machine"] and contents["matrix_flops"] > 0


def test_profile_names_the_convolutions(quick, capsys):
    run("--profile")
    assert "convolution" in capsys.readouterr().out.split("A training step of batch size 4:")[1]


def test_a_plain_step_that_would_take_too_long_is_left_out(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "LONGEST_PLAIN_STEP", 1e-9)
    run("--json", tmp_path / "b.json")
    first, second = json.loads((tmp_path / "b.json").read_text())["rows"][:2]
    assert first["plain"] and second["plain"] is None and second["ratio"] is None and second["value"] > 0


def test_exports_are_measured_where_their_packages_are(tiny_networks, monkeypatch):
    loads = workloads.Workloads(workloads.EfficientAD(), CPU, "fp32", 0)
    monkeypatch.setattr(workloads, "EXPORTS", (("torch", "fp32"), ("onnx", "fp32")))
    monkeypatch.setitem(sys.modules, "onnx", None)
    (row,) = measuring.measure_exports(loads, 1, 0.01, 1e9)
    assert row["task"] == "latency, torch fp32 on the CPU" and row["unit"] == "ms"
    assert row["plain"] / row["value"] == pytest.approx(row["ratio"])


def test_both_steps_learn(tiny_networks):
    """The benchmark would be worthless if one of the two did not do its work."""
    torch.manual_seed(0)
    model = workloads.EfficientAD()
    loads = workloads.Workloads(model, CPU, "fp32", 0)
    for model, step in zip((loads._model, loads._plain_model), loads.training_steps(2), strict=True):
        before = {name: tensor.clone() for name, tensor in model.named_parameters()}
        step()
        changed = {
            name.split(".")[0] for name, tensor in model.named_parameters() if (tensor != before[name]).any()
        }
        assert changed == {"student", "autoencoder"}


@pytest.mark.parametrize("with_student", [False, True])
def test_both_inferences_answer_alike(tiny_networks, monkeypatch, with_student):
    """And the default one is of a memory alone."""
    torch.manual_seed(0)
    loads = workloads.Workloads(workloads.EfficientAD(), CPU, "fp32", 0)
    assert (loads._alone.student is None) and len(loads._alone.memory) == 8000 and not len(loads._model.memory)
    scores = []
    monkeypatch.setattr(
        workloads, "anomaly_score", lambda maps: scores.append(reference.scores(maps)) or scores[-1]
    )
    plain_scores = reference.scores
    monkeypatch.setattr(reference, "scores", lambda maps: scores.append(plain_scores(maps)) or scores[-1])
    for run in loads.inference_runs(2, with_student):
        run()
    torch.testing.assert_close(scores[0], scores[-1], rtol=1e-3, atol=0.02)


def test_works_take_turns():
    calls = []
    times = time_side_by_side(
        [lambda: (calls.append("slow"), time.sleep(0.02)), lambda: calls.append("quick")], 0.05, CPU
    )
    assert calls[:4] == ["slow", "quick"] * 2 and calls.count("slow") == calls.count("quick") >= 3
    assert times[0] >= 0.02 > times[1]


def test_long_works_run_once():
    calls = []
    times = time_side_by_side([lambda: (calls.append(0), time.sleep(0.02)), lambda: calls.append(1)], 0.002, CPU)
    assert calls == [0, 1] and times[0] >= 0.02 > times[1]


def test_flops_of_a_convolution():
    layer, image = nn.Conv2d(3, 5, 4), torch.zeros(1, 3, 10, 10)
    assert count_flops(lambda: layer(image)) == 2 * 5 * 7 * 7 * 3 * 4 * 4


def test_matrix_rate_is_plausible():
    assert 1e8 < matrix_rate(CPU, "fp32", 0.01) < 1e14


def test_peak_memory_sees_what_was_freed_again():
    without = peak_memory_of(lambda: None, CPU)
    if without is None:
        pytest.skip("this system does not report it")
    with_tensor = peak_memory_of(lambda: torch.ones(100_000_000), CPU)
    assert 0.35 < with_tensor - without < 0.45


def test_wrong_json_path_is_reported_at_once(monkeypatch, capsys, tmp_path):
    message = fail(monkeypatch, capsys, benchmark, "--json", tmp_path / "missing" / "b.json")
    assert "there is no folder" in message


def test_works_on_large_images_do_their_work(tiny_networks):
    torch.manual_seed(0)
    loads = workloads.Workloads(workloads.EfficientAD(), CPU, "fp32", 0)
    shapes = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: shapes.append(tuple(inputs[0].shape[-2:]))
    )
    try:
        loads.inference_at(320)()
        assert (320, 320) in shapes
        shapes.clear()
        loads.training_step_at(320)()
    finally:
        hook.remove()
    assert (256, 256) in shapes  # windows, and the autoencoder's view of the whole
