"""Several custom sets at once: trained, evaluated and summed up under the names of their folders."""

import csv
import json
from pathlib import Path

import pytest

import eval as eval_script
import train as train_script
from commands import evaluate, train
from conftest import fail, make_dataset
from efficientad.data.choices import choose_several
from efficientad.system import dataset_arguments
from efficientad.system.errors import UserError


@pytest.fixture
def sets(tmp_path):
    for name in ("screws", "line 3/pills"):
        make_dataset(tmp_path / name, train=6, test={"good": 3, "dent": 2})
    return [tmp_path / "screws", tmp_path / "line 3" / "pills"]


def test_each_set_has_its_folder_and_its_line(sets, tiny_teacher, tmp_path, capsys):
    out = tmp_path / "out"
    train("-d", "custom", "-c", *sets, "-o", out, "-w", tiny_teacher, "--memory", 20, "--num_workers", 0)
    printed = capsys.readouterr().out
    table = printed[printed.index("\nData set  ") :].splitlines()
    assert [line.split()[0] for line in table[3:6]] == ["screws", "pills", "mean"]
    assert "; evaluate it with" not in printed
    command = printed.strip().splitlines()[-1].split("Evaluate them with: python eval.py ")[1]
    assert command == f"--dataset custom --custom_dataset_path {sets[0]} '{sets[1]}' --output_dir {out}"
    settings = json.loads((out / "trainings/custom_sets/pills/args.json").read_text())
    assert settings["custom_dataset_path"] == str(sets[1])  # of this set alone
    assert settings["command"].count(str(sets[0])) == 1  # of both, which leads to this folder

    evaluate("-d", "custom", "-c", *sets, "-o", out, "-f", "none")
    folder = out / "anomaly_maps/custom_sets"
    printed = capsys.readouterr().out
    assert "Data set custom_sets/screws: 5 test images" in printed and printed.count("Final image auc") == 2
    assert str(folder / "summary.csv") in printed
    with (folder / "summary.csv").open(newline="") as file:
        assert [row["category"] for row in csv.DictReader(file)] == ["screws", "pills", "mean"]
    for name in ("screws", "pills"):
        assert (folder / name / "report.html").is_file()
    assert not (out / "anomaly_maps/custom").exists() and not (out / "trainings/custom").exists()


def test_one_set_that_fails_does_not_stop_the_others(sets, tiny_teacher, tmp_path, monkeypatch, capsys):
    words = ["-d", "custom", "-c", *sets, tmp_path / "nowhere", "-o", tmp_path / "out"]
    message = fail(monkeypatch, capsys, train_script, *words, "-w", tiny_teacher, "--memory", 20)
    assert "1 of 3 data sets failed: nowhere; their messages are above" in message
    assert (tmp_path / "out/trainings/custom_sets/pills/model.pt").is_file()


def test_the_evaluation_that_is_named_is_of_what_was_trained(sets, tmp_path, capsys):
    def closing(words, *trained):
        args = train_script.get_parser().parse_args([*map(str, words), "-o", str(tmp_path / "out")])
        paths = dataset_arguments.dataset_paths(args)
        several = choose_several(args.dataset, paths, args.subdataset)
        train_script.print_trainings(args, several, dict.fromkeys(trained, (6, 0, 1.0)))
        return capsys.readouterr().out.strip().splitlines()[-1]

    words = ["-d", "custom", "-c", *sets, tmp_path / "nowhere"]
    begin, end = "python eval.py --dataset custom --custom_dataset_path", f"--output_dir {tmp_path / 'out'}"
    line = closing(words, "screws", "pills")
    assert line == f"Evaluate them with: {begin} {sets[0]} '{sets[1]}' {end}"
    line = closing(words, "screws")
    weights_dir = tmp_path / "out/trainings/custom_sets/screws"
    assert line == f"Evaluate it with: {begin} {sets[0]} --weights_dir {weights_dir} {end}"
    for name in ("bolt", "nut"):
        (tmp_path / "mvtec" / name / "train").mkdir(parents=True)
    words = ["-d", "mvtec_ad", "--mvtec_ad_path", tmp_path / "mvtec", "-s", "all"]
    assert "--subdataset all" in closing(words, "bolt", "nut")
    assert "Evaluate" not in closing(words, "nut")  # but with each training


def test_one_folder_twice_is_called_that(sets, tmp_path, monkeypatch, capsys):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "pills").symlink_to(sets[1])
    for again in (f"{sets[1]}/", sets[1].parent / ".." / "line 3" / "pills", tmp_path / "links" / "pills"):
        words = ["-d", "custom", "-o", tmp_path / "out", "-c", sets[1], again]
        message = fail(monkeypatch, capsys, train_script, *words)
        assert f"{sets[1]} and {Path(again)} are the same folder; name it once" in message


def test_two_sets_of_one_name_are_refused_in_one_line(sets, tmp_path, monkeypatch, capsys):
    words = ["-d", "custom", "-o", tmp_path / "out", "-c", sets[1], tmp_path / "Pills"]
    for script in (train_script, eval_script):
        message = fail(monkeypatch, capsys, script, *words)
        assert f"{sets[1]} and {tmp_path / 'Pills'} have the same name" in message
    assert not (tmp_path / "out").exists()


def test_one_detector_for_several_sets_is_refused(sets, tmp_path, monkeypatch, capsys):
    assert "--weights_dir names one detector" in fail(
        monkeypatch, capsys, eval_script, "-d", "custom", "-c", *sets, "-w", tmp_path, "-o", tmp_path / "out"
    )


def test_names_are_those_of_folders_however_they_are_written(monkeypatch, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    chosen = choose_several("custom", [Path("."), Path("b/"), Path("..")], "bottle")
    assert list(chosen) == ["a", "b", tmp_path.name]
    assert chosen["b"].name == "custom_sets/b"
    assert choose_several("custom", [Path("b")], "all") == {}
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="have the same name, b,"):
        choose_several("custom", [Path("b"), Path("../b")], "bottle")
