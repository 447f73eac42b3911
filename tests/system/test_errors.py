"""How commands end on errors that are no bugs."""

import argparse
import os
import sys
from pathlib import Path

import pytest
import torch

from efficientad.system import runs
from efficientad.system.distributed import each_category, process_group
from efficientad.system.errors import UserError, run_command

SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"),
    RuntimeError(
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_too_little_memory_is_one_line_that_names_the_flags_there_are(shortage, monkeypatch, capsys):
    parser = argparse.ArgumentParser(prog="train.py")
    parser.add_argument("--batch_size", default=1)
    parser.add_argument("--cache_gb", default=1)

    def main(args):
        raise shortage

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as ended:
        run_command(main, parser)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    assert error.startswith("train.py: error: not enough memory (")
    assert error.endswith("); try a smaller --batch_size or --cache_gb\n")


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_a_category_without_memory_does_not_stop_the_others(shortage, capsys):
    def work(name):
        if name == "large":
            raise shortage
        return name

    assert each_category(["large", "small"], work) == {"small": "small"}
    assert "large failed: " in capsys.readouterr().err


def test_a_bug_in_a_category_is_not_hidden():
    def work(name):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        each_category(["one"], work)


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="2 GPUs are too few for process 3 of this machine"), process_group("auto"):
        pass


def test_windows_removes_a_lock_file_that_is_closed(tmp_path, monkeypatch):
    """There an open file cannot be removed."""
    acquire, opened, open_at_removal = runs._acquire, [], []
    monkeypatch.setattr(runs, "_acquire", lambda path: opened.append(acquire(path)) or opened[0])
    monkeypatch.setattr(runs, "_CLOSE_FIRST", True)
    unlink = Path.unlink

    def note(path, **options):
        open_at_removal.append(_is_open(opened[0]))
        unlink(path, **options)

    with runs.lock_folder(tmp_path):
        monkeypatch.setattr(Path, "unlink", note)
    assert open_at_removal == [False] and not list(tmp_path.iterdir())


def _is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
