"""Time, memory and arithmetic of a piece of work, measured: for the benchmark."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from efficientad.system.devices import release_freed_memory

LONG_RUN = 3  # times the seconds of a measurement

_MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
_MATRIX_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MOST_RUNS = 1000


def time_side_by_side(works: list[Callable[[], object]], seconds: float, device: torch.device) -> list[float]:
    """Median seconds of each work; they take turns, so that whatever else the machine does slows all alike.

    Each runs once to warm up and then at least once more, until about `seconds` have passed for it. Where the
    first runs took much longer than that, they are taken as they are: a warm-up matters little to them.
    """
    times = [[_time(work, device)] for work in works]
    if sum(map(sum, times)) > LONG_RUN * seconds * len(works):
        return [statistics.median(took) for took in times]
    times = [[] for _ in works]
    end = time.perf_counter() + seconds * len(works)
    for _ in range(_MOST_RUNS):
        for work, took in zip(works, times, strict=True):
            took.append(_time(work, device))
        if time.perf_counter() > end:
            break
    return [statistics.median(took) for took in times]


def _time(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and matrix products of one run, a multiply-add being two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def matrix_rate(device: torch.device, precision: str, seconds: float) -> float:
    """FLOP/s of a large square matrix product in this precision: what the machine can be brought to do."""
    side = _MATRIX_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device).to(_MATRIX_DTYPES[precision]) for _ in range(2))
    (took,) = time_side_by_side([lambda: left @ right], seconds, device)
    return 2 * side**3 / took


def peak_memory_of(work: Callable[[], object], device: torch.device) -> float | None:
    """Most gigabytes in use during one run: of the GPU, or of this process; None where the system does not tell."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        release_freed_memory()
        clear.write_text("5")  # forgets the peak so far
    except OSError:
        work()
        return None
    work()
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e9
