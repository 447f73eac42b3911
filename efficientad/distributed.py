"""Several processes at one task, as torchrun starts them; a single process is the same with one rank."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist


@contextmanager
def process_group(device_name: str) -> Iterator[tuple[int, int]]:
    """Join the processes that torchrun started, if it did, for the time of the block: rank and their number."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield 0, 1
        return
    on_gpu = device_name != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield dist.get_rank(), world
    finally:
        dist.destroy_process_group()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of every rank's `values`, in place; nothing to do for a single process."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def from_first_rank(values: Tensor) -> Tensor:
    """Rank 0's `values` on every rank, in place."""
    if dist.is_initialized():
        dist.broadcast(values, src=0)
    return values


def wait_for_ranks() -> None:
    """Return when every rank has come this far."""
    if dist.is_initialized():
        dist.barrier()
