"""One run at a time in a folder, whatever becomes of the others."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from efficientad.system import runs
from efficientad.system.errors import UserError
from efficientad.system.runs import LOCK_FILE, lock_folder, lock_output

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import pathlib, sys, time
from efficientad.system.runs import lock_folder
with lock_folder(pathlib.Path(sys.argv[1])):
    print(flush=True)
    time.sleep(60)
"""
RACE = """
import pathlib, sys, time
from efficientad.system.errors import UserError
from efficientad.system.runs import lock_folder
folder = pathlib.Path(sys.argv[1])
end, entered = time.monotonic() + 3, 0
while time.monotonic() < end:
    try:
        with lock_folder(folder):
            (folder / "only_one").open("x").close()
            entered += 1
            (folder / "only_one").unlink()
    except UserError:
        pass
print(entered)
"""


def start(code, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)


def test_another_process_is_named_and_a_killed_one_locks_nothing(tmp_path):
    holder = start(HOLD, tmp_path)
    holder.stdout.read(1)
    try:
        expected = rf"{tmp_path} is in use by another run \(process {holder.pid} on \S+, since 2.*choose another -x"
        with pytest.raises(UserError, match=expected), lock_folder(tmp_path, "-x"):
            pass
    finally:
        holder.kill()
        holder.communicate()
    assert (tmp_path / LOCK_FILE).exists()  # left behind
    with lock_folder(tmp_path):
        text = (tmp_path / LOCK_FILE).read_text()
        assert f"process {os.getpid()} on " in text and str(holder.pid) not in text
    assert not (tmp_path / LOCK_FILE).exists()


def test_processes_that_take_turns_never_overlap(tmp_path):
    """Each removes the file that the next one may have opened already."""
    (tmp_path / "stays").write_text("mine")
    processes = [start(RACE, tmp_path) for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert int(out) > 0


def test_a_lock_leaves_no_folders_behind(tmp_path):
    with lock_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK_FILE).exists()
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    with lock_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").write_text("mine")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for folder in (tmp_path / "file", tmp_path / "file/below/it"):
        with pytest.raises(UserError) as raised, lock_folder(folder, "--output"):
            pass
        assert str(raised.value) == f"{tmp_path / 'file'} is a file, not a folder; choose another --output"
    with pytest.raises(UserError, match="link is a link to nothing, not a folder"), lock_folder(tmp_path / "link"):
        pass
    with pytest.raises(UserError, match="choose another --output$"), lock_output(tmp_path / "file/x", "--output"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_an_output_is_locked_beside_it(tmp_path):
    with lock_output(tmp_path / "d.onnx", "--output"):
        assert not (tmp_path / "d.onnx").exists()
        with pytest.raises(UserError, match=r"d.onnx is in use by .* choose another --output$"):  # noqa: SIM117
            with lock_output(tmp_path / "d.onnx", "--output"):
                pass
        with lock_output(tmp_path / "e.onnx", "--output"):
            pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_file_systems_without_locks_are_written_to(tmp_path, monkeypatch, number):
    fcntl = pytest.importorskip("fcntl")

    def refuse(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_folder(tmp_path / "out"):
        (tmp_path / "out" / "file").write_text("mine")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_windows_removes_the_lock_file_itself(tmp_path, monkeypatch):
    """There an open file cannot be removed; filelock does it when it has closed it."""
    unlink, released = Path.unlink, []

    def refuse(path, **options):
        if not released:
            raise PermissionError(13, "in use", str(path))
        unlink(path, **options)

    def release(lock, *words):
        release_there(lock, *words)
        released.append(lock)
        Path(lock.lock_file).unlink()

    release_there = filelock.FileLock.release
    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(runs.FileLock, "release", release)
    with lock_folder(tmp_path):
        pass
    assert len(released) == 1 and not list(tmp_path.iterdir())
