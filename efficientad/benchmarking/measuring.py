"""The measurements: time side by side, peak memory, operations, and the rows of the table."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from efficientad.detector.fused_pooling import compiled_pooling
from efficientad.system.devices import release_freed_memory

LONG_RUN = 3  # times the seconds of a measurement
_MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
_MATRIX_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MOST_RUNS = 1000


def time_side_by_side(works: list[Callable[[], object]], seconds: float, device: torch.device) -> list[float]:
    """Median seconds of each work; they take turns, so that other load on the machine slows all alike.

    Each runs once to warm up and then at least once more, until about `seconds` have passed for it. First runs
    that took much longer than that count themselves: a warm-up matters little to them.
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
    """Floating-point operations in the convolutions and matrix products of one run; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def matrix_rate(device: torch.device, precision: str, seconds: float) -> float:
    """FLOP/s of a large square matrix product in this precision: what the machine can reach."""
    side = _MATRIX_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device).to(_MATRIX_DTYPES[precision]) for _ in range(2))
    (took,) = time_side_by_side([lambda: left @ right], seconds, device)
    return 2 * side**3 / took


def peak_memory_of(work: Callable[[], object], device: torch.device) -> float | None:
    """Peak memory of one run in gigabytes, of the GPU or of this process; None if the system does not report it."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        release_freed_memory()
        clear.write_text("5")  # resets the peak
    except OSError:
        work()
        return None
    work()
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e9


TRAINING_BATCHES = (1, 4, 10, 16, 32)
INFERENCE_BATCHES = (1, 16)
SIDE = 256  # of images, to which larger ones are compared
LARGE_SIDES, LARGE_TRAINING_SIDE = (512, 1024, 2048), 1024
LONGEST_PLAIN_STEP = 40.0  # seconds; longer ones are not measured
PHOTO_SIZE = (1024, 768)  # of the images read and written
FEWEST_PHOTOS, MOST_PHOTOS = 16, 512
READ_SIZES = ((1024, 1024), (4000, 3000))  # of images that are only read
READ_PIXELS = 2**25  # of the copies of one such image


def list_tasks() -> list[tuple[Callable[..., list[dict]], int | tuple[int, int]]]:
    """The measurements: functions of (workloads, size, seconds, matrix rate); sizes are of a batch or an image."""
    return [
        *((measure_training, size) for size in TRAINING_BATCHES),
        *((measure_inference, size) for size in INFERENCE_BATCHES),
        *((measure_student_inference, size) for size in INFERENCE_BATCHES),
        *((measure_large_images, side) for side in LARGE_SIDES),
        (measure_large_training, LARGE_TRAINING_SIDE),
        (measure_exports, 1),
        (measure_files, 16),
        *((measure_reading, size) for size in READ_SIZES),
    ]


def measure_training(loads, batch_size: int, seconds: float, rate: float) -> list[dict]:
    """A training step without penalty and with cached teacher features; against two passes of both networks."""
    step, plain_step = loads.training_steps(batch_size)
    with compiled_pooling(loads.device):
        memory = peak_memory_of(step, loads.device)
    steps = [step]
    if loads.plain_seconds_per_image * batch_size < LONGEST_PLAIN_STEP:
        steps.append(plain_step)
    with compiled_pooling(loads.device):
        took = time_side_by_side(steps, seconds, loads.device)
    if len(took) == 2:
        loads.plain_seconds_per_image = took[1] / batch_size
    ideal = batch_size * loads.training_flops / rate
    return [make_row(f"training, batch {batch_size}", "images/s", batch_size, took, ideal, memory)]


def measure_inference(loads, batch_size: int, seconds: float, rate: float) -> list[dict]:
    """From uint8 images on the host to maps and scores on the host, with a memory alone: train.py's default."""
    run, plain_run = loads.inference_runs(batch_size)
    memory = peak_memory_of(run, loads.device)
    took = time_side_by_side([run, plain_run], seconds, loads.device)
    ideal = batch_size * loads.inference_flops / rate
    rows = [make_row(f"inference, batch {batch_size}", "images/s", batch_size, took, ideal, memory)]
    if batch_size == 1:
        milliseconds = [1000 * value for value in took]
        rows.append({**rows[0], "task": "latency, batch 1", "unit": "ms"})
        rows[-1] |= {"value": milliseconds[0], "plain": milliseconds[1]}
    return rows


def measure_student_inference(loads, batch_size: int, seconds: float, rate: float) -> list[dict]:
    """The same for the paper's detector, with student and autoencoder."""
    run, plain_run = loads.inference_runs(batch_size, with_student=True)
    memory = peak_memory_of(run, loads.device)
    took = time_side_by_side([run, plain_run], seconds, loads.device)
    ideal = batch_size * loads.student_inference_flops / rate
    task = f"inference with student and autoencoder, batch {batch_size}"
    return [make_row(task, "images/s", batch_size, took, ideal, memory)]


def measure_large_images(loads, side: int, seconds: float, rate: float) -> list[dict]:
    """Inference of one image, side x side, in turns with one of 256 x 256."""
    run = loads.inference_at(side)
    memory = peak_memory_of(run, loads.device)
    took, usual = time_side_by_side([run, loads.inference_at(SIDE)], seconds, loads.device)
    each = took / usual * (SIDE / side) ** 2
    task = f"inference, {side}x{side}, {each:.2f}x the time per pixel of {SIDE}x{SIDE}"
    return [make_row(task, "images/s", 1, [took], None, memory)]


def measure_large_training(loads, side: int, seconds: float, rate: float) -> list[dict]:
    """A training step with one image, side x side, in turns with one of 256 x 256."""
    step = loads.training_step_at(side)
    with compiled_pooling(loads.device):
        step()  # which keeps the teacher's answer
        memory = peak_memory_of(step, loads.device)
        took, usual = time_side_by_side([step, loads.training_step_at(SIDE)], seconds, loads.device)
    task = f"training, batch 1, {side}x{side}, {took / usual:.2f}x the time of {SIDE}x{SIDE}"
    return [make_row(task, "images/s", 1, [took], None, memory)]


def measure_exports(loads, batch_size: int, seconds: float, rate: float) -> list[dict]:
    """Latency of the exports whose packages are installed, in turns with the plain version."""
    with tempfile.TemporaryDirectory() as folder:
        runs = loads.exported_runs(Path(folder), batch_size)
        _, plain_run = loads.inference_runs(batch_size)
        *times, plain = time_side_by_side([*runs.values(), plain_run], seconds, loads.device)
    rows = []
    for name, took in zip(runs, times, strict=True):
        row = make_row(f"latency, {name} on the CPU", "ms", batch_size, [took, plain], None, None)
        rows.append({**row, "value": 1000 * took, "plain": 1000 * plain})
    return rows


def measure_files(loads, batch_size: int, seconds: float, rate: float) -> list[dict]:
    """Reading, writing and all of eval.py's work on JPEG photographs, and its share of the network's rate."""
    run, _ = loads.inference_runs(batch_size)
    (network,) = time_side_by_side([run], seconds, loads.device)
    count = round(min(MOST_PHOTOS, max(FEWEST_PHOTOS, seconds * batch_size / network)))
    count = -(-count // batch_size) * batch_size
    width, height = PHOTO_SIZE
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        works = loads.file_works(Path(folder), count, PHOTO_SIZE, batch_size)
        for task, work in works.items():
            is_eval = task.startswith("eval")
            took, *network = time_side_by_side([work, run] if is_eval else [work], seconds, loads.device)
            rows.append(make_row(f"{task}, {width}x{height}", "images/s", count, [took], None, None))
            if is_eval:
                rows[-1]["task"] += f", {rows[-1]['value'] * network[0] / batch_size:.0%} of the network's rate"
    return rows


def measure_reading(loads, size: tuple[int, int], seconds: float, rate: float) -> list[dict]:
    """Decoding and resizing images of one size, width and height, from JPEG and PNG files."""
    count = max(2, READ_PIXELS // (size[0] * size[1]))
    with tempfile.TemporaryDirectory() as folder:
        works = loads.reading_works(Path(folder), count, size)
        times = time_side_by_side(list(works.values()), seconds, loads.device)
    tasks = [f"{task}, {size[0]}x{size[1]}" for task in works]
    return [make_row(task, "images/s", count, [took], None, None) for task, took in zip(tasks, times, strict=True)]


def make_row(
    task: str, unit: str, count: int, took: list[float], ideal: float | None, memory: float | None
) -> dict:
    """A row of the table.

    Args:
        count: images in one run.
        took: seconds of a run, and of the plain version's if it was measured.
        ideal: seconds of its arithmetic at the matrix rate.
        memory: gigabytes.
    """
    return {
        "task": task,
        "unit": unit,
        "value": count / took[0],
        "plain": count / took[1] if len(took) > 1 else None,
        "ratio": took[1] / took[0] if len(took) > 1 else None,
        "share_of_matrix_rate": ideal / took[0] if ideal else None,
        "peak_memory_gb": memory,
    }


def format_rows(rows: list[dict]) -> str:
    """The table for the terminal."""

    def cell(value: float | None, pattern: str) -> str:
        return "" if value is None else pattern.format(value)

    lines = [
        [
            row["task"],
            cell(row["value"], "{:.3g}"),
            row["unit"],
            cell(row["plain"], "{:.3g}"),
            cell(row["ratio"], "{:.2f}x"),
            cell(row["share_of_matrix_rate"], "{:.0%}"),
            cell(row["peak_memory_gb"], "{:.1f} GB"),
        ]
        for row in rows
    ]
    headers = ["", "here", "", "plain", "faster", "of matrix rate", "peak memory"]
    align = ("left", "right", "left", "right", "right", "right", "right")
    return tabulate(lines, headers=headers, colalign=align, disable_numparse=True)
