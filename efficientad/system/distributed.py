"""Several processes with one GPU each, and their shares of the work."""

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

# A process may wait long for another one's data set; a dead one is noticed at once
_PATIENCE = timedelta(days=7)
_alone = False
_Item = TypeVar("_Item")


@contextmanager
def process_group(device_name: str) -> Iterator[None]:
    """For the time of the block, join the processes that torchrun started, if it did: see rank and ranks."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield
        return
    if device_name not in ("auto", "cpu", "cuda"):
        raise UserError(
            f"--device {device_name} is one GPU for {world} processes; take cuda, for one GPU each, or cpu"
        )
    on_gpu = device_name != "cpu" and torch.cuda.is_available()
    if on_gpu:
        place, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if place >= gpus:
            raise UserError(f"{gpus} GPUs are too few for process {place + 1} of this machine; start {gpus}")
        torch.cuda.set_device(place)
    # If Adam imports it later, its default arguments keep the group beyond its end; then Python may end before the
    # threads of the group, which sometimes aborts the process.
    importlib.import_module("torch.distributed.nn")
    with _naming_lost_ranks():
        # Small values that the host needs go through gloo: no waiting for the GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Within the block each process works as if it were the only one."""
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
    """The number of processes."""
    return dist.get_world_size() if _together() else 1


def own_part(count: int) -> slice:
    """This process's part of `count` items in a row, as even as possible; the last processes may get none."""
    size, more = divmod(count, ranks())
    start = rank() * size + min(rank(), more)
    return slice(start, start + size + (rank() < more))


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of all processes' `values`, in place."""
    if _together():
        with _naming_lost_ranks():
            dist.all_reduce(values)
    return values


def largest_over_ranks(value: int) -> int:
    """The largest of all processes' numbers."""
    if not _together():
        return value
    number = torch.tensor(value)
    with _naming_lost_ranks():
        dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def from_first_rank(values: Tensor) -> Tensor:
    """The first process's `values` on every process, in place."""
    if _together():
        with _naming_lost_ranks():
            dist.broadcast(values, src=0)
    return values


def gather_rows(values: Tensor) -> Tensor:
    """All processes' `values`, of one shape, stacked in the order of the ranks."""
    if not _together():
        return values[None]
    gathered = [torch.empty_like(values) for _ in range(ranks())]
    with _naming_lost_ranks():
        dist.all_gather(gathered, values)
    return torch.stack(gathered)


def gather_objects(item: _Item) -> list[_Item]:
    """All processes' `item`s, in the order of the ranks; anything that can be pickled."""
    if not _together():
        return [item]
    gathered: list = [None] * ranks()
    with _naming_lost_ranks():
        dist.all_gather_object(gathered, item)
    return gathered


def gather_shares(own: list[_Item]) -> list[_Item]:
    """All processes' items in the order of a whole list, of which each has done [rank() :: ranks()]."""
    shares = gather_objects(own)
    whole: list = [None] * sum(map(len, shares))
    for start, share in enumerate(shares):
        whole[start :: ranks()] = share
    return whole


def wait_for_ranks() -> None:
    """Return when every process has come this far."""
    largest_over_ranks(0)


@contextmanager
def _naming_lost_ranks() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise UserError(
            "another process of this run has ended; its own message, if it left one, is above"
        ) from error


_Result = TypeVar("_Result")


def each_dataset(
    names: Sequence[str], work: Callable[[str], _Result], report: Callable[[dict[str, _Result]], None]
) -> None:
    """Do the work of each data set, several processes a share of them each; the first one reports all results.

    One that fails does not stop the others: its error is printed, and it has no result.

    Args:
        report: called with the results by the data sets' names, in their order.

    Raises:
        UserError: all failed; on the first process also if some failed, after the report.
    """
    results: dict[str, _Result] = {}
    own = names[rank() :: ranks()]  # before each is alone
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
        raise UserError(f"all {len(names)} data sets failed; their messages are above")
    if rank() == 0:
        report({name: everywhere[name] for name in names if name in everywhere})
        failed = [name for name in names if name not in everywhere]
        if failed:
            raise UserError(
                f"{len(failed)} of {len(names)} data sets failed: {', '.join(failed)}; their messages are above"
            )


def say(line: str) -> None:
    """Print a line on the first process."""
    if rank() == 0:
        print(line, flush=True)
