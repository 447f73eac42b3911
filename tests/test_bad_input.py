"""The commands on files that cameras, tools and accidents leave in image folders: read, refused or skipped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import eval as eval_script
import prepare_dataset as prepare_script
import train as train_script
from bad_inputs import IGNORED, READABLE, REFUSED, write_file
from conftest import draw_part, fail, fill_folder, make_dataset, tiny_autoencoder, tiny_pdn
from efficientad.data.datasets import find_training_images, open_dataset
from efficientad.detector import networks
from efficientad.detector.model import EfficientAD
from efficientad.system.errors import list_files
from efficientad.system.files import csv_cell
from originals import read_csv, tree

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"train": train_script, "eval": eval_script, "prepare": prepare_script}


@pytest.fixture(scope="module", autouse=True)
def model(tmp_path_factory):
    """A folder with a teacher.pth and a trained tiny model."""
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "build_pdn", tiny_pdn)
        patch.setattr(networks, "build_autoencoder", tiny_autoencoder)
        torch.manual_seed(0)
        torch.save(EfficientAD().teacher.state_dict(), folder / "teacher.pth")
        parts = make_dataset(folder / "parts", train=6, test={"good": 1})
        run("train", "-d", "custom", "-c", parts, "-o", folder, "-w", folder / "teacher.pth", "--bit_depth", 16)
        yield folder


def run(command, *words):
    script = SCRIPTS[command]
    script.main(script.get_parser().parse_args([str(word) for word in words]))


class Case:
    """A data set and the folders that prepare takes, with some files added to each; and the flags to use them."""

    def __init__(self, root, model, names=()):
        self.root = root
        make_dataset(root / "set", train=5, test={"good": 2, "dent": 2})
        fill_folder(root / "good", 4)
        fill_folder(root / "defects" / "dent", 2, seed=50)
        self.folders = {
            "train": [root / "set" / "train" / "good"],
            "eval": [root / "set" / "test" / "dent"],
            "prepare": [root / "good", root / "defects" / "dent"],
        }
        for folder in [folder for folders in self.folders.values() for folder in folders]:
            for name in names:
                write_file(folder, name)
        custom = ["-d", "custom", "-c", root / "set", "-o", root / "out"]
        sources = ["--unlabeled_dir", root / "good", "--defect_dir", root / "defects"]
        self.flags = {
            "train": [*custom, "-w", model / "teacher.pth", "--recipe", "paper", "--train_steps", 2],
            "eval": [*custom, "-w", model / "trainings" / "custom", "-f", "none"],
            "prepare": ["--annotations", "none", *sources, "-o", root / "prepared"],
        }
        self.results = {
            "train": root / "out" / "trainings" / "custom",
            "eval": root / "out" / "anomaly_maps" / "custom",
            "prepare": root / "prepared",
        }


def test_odd_files_can_be_trained_on(tmp_path, model, capsys):
    case = Case(tmp_path, model, READABLE)
    run("train", *case.flags["train"])
    assert f"custom: {round(0.9 * (len(READABLE) + 5))} good images" in capsys.readouterr().out


def test_odd_files_can_be_evaluated(tmp_path, model):
    case = Case(tmp_path, model, READABLE)
    folder = case.results["eval"]
    stems = [Path(name).stem for name in READABLE]
    keeps_suffix = len(set(stems)) < len(stems)
    for map_format in ("tiff", "jpg"):  # the second evaluation replaces the files of the first
        run("eval", *case.flags["eval"], "-f", map_format)
        rows = {row["image_name"] for row in read_csv(folder / "scores.csv") if row["defect_class"] == "dent"}
        assert rows == {csv_cell(name) for name in (*READABLE, "000.png", "001.png")}
        for name, stem in zip(READABLE, stems, strict=True):
            with Image.open(folder / "test" / "dent" / f"{name if keeps_suffix else stem}.{map_format}") as image:
                if map_format == "tiff" and name.startswith("turned"):
                    assert image.size == ((60, 40) if int(name[7]) < 5 else (40, 60))
    assert len(list((folder / "test" / "dent").iterdir())) == len(READABLE) + 2


def test_odd_files_can_be_prepared_and_replaced(tmp_path, model):
    case = Case(tmp_path, model, READABLE)
    run("prepare", *case.flags["prepare"])
    names = tree(case.results["prepare"])
    assert len([name for name in names if "/good/" not in name and name.startswith("test/")]) == len(READABLE) + 2
    run("prepare", *case.flags["prepare"], "--overwrite")
    assert tree(case.results["prepare"]) == names


@pytest.mark.parametrize("command", SCRIPTS)
def test_the_first_bad_files_are_named_before_anything_is_done(tmp_path, model, command, monkeypatch, capsys):
    case = Case(tmp_path, model, REFUSED)
    message = fail(monkeypatch, capsys, SCRIPTS[command], *case.flags[command])
    lines = message.splitlines()
    count = len(REFUSED) * len(case.folders[command])
    assert lines[0] == f"error: cannot read {count} images; repair, replace or remove:"
    assert len(lines) == 12 and lines[11].startswith(f"  ... and {count - 10} more; --on_error skip of train.py, ")
    reasons = {
        list_files([f"{folder / name}: "])[1:]: reason
        for folder in case.folders[command]
        for name, (_, reason) in REFUSED.items()
    }
    named = {
        start for line in lines[1:11] for start in reasons if line.startswith(start) and reasons[start] in line
    }
    assert len(named) == 10, message
    assert not case.results[command].exists()


@pytest.mark.parametrize("command", SCRIPTS)
def test_skipping_bad_files_is_as_if_they_were_not_there(tmp_path, model, command, monkeypatch, capsys):
    case = Case(tmp_path / "bad", model, REFUSED)
    clean = Case(tmp_path / "clean", model)
    run(command, *clean.flags[command])
    run(command, *case.flags[command], "--on_error", "skip")
    printed = capsys.readouterr().out
    count = len(REFUSED) * len(case.folders[command])
    assert (
        f"Skipped {count} files that cannot be read, see {case.results[command] / 'skipped_files.csv'}" in printed
    )
    rows = read_csv(case.results[command] / "skipped_files.csv")
    assert sorted(row["path"] for row in rows) == sorted(
        csv_cell(folder / name) for folder in case.folders[command] for name in REFUSED
    )
    for row in rows:
        assert any(
            csv_cell(name) in row["path"] and reason in row["reason"] for name, (_, reason) in REFUSED.items()
        )
    found, expected = (tree(each.results[command]) for each in (case, clean))
    assert found == sorted([*expected, "skipped_files.csv"])
    if command == "train":
        states = [
            torch.load(each.results["train"] / "model.pt", weights_only=True)["state_dict"]
            for each in (case, clean)
        ]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
    if command == "eval":
        scores = [read_csv(each.results["eval"] / "scores.csv") for each in (case, clean)]
        assert [row["y_score"] for row in scores[0]] == [row["y_score"] for row in scores[1]]
    run(command, *case.flags[command], "--on_error", "skip", *([] if command == "eval" else ["--overwrite"]))
    assert tree(case.results[command]) == found


@pytest.mark.parametrize("command", SCRIPTS)
def test_skipping_nothing_and_skipping_all(tmp_path, model, command, monkeypatch, capsys):
    case = Case(tmp_path, model)
    run(command, *case.flags[command], "--on_error", "skip")
    assert "No file had to be skipped" in capsys.readouterr().out
    assert (case.results[command] / "skipped_files.csv").read_text() == "path,reason\n"
    for path in [*case.root.glob("set/*/*/*"), *case.root.glob("good/*"), *case.root.glob("defects/*/*")]:
        path.write_text("text")
    again = [] if command == "eval" else ["--overwrite"]
    message = fail(monkeypatch, capsys, SCRIPTS[command], *case.flags[command], "--on_error", "skip", *again)
    assert {
        "train": "none of the 5 training images can be used",
        "eval": "none of the 4",
        "prepare": "no good images",
    }[command] in message


def test_a_later_training_without_skipping_leaves_no_list(tmp_path, model):
    case = Case(tmp_path, model, ["text.png"])
    run("train", *case.flags["train"], "--on_error", "skip")
    (case.folders["train"][0] / "text.png").unlink()
    run("train", *case.flags["train"], "--overwrite")
    files = ["args.json", "log.csv", "model.pt", "training.png", "training_scores.csv"]
    assert tree(case.results["train"]) == files


def test_the_old_map_of_an_image_that_broke_does_not_stay(tmp_path, model):
    case = Case(tmp_path, model)
    run("eval", *case.flags["eval"], "-f", "tiff")
    (case.folders["eval"][0] / "000.png").write_text("text")
    run("eval", *case.flags["eval"], "-f", "tiff", "--on_error", "skip")
    assert [name for name in tree(case.results["eval"]) if "dent" in name] == ["test/dent/001.tiff"]


def test_damage_in_the_middle_is_found_by_eval_at_the_end(tmp_path, model, monkeypatch, capsys):
    case = Case(tmp_path, model)
    for name in ("000.png", "001.png"):
        data = bytearray((case.folders["eval"][0] / name).read_bytes())
        data[len(data) // 2 :][:50] = bytes(50)
        data[-400:-300] = bytes(100)
        (case.folders["eval"][0] / name).write_bytes(data)
    message = fail(monkeypatch, capsys, eval_script, *case.flags["eval"])
    assert "cannot read 2 images" in message and "000.png" in message and "001.png" in message
    assert not (case.results["eval"] / "scores.csv").exists()


def test_files_that_are_no_images_are_passed_over(tmp_path, model, capsys):
    case = Case(tmp_path, model, IGNORED)
    for empty in ("test/empty", "test/__MACOSX", "train/empty"):
        (case.root / "set" / empty).mkdir()
    (case.root / "defects" / "empty").mkdir()
    for command in SCRIPTS:
        run(command, *case.flags[command])
    assert "custom: 4 good images, 1 more held out" in capsys.readouterr().out
    rows = read_csv(case.results["eval"] / "scores.csv")
    assert [row["image_name"] for row in rows] == ["000.png", "001.png"] * 2
    assert {row["directory"]: row["count"] for row in read_csv(case.results["prepare"] / "image_counts.csv")} == {
        "train/good": "3",
        "test/good": "1",
        "test/dent": "2",
    }


def test_linked_folders_are_followed_once_and_never_in_circles(tmp_path):
    parts = make_dataset(tmp_path / "set", train=3)
    fill_folder(tmp_path / "lot", 2, seed=70)
    good = parts / "train" / "good"
    for name, target in {
        "lot": tmp_path / "lot",
        "again": tmp_path / "lot",
        "up": parts,
        "self": good / "self",
    }.items():
        (good / name).symlink_to(target)
    (tmp_path / "lot" / "back").symlink_to(tmp_path / "lot")
    split = find_training_images(open_dataset("custom", parts, ""), 0)
    names = sorted(path.relative_to(good).as_posix() for path in [*split.train, *split.validation])
    assert names == ["000.png", "001.png", "002.png", "again/000.png", "again/001.png"]


def test_thousands_of_files_in_one_folder(tmp_path):
    (tmp_path / "good").mkdir()
    draw_part(1, size=(2, 2)).save(tmp_path / "one.png")
    data = (tmp_path / "one.png").read_bytes()
    for number in range(5000):
        (tmp_path / "good" / f"{number}.png").write_bytes(data + number.to_bytes(2, "big"))
    flags = ["--unlabeled_dir", tmp_path / "good", "--annotations", "none", "-o", tmp_path / "set", "--link"]
    run("prepare", *flags, "--on_error", "skip")
    assert len(list((tmp_path / "set" / "train" / "good").iterdir())) == 4000
    assert len(list((tmp_path / "set" / "test" / "good").iterdir())) == 1000


def test_hundred_megabytes_of_json(tmp_path):
    """Most of it of no interest here."""
    fill_folder(tmp_path / "images", 2)
    coco = {
        "info": "x" * 100_000_000,
        "images": [{"id": number, "file_name": f"{number:03d}.png"} for number in range(2)],
        "annotations": [{"image_id": 0, "category_id": 1}],
        "categories": [{"id": 1, "name": "dent"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    flags = ["--annotations", tmp_path / "coco.json", "--labeled_dir", tmp_path / "images"]
    run("prepare", *flags, "--unlabeled_dir", "none", "--unannotated", "good", "-o", tmp_path / "set")
    assert "test/defect_type_1/000.png" in tree(tmp_path / "set")


def test_names_are_printed_whatever_the_terminal_understands(tmp_path):
    """Class folders of bytes that are no UTF-8 and codes that a terminal would obey, on an ASCII terminal."""
    fill_folder(tmp_path / "good", 2)
    for name in (os.fsdecode(b"d\xe9\xff"), "\x1b[31mred", "two\nlines"):
        fill_folder(tmp_path / "defects" / name, 1)
    flags = ["--annotations", "none", "--unlabeled_dir", "good", "--defect_dir", "defects", "-o", "set"]
    done = subprocess.run(
        [sys.executable, ROOT / "prepare_dataset.py", *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert b"\x1b[31m" not in done.stdout + done.stderr
    for name in (rb"d\udce9\udcff", rb"\x1b[31mred", rb"two\nlines"):
        assert b"test/" + name in done.stdout


def test_an_environment_without_the_packages_is_told():
    """As when it was not activated."""
    blocked = "import sys; sys.modules['torch'] = None; sys.argv = ['train.py', '--device', 'cpu']; "
    code = blocked + "import runpy; runpy.run_path('train.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "torch is not installed" in done.stderr and "requirements.txt" in done.stderr
