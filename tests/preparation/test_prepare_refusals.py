"""prepare_dataset.py, called as users should not: one line, and everything stays as it was."""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import prepare_dataset
from conftest import fail
from efficientad.preparation.staging import staged_folder
from originals import prepare, tree

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("way", ["..", "..\\", "absolute", "link"])
def test_file_names_that_leave_the_folder_are_refused(originals, monkeypatch, capsys, way):
    outside = originals.image(originals.root / "secret.png", 1)
    if way == "link":
        (originals.root / "images" / "link").symlink_to(originals.root)
    names = {"..": "../nowhere.png", "..\\": "..\\secret.png", "absolute": str(outside), "link": "link/secret.png"}
    originals.coco["images"][0]["file_name"] = names[way]
    message = fail(monkeypatch, capsys, prepare_dataset, *originals.flags(), "--skip_missing")
    assert "1 file_name is outside" in message and repr(names[way]) in message
    assert not (originals.root / "set").exists()


def test_images_may_be_links(originals):
    image = originals.root / "images" / "a.png"
    image.rename(originals.root / "kept_elsewhere.png")
    image.symlink_to(originals.root / "kept_elsewhere.png")
    prepare(*originals.flags())
    copied = originals.root / "set" / "test" / "defect_type_3" / "a.png"
    assert copied.read_bytes() == (originals.root / "kept_elsewhere.png").read_bytes()


def test_missing_images_are_listed_and_nothing_is_written(originals, monkeypatch, capsys):
    for name in ("x\0y.png", "\ud800.png", "n" * 300 + ".png", "https://example.org/a.png"):
        originals.annotated("spare.png", 3)["file_name"] = name
    for number in range(20):
        originals.annotated(f"{number}.png", 3)
        (originals.root / "images" / f"{number}.png").unlink()
    message = fail(monkeypatch, capsys, prepare_dataset, *originals.flags())
    assert "24 annotated images are missing" in message and "--skip_missing" in message
    assert "... and 14 more" in message and len(message.splitlines()) == 12
    assert [path.name for path in originals.root.iterdir() if "set" in path.name] == []
    prepare(*originals.flags(), "--skip_missing")
    assert "24 annotated images are missing and left out" in capsys.readouterr().out
    assert "test/defect_type_3/a.png" in tree(originals.root / "set")


def test_wrong_commands(originals, monkeypatch, capsys):
    def error(*words, **changes):
        flags = dict(zip(*[iter(map(str, originals.flags()))] * 2, strict=True))
        flags.update({f"--{key}": str(value) for key, value in changes.items()})
        return fail(
            monkeypatch, capsys, prepare_dataset, *(word for pair in flags.items() for word in pair), *words
        )

    nowhere = originals.root / "nowhere"
    for ratio in ("0", "1.5", "-1", "nan"):
        assert "expects a number > 0" in error(train_ratio=ratio)
    assert "--annotations" in error(annotations=nowhere)
    assert "--labeled_dir" in error(labeled_dir=nowhere)
    assert "--unlabeled_dir" in error(unlabeled_dir=nowhere)
    (originals.root / "empty").mkdir()
    assert "holds no images" in error(unlabeled_dir=originals.root / "empty")
    assert "are one inside the other" in error(output_dir=originals.root / "normal" / "set")
    assert "are one inside the other" in error(output_dir=originals.root)
    assert "add --annotations none" in error("--defect_dir", nowhere)
    assert "--defect_dir" in error("--defect_dir", nowhere, annotations="none")
    assert "--preview draws annotations" in error(annotations="none", preview=nowhere)
    assert "needs good images" in error(annotations="none", unlabeled_dir="none")
    originals.coco["annotations"][3]["category_id"] = 3
    originals.coco["annotations"].append({"id": 99, "image_id": 3, "category_id": 3})
    assert "there are no good images" in error(unlabeled_dir="none")
    (originals.root / "normal" / "text.png").write_text("text")
    (originals.root / "normal" / "empty.png").touch()
    assert "cannot read 2 images" in (message := error()) and "text.png" in message and "empty file" in message
    originals.image(originals.root / "defects" / "good" / "1.png", 1)
    assert "is among the defects" in error("--defect_dir", originals.root / "defects", annotations="none")
    assert not (originals.root / "set").exists()


def test_output_that_is_not_empty_is_refused_and_foreign_files_survive(originals, monkeypatch, capsys):
    output = originals.root / "set"
    prepare(*originals.flags())
    before = tree(output)
    assert "is not empty" in fail(monkeypatch, capsys, prepare_dataset, *originals.flags())
    (output / "test" / "good" / "mine.txt").write_text("mine")
    message = fail(monkeypatch, capsys, prepare_dataset, *originals.flags(), "--overwrite")
    assert "for example test/good/mine.txt" in message
    (output / "test" / "good" / "mine.txt").unlink()
    prepare(*originals.flags(), "--overwrite", "--folder_names", "name")
    assert tree(output) != before and (output / "test" / "dust" / "a.png").is_file()
    other = originals.root / "photos"
    originals.image(other / "holiday.png", 3)
    message = fail(monkeypatch, capsys, prepare_dataset, *originals.flags("photos"), "--overwrite")
    assert "was not made by this tool" in message and tree(other) == ["holiday.png"]
    (originals.root / "file").write_text("mine")
    assert "is a file" in fail(monkeypatch, capsys, prepare_dataset, *originals.flags("file"), "--overwrite")
    (originals.root / "empty").mkdir()
    prepare(*originals.flags("empty"))
    assert not [path for path in originals.root.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("exists", [False, True])
def test_interrupt_leaves_everything_as_it_was(originals, monkeypatch, exists):
    flags = originals.flags("new/folder/set")
    if exists:
        prepare(*flags)
    before = sorted(originals.root.rglob("*"))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("efficientad.preparation.plan.write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(*flags, "--overwrite", "--seed", 3)
    assert sorted(originals.root.rglob("*")) == before


def test_replaced_folder_comes_back_when_the_new_one_cannot_take_its_place(originals, monkeypatch):
    prepare(*originals.flags())
    before = sorted(originals.root.rglob("*"))
    rename = Path.rename

    def fail_for_the_new_one(path, target):
        if "unfinished" in path.name:
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="Input/output error"):
        prepare(*originals.flags(), "--overwrite", "--folder_names", "name")
    assert sorted(originals.root.rglob("*")) == before


def test_preview_of_a_damaged_image_is_an_error_and_nothing_is_written(originals, monkeypatch, capsys):
    damaged = originals.root / "images" / "a.png"
    damaged.write_bytes(damaged.read_bytes()[:400])
    words = [*originals.flags(), "--preview", originals.root / "preview"]
    assert "cannot read 1 image" in (message := fail(monkeypatch, capsys, prepare_dataset, *words))
    assert str(damaged) in message
    assert not (originals.root / "set").exists() and not (originals.root / "preview").exists()
    words[-1] = originals.root / "set" / "preview"
    assert "are one inside the other" in fail(monkeypatch, capsys, prepare_dataset, *words)


SECOND = """
import pathlib, sys
from efficientad.preparation.staging import staged_folder
with staged_folder(pathlib.Path(sys.argv[1]), True, "--output_dir") as folder:
    (folder / "file").write_text("second")
"""


def test_two_runs_at_once_do_not_replace_each_other(tmp_path):
    with staged_folder(tmp_path / "set", False, "--output_dir") as folder:
        (folder / "file").write_text("first")
        command = [sys.executable, "-c", SECOND, str(tmp_path / "set")]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert "set is in use by another run (process " in done.stderr
    assert (tmp_path / "set" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_full_disk_is_that_of_the_output(originals, monkeypatch, capsys):
    def fill(source, destination):
        raise OSError(errno.ENOSPC, "No space left on device", str(source))

    monkeypatch.setattr(shutil, "copyfile", fill)
    error = fail(monkeypatch, capsys, prepare_dataset, *originals.flags())
    assert re.search(r"No space left on device: .*\.unfinished-", error)
