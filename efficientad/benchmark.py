"""Measure training, inference, exports and evaluation on this machine, against a plain version of the same work."""

import argparse

from efficientad.system import arguments
from efficientad.system.errors import UserError, run_command
from efficientad.system.startup import import_torch

PROFILE_LINES = 20


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m efficientad.benchmark",
        description=__doc__,
        epilog="The plain version computes in fp32, without caches, as the paper describes the method. Both take "
        "turns, so that their ratio holds on a busy machine, too. Training is measured without a penalty, exports "
        'where their packages are installed. "of matrix rate" is the share of the FLOP/s of matrix products.',
    )
    group = parser.add_argument_group("benchmark")
    arguments.add_model_size_argument(group, "of the networks (default: %(default)s)")
    group.add_argument(
        "--seconds",
        type=arguments.positive_float,
        default=5.0,
        metavar="X",
        help="for each measurement; more is steadier. Work that takes more than three times as long runs once "
        "(default: %(default)s)",
    )
    group.add_argument("--json", type=arguments.named_path, metavar="FILE", help="also write the table as JSON")
    group.add_argument(
        "--profile", action="store_true", help="also print the operations that take most of the time"
    )
    arguments.add_machine_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    # Heavy imports after parsing: --help and a wrong flag answer at once.
    import json

    import_torch()
    import torch

    from efficientad.benchmarking import measuring
    from efficientad.benchmarking.workloads import Workloads
    from efficientad.detector.model import EfficientAD
    from efficientad.system.devices import describe_device, keep_freed_memory, resolve_device, resolve_precision
    from efficientad.system.progress_bars import progress_bar

    if args.json and not args.json.parent.is_dir():
        raise UserError(f"--json {args.json}: there is no folder {args.json.parent}")
    compute = resolve_device(args.device)
    if compute.type == "mps":
        raise UserError("--device mps: only CPUs and CUDA GPUs can be measured")
    keep_freed_memory(compute)
    precision = resolve_precision(args.precision, compute)
    facts = {
        "model_size": args.model_size,
        "machine": describe_device(compute, precision),
        "torch": str(torch.__version__),
    }
    print(f"EfficientAD {args.model_size}, {facts['machine']}, torch {facts['torch']}", flush=True)
    torch.manual_seed(0)
    loads = Workloads(EfficientAD(args.model_size), compute, precision, args.num_workers)
    rate = measuring.matrix_rate(compute, precision, args.seconds)
    print(f"Matrix products: {rate / 1e12:.3g} TFLOP/s", flush=True)
    rows = []
    for measure, size in progress_bar(measuring.list_tasks(), desc="Measuring", unit="task"):
        rows += measure(loads, size, args.seconds, rate)
    print(measuring.format_rows(rows))
    if args.profile:
        print(loads.profile(PROFILE_LINES))
    if args.json:
        args.json.write_text(json.dumps({**facts, "matrix_flops": rate, "rows": rows}, indent=2) + "\n")
        print(f"Wrote {args.json}")


if __name__ == "__main__":
    run_command(main, get_parser())
