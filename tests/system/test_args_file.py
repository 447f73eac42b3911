"""--args: the settings of an earlier run as defaults."""

import json
from pathlib import Path

import pytest

import eval as eval_script
import train as train_script
from commands import evaluate, train
from conftest import fail
from efficientad import predict
from efficientad.system.arguments import command_line

FAST = {
    "dataset": "custom", "subdataset": "bottle", "custom_dataset_path": "set", "seed": 7, "image_size": [128, 192],
    "roi": [0.1, 0.0, 0.5, 1.0], "memory": 0, "deterministic": True, "overwrite": True, "recipe": "fast",
    "batch_size": 1, "lr": 0.0001, "epochs": None, "train_steps": 700, "precision": "fp32", "num_workers": 3,
    "output_dir": "out", "steps": 0, "machine": "device cpu", "depth": {"integers": None}, "weights": None,
}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "args.json"
    path.write_text(json.dumps(FAST))
    return path


def parse(script, *words):
    return script.get_parser().parse_args([str(word) for word in words])


def test_values_of_the_file_are_defaults_and_flags_win(file, capsys):
    args = parse(train_script, "--seed", 42, "--args", file, "--num_workers", 1)
    assert (args.seed, args.num_workers) == (42, 1)  # 42 is also what it would be without both
    assert (args.dataset, args.custom_dataset_path, args.output_dir) == ("custom", [Path("set")], Path("out"))
    assert (args.image_size, args.roi, args.memory) == (["128", "192"], [0.1, 0.0, 0.5, 1.0], 0)
    assert (args.deterministic, args.precision, args.weights) == (True, "fp32", None)
    assert (args.overwrite, args.train_steps, args.lr) == (False, None, None)
    line = f"Took 10 settings from {file}; left out: --batch_size, --lr, --overwrite, --train_steps\n"
    assert capsys.readouterr().out == line


def test_what_scoring_does_not_take_from_a_training(file, capsys):
    args = parse(eval_script, "--args", file)
    assert (args.dataset, args.output_dir, args.batch_size, args.num_workers) == ("custom", Path("out"), 16, 3)
    assert "left out: --batch_size\n" in capsys.readouterr().out
    args = parse(predict, "--args", file, "-w", "x", "-i", "y")
    assert (args.precision, args.output_dir, args.batch_size) == ("fp32", Path("predictions"), 16)
    assert capsys.readouterr().out.endswith("left out: --batch_size, --output_dir\n")


def test_names_that_no_command_knows_are_counted(file, capsys):
    file.write_text(json.dumps(FAST | {"tarket_fpr": 0.1, "epoch\n": None, "threshold": 3}))
    parse(train_script, "--args", file)
    assert capsys.readouterr().out.endswith("; 3 unknown: tarket_fpr, epoch\\n, threshold\n")
    args = parse(eval_script, "--args", file)
    assert args.threshold == 3
    assert capsys.readouterr().out.endswith("; 2 unknown: tarket_fpr, epoch\\n\n")
    file.write_text(json.dumps({"seed": 3} | {"x" * 50 + str(number): 1 for number in range(9)}))
    parse(train_script, "--args", file)
    line = capsys.readouterr().out
    assert f"; 9 unknown: {'x' * 40}, " in line and line.endswith("x, ...\n") and len(line) < 300 + len(str(file))


def test_a_flag_wins_over_what_it_excludes(file):
    file.write_text(json.dumps({"epochs": 3, "recipe": "paper"}))
    args = parse(train_script, "--args", file, "--train_steps", 5)
    assert (args.epochs, args.train_steps) == (None, 5)
    assert parse(train_script, "--args", file).epochs == 3


def test_a_noted_command_line_names_the_settings_themselves(file, tmp_path):
    args = parse(eval_script, "--args", file)
    line = command_line(eval_script.get_parser(), args)
    assert "--args" not in line and parse(eval_script, *line.split()[2:]) == args


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("{", "is not JSON (Expecting property name"),
        ("[" * 100_000, "is not JSON ("),
        ('["seed"]', "is no args.json: it holds no settings of train.py"),
        ('{"steps": 3}', "is no args.json: it holds no settings of train.py"),
        ('{"seed": -1}', ": argument --seed: expects a whole number >= 0 and < 4294967296, not '-1'"),
        ('{"seed": true}', ": argument --seed: expects a whole number >= 0 and < 4294967296, not 'True'"),
        ('{"seed": [1, 2]}', ": argument --seed: does not take [1, 2]"),
        ('{"roi": [1, 2, 3]}', ": argument --roi: expected 4 arguments"),
        ('{"resize": "crop"}', ": argument --resize: invalid choice: 'crop'"),
        ('{"deterministic": "yes"}', ": argument --deterministic: does not take 'yes'"),
        ('{"epochs": 3, "train_steps": 4}', ": epochs and train_steps exclude each other"),
    ],
)
def test_files_that_cannot_be_used(file, monkeypatch, capsys, contents, message):
    file.write_text(contents)
    error = fail(monkeypatch, capsys, train_script, "--args", file)
    assert f"--args {file}" in error and message in error and error.count("\n") == 1


def test_files_that_cannot_be_read(file, tmp_path, monkeypatch, capsys):
    file.write_bytes(b"\xff\xfe")
    assert "is not JSON" in fail(monkeypatch, capsys, train_script, "--args", file)
    assert "is a folder; name the args.json in it" in fail(monkeypatch, capsys, train_script, "--args", tmp_path)
    gone = tmp_path / "gone.json"
    assert f"--args {gone}: No such file or directory" in fail(monkeypatch, capsys, train_script, "--args", gone)


def test_a_training_from_the_args_of_another_is_the_same(dataset_folder, tiny_teacher, tmp_path, capsys):
    words = ["-d", "custom", "-c", dataset_folder, "-o", tmp_path / "a", "-w", tiny_teacher]
    train(*words, "--memory", 40, "--seed", 9, "--train_steps", 5)
    file = tmp_path / "a/trainings/custom/args.json"
    capsys.readouterr()
    train("--args", file, "-o", tmp_path / "b")
    printed = capsys.readouterr().out
    assert "Took " in printed and " not used" not in printed and "unknown" not in printed
    first, second = (json.loads((tmp_path / name / "trainings/custom/args.json").read_text()) for name in "ab")
    differing = {name for name in first if first[name] != second[name]}
    assert differing == {"output_dir", "command", "train_steps"}
    evaluate("--args", file)
    assert (tmp_path / "a/anomaly_maps/custom/scores.csv").is_file()


def test_a_file_of_a_windows_editor_is_read(file):
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert parse(train_script, "--args", file).seed == FAST["seed"]
