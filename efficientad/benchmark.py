"""Measure training, inference and evaluation on this machine, beside the plain version of the same work."""

import argparse
from pathlib import Path

from efficientad.system import arguments
from efficientad.system.errors import UserError, run_command

TRAINING_BATCHES = (1, 4, 10, 16, 32)
INFERENCE_BATCHES = (1, 16)
LONGEST_PLAIN_STEP = 40.0  # seconds; a batch that would take longer is not tried in the plain version
PHOTO_SIZE = (1024, 768)  # of the images that are read and written
FEWEST_PHOTOS, MOST_PHOTOS = 16, 512
PROFILE_LINES = 20


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m efficientad.benchmark",
        description=__doc__,
        epilog="The plain version computes in fp32, without caches, as the paper writes the method down. Both take "
        "turns, so that their ratio holds on a busy machine, too.",
    )
    group = parser.add_argument_group("benchmark")
    group.add_argument(
        "-m",
        "--model_size",
        choices=arguments.MODEL_SIZES,
        default="small",
        help="of the networks (default: %(default)s)",
    )
    group.add_argument(
        "--seconds",
        type=arguments.positive_float,
        default=5.0,
        metavar="X",
        help="for each measurement; what takes no longer than that is run more often (default: %(default)s)",
    )
    group.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    group.add_argument("--profile", action="store_true", help="also print where the time of a step goes")
    arguments.add_machine_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    # Heavy imports after parsing: --help and a wrong flag answer at once.
    import json

    import torch
    from tqdm import tqdm

    from efficientad.detector.networks import EfficientAD
    from efficientad.measuring import matrix_rate
    from efficientad.system.devices import describe_device, keep_freed_memory, resolve_device, resolve_precision
    from efficientad.workloads import Workloads

    if args.json and not args.json.parent.is_dir():
        raise UserError(f"--json {args.json}: there is no folder {args.json.parent}")
    compute = resolve_device(args.device)
    keep_freed_memory(compute)
    precision = resolve_precision(args.precision, compute)
    facts = {
        "model_size": args.model_size,
        "machine": describe_device(compute, precision),
        "torch": str(torch.__version__),
    }
    print(f"EfficientAD {args.model_size}, {facts['machine']}, torch {facts['torch']}", flush=True)
    torch.manual_seed(0)
    loads = Workloads(EfficientAD(args.model_size), load_plain_version(), compute, precision, args.num_workers)
    tasks = [
        *((measure_training, size) for size in TRAINING_BATCHES),
        *((measure_inference, size) for size in INFERENCE_BATCHES),
        *((measure_student_inference, size) for size in INFERENCE_BATCHES),
        (measure_exports, 1),
        (measure_files, 16),
    ]
    rate = matrix_rate(compute, precision, args.seconds)
    print(f"Matrix products: {rate / 1e12:.3g} TFLOP/s", flush=True)
    rows = []
    for measure, size in tqdm(tasks, desc="Measuring", unit="task"):
        rows += measure(loads, size, args.seconds, rate)
    print(format_rows(rows))
    if args.profile:
        print(loads.profile(PROFILE_LINES))
    if args.json:
        args.json.write_text(json.dumps({**facts, "matrix_flops": rate, "rows": rows}, indent=2) + "\n")
        print(f"Wrote {args.json}")


def load_plain_version():
    """tests/plain.py, the method in its plainest form, as a module.

    Raises:
        UserError: it is not there; only a whole copy of the toolkit has it.
    """
    import importlib.util

    path = Path(__file__).resolve().parents[1] / "tests" / "plain.py"
    if not path.is_file():
        raise UserError(f"{path} does not exist; the benchmark compares with it, so run it in a whole copy")
    spec = importlib.util.spec_from_file_location("plain", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure_training(loads, batch_size: int, seconds: float, rate: float) -> list[dict]:
    """A training step without penalty, the teacher's plain answers kept; against two passes of both networks."""
    from efficientad.measuring import peak_memory_of, time_side_by_side

    step, plain_step = loads.training_steps(batch_size)
    memory = peak_memory_of(step, loads.device)
    steps = [step]
    if loads.plain_seconds_per_image * batch_size < LONGEST_PLAIN_STEP:
        steps.append(plain_step)
    took = time_side_by_side(steps, seconds, loads.device)
    if len(took) == 2:
        loads.plain_seconds_per_image = took[1] / batch_size
    ideal = batch_size * loads.training_flops / rate
    return [make_row(f"training, batch {batch_size}", "images/s", batch_size, took, ideal, memory)]


def measure_inference(loads, batch_size: int, seconds: float, rate: float) -> list[dict]:
    """From uint8 images on the host to maps and scores on the host, with the memory alone: train.py's default."""
    from efficientad.measuring import peak_memory_of, time_side_by_side

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
    """The same of the paper's detector, with student and autoencoder."""
    from efficientad.measuring import peak_memory_of, time_side_by_side

    run, plain_run = loads.inference_runs(batch_size, with_student=True)
    memory = peak_memory_of(run, loads.device)
    took = time_side_by_side([run, plain_run], seconds, loads.device)
    ideal = batch_size * loads.student_inference_flops / rate
    task = f"inference with student and autoencoder, batch {batch_size}"
    return [make_row(task, "images/s", batch_size, took, ideal, memory)]


def measure_exports(loads, batch_size: int, seconds: float, rate: float) -> list[dict]:
    """Latency of the exports whose packages are installed; they take turns with the plain version."""
    import tempfile

    from efficientad.measuring import time_side_by_side

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
    """Reading, writing and the whole of eval.py's work on JPEG photographs, and its share of the network's rate."""
    import tempfile

    from efficientad.measuring import time_side_by_side

    run, _ = loads.inference_runs(batch_size)
    (network,) = time_side_by_side([run], seconds, loads.device)
    count = round(min(MOST_PHOTOS, max(FEWEST_PHOTOS, seconds * batch_size / network)))
    count = -(-count // batch_size) * batch_size
    width, height = PHOTO_SIZE
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        works = loads.file_works(Path(folder), count, PHOTO_SIZE, batch_size)
        for task, work in works.items():
            (took,) = time_side_by_side([work], seconds, loads.device)
            rows.append(make_row(f"{task}, {width}x{height}", "images/s", count, [took], None, None))
            if task.startswith("eval"):
                rows[-1]["task"] += f", {rows[-1]['value'] * network / batch_size:.0%} of the network's rate"
    return rows


def make_row(
    task: str, unit: str, count: int, took: list[float], ideal: float | None, memory: float | None
) -> dict:
    """A line of the table.

    Args:
        count: images in one run.
        took: seconds of a run, and of the plain version's where that was measured.
        ideal: seconds that its arithmetic takes at the matrix rate.
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
    from tabulate import tabulate

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


if __name__ == "__main__":
    run_command(main, get_parser())
