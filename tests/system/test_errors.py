"""How commands end on errors that are no bugs."""

import argparse
import sys

import pytest
import torch

from efficientad.system.distributed import each_dataset, process_group
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

    with pytest.raises(UserError, match="1 of 2 data sets failed: large"):
        each_dataset(["large", "small"], work, print)
    printed = capsys.readouterr()
    assert "large failed: " in printed.err and printed.out == "{'small': 'small'}\n"


def test_a_bug_in_a_category_is_not_hidden():
    def work(name):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        each_dataset(["one"], work, print)


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="2 GPUs are too few for process 3 of this machine"), process_group("auto"):
        pass


def test_one_gpu_for_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("cuda:1", "mps"):
        with pytest.raises(UserError, match=f"--device {name} is one GPU for 2 processes"), process_group(name):
            pass
