"""What killed runs leave beside an output goes with the next run there."""

import os
import subprocess
import sys

import pytest

from efficientad.inference.export_files import unfinished_file
from efficientad.preparation.staging import staged_folder
from efficientad.system.errors import UserError


@pytest.fixture
def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def fill(path):
    path.mkdir()
    (path / "file").write_text("half")


def prepare(folder, overwrite=False):
    with staged_folder(folder, overwrite, "--output_dir") as staging:
        (staging / "file").write_text("whole")


def test_the_next_run_removes_the_folders_of_killed_ones(tmp_path, gone):
    kept = [f".set.unfinished-{os.getppid()}", ".set.unfinished-x"]
    kept += [f".settle.unfinished-{gone}", f"set.unfinished-{gone}"]
    for name in (*kept, f".set.unfinished-{gone}", f".set.unfinished-{os.getpid()}"):
        fill(tmp_path / name)
    (tmp_path / ".set.unfinished-999999999").symlink_to(tmp_path / "set.unfinished-x")
    prepare(tmp_path / "set")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["set", ".set.unfinished-999999999", *kept])


def test_a_replaced_folder_goes_only_once_there_is_another(tmp_path, gone):
    """A run may be killed between the two renamings; then this is the user's only data set."""
    replaced = tmp_path / f".set.replaced-{gone}"
    fill(replaced)
    prepare(tmp_path / "set")
    assert replaced.exists()
    with pytest.raises(UserError, match="is not empty"):
        prepare(tmp_path / "set")
    assert not replaced.exists() and (tmp_path / "set" / "file").read_text() == "whole"


def test_an_export_removes_them_too(tmp_path, gone):
    fill(tmp_path / f".d.onnx.unfinished-{gone}")
    with unfinished_file(tmp_path / "d.onnx", ".onnx", overwrite=False) as path:
        path.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["d.onnx"]
    with pytest.raises(RuntimeError), unfinished_file(tmp_path / "d.onnx", ".onnx", overwrite=True):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["d.onnx"]


def test_a_link_is_no_file_of_the_tool_so_it_is_not_overwritten(tmp_path, originals, monkeypatch, capsys):
    import prepare_dataset
    from conftest import fail
    from originals import prepare as prepare_set

    prepare_set(*originals.flags())
    folder = originals.root / "set"
    image = next(path for path in folder.rglob("*.png") if "good" in path.parts)
    image.rename(tmp_path / "moved.png")
    image.symlink_to(tmp_path / "moved.png")
    message = fail(monkeypatch, capsys, prepare_dataset, *originals.flags(), "--overwrite")
    assert "this tool did not write 1 of its files" in message and image.name in message and image.is_symlink()
