"""Several processes with one GPU each, and what they do one after another."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from efficientad.system.errors import UserError, is_out_of_memory

# Ranks with works of their own wait long for each other; a dead one is noticed at once
_PATIENCE = timedelta(days=7)
_alone = False
_Item = TypeVar("_Item")


@contextmanager
def process_group(device_name: str) -> Iterator[tuple[int, int]]:
    """Join the processes that torchrun started, if it did, for the time of the block: rank and their number."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield 0, 1
        return
    on_gpu = device_name != "cpu" and torch.cuda.is_available()
    if on_gpu:
        place, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if place >= gpus:
            raise UserError(f"{gpus} GPUs are too few for process {place + 1} of this machine; start {gpus}")
        torch.cuda.set_device(place)
    # Imported later, as Adam does, its default arguments would keep the group beyond its end; then Python may end
    # before the threads of the group, which now and then aborts the process.
    importlib.import_module("torch.distributed.nn")
    with _naming_lost_ranks():
        # Small things that the host must know go through gloo: no waiting for the GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    try:
        yield dist.get_rank(), world
    finally:
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """For the time of the block each rank works as if it were the only process."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def _together() -> bool:
    return dist.is_initialized() and not _alone


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _together() else 0


def ranks() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _together() else 1


def own_part(count: int) -> slice:
    """Of `count` things in a row those of this rank, as even as possible; none may be left for the last ranks."""
    size, more = divmod(count, ranks())
    start = rank() * size + min(rank(), more)
    return slice(start, start + size + (rank() < more))


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of every rank's `values`, in place; nothing to do for a single process."""
    if _together():
        with _naming_lost_ranks():
            dist.all_reduce(values)
    return values


def largest_over_ranks(value: int) -> int:
    """The largest of the ranks' numbers."""
    if not _together():
        return value
    number = torch.tensor(value)
    with _naming_lost_ranks():
        dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def from_first_rank(values: Tensor) -> Tensor:
    """Rank 0's `values` on every rank, in place."""
    if _together():
        with _naming_lost_ranks():
            dist.broadcast(values, src=0)
    return values


def gather_rows(values: Tensor) -> Tensor:
    """Every rank's `values`, of one shape, stacked in the order of the ranks."""
    if not _together():
        return values[None]
    gathered = [torch.empty_like(values) for _ in range(ranks())]
    with _naming_lost_ranks():
        dist.all_gather(gathered, values)
    return torch.stack(gathered)


def gather_objects(item: _Item) -> list[_Item]:
    """Every rank's `item`, in the order of the ranks; anything that can be pickled."""
    if not _together():
        return [item]
    gathered: list = [None] * ranks()
    with _naming_lost_ranks():
        dist.all_gather_object(gathered, item)
    return gathered


def wait_for_ranks() -> None:
    """Return when every rank has come this far."""
    largest_over_ranks(0)


@contextmanager
def _naming_lost_ranks() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise UserError(
            "another process of this run has ended; its own message, if it left one, stands above"
        ) from error


_Result = TypeVar("_Result")


def each_category(names: Sequence[str], work: Callable[[str], _Result]) -> dict[str, _Result]:
    """What `work` returns for each category; of several ranks each takes its share of them, and all get all.

    A category that fails does not stop the others: its error is printed, and it has no result.

    Raises:
        UserError: all failed.
    """
    results: dict[str, _Result] = {}
    own = list(names)[rank() :: ranks()]
    with alone():
        for name in own:
            try:
                results[name] = work(name)
            except Exception as error:
                if not isinstance(error, (UserError, OSError)) and not is_out_of_memory(error):
                    raise  # a bug
                print(f"{name} failed: {error}", file=sys.stderr, flush=True)
    everywhere = {name: result for part in gather_objects(results) for name, result in part.items()}
    if not everywhere:
        raise UserError(f"all {len(names)} categories failed; their messages stand above")
    return {name: everywhere[name] for name in names if name in everywhere}


def raise_if_failed(names: Sequence[str], results: dict[str, object]) -> None:
    """Raise a UserError that names the categories without results."""
    failed = [name for name in names if name not in results]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(names)} categories failed: {', '.join(failed)}; their messages stand above"
        )


def say(line: str) -> None:
    """Print a line, if this is the first rank."""
    if rank() == 0:
        print(line, flush=True)
