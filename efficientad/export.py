"""Export a detector to a file for ONNX Runtime, OpenVINO or torch, if it answers as the original does there."""

import argparse
from contextlib import ExitStack
from pathlib import Path

from efficientad.system import arguments
from efficientad.system.errors import UserError, run_command
from efficientad.system.startup import import_torch

PRECISIONS = {"onnx": ("fp32", "fp16", "int8"), "openvino": ("fp32", "bf16", "int8"), "torch": ("fp32", "bf16")}
PARITY_IMAGES = 32
CALIBRATION_IMAGES = 48


def get_parser() -> argparse.ArgumentParser:
    offered = "; ".join(f"{name}: {', '.join(precisions)}" for name, precisions in PRECISIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m efficientad.export",
        description=__doc__,
        epilog="The file takes uint8 RGB images N x H x W x 3 and returns anomaly_map N x H x W and score N, both "
        "float32; threshold, size H W and versions are in its metadata. With a model of --resize fit it takes "
        "inspected, too: uint8 N x H x W, 0 where a pixel does not count. It is written only if it answers as "
        "torch does, within the bounds that are printed. eval.py and predict take it as --weights_dir.",
    )
    group = parser.add_argument_group("export")
    group.add_argument(
        "-w", "--weights_dir", type=arguments.named_path, required=True, metavar="DIR", help="folder of a training"
    )
    group.add_argument(
        "--format",
        choices=PRECISIONS,
        help="onnx: an .onnx file; openvino: an .xml file with its .bin; torch: a .pt2 program of torch.export "
        "(open one only from someone you trust). Needs pip install onnx onnxscript onnxruntime, and for openvino "
        "openvino, too (default: onnx)",
    )
    group.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16", "int8"),
        help=f"of the networks' arithmetic; {offered}. fp16 is for GPUs, bf16 for processors that have it. "
        "In an int8 file OpenVINO computes the rest in bf16 where the processor has it (default: fp32)",
    )
    group.add_argument(
        "--fastest",
        action="store_true",
        help="try all formats and precisions that can be computed here, or those of --format, --precision or the "
        "ending of --output, in turns with model.pt on this machine's CPU, and write the fastest file that answers "
        "nearly as model.pt does; none if model.pt is the fastest, unless a format was named",
    )
    arguments.add_output_file_argument(
        group,
        "the file (default: detector.onnx, .xml or .pt2 in the training's folder); with --fastest the ending may "
        "be left out",
    )
    group.add_argument("--overwrite", action="store_true", help="replace an existing file (default: refuse)")
    group = parser.add_argument_group("check")
    group.add_argument(
        "--images",
        type=arguments.named_path,
        nargs="+",
        default=[],
        metavar="PATH",
        help=f"folders or tar files of good images: up to {PARITY_IMAGES} to compare with torch on, up to "
        f"{CALIBRATION_IMAGES} others to calibrate int8 with (default: the training's own)",
    )
    arguments.add_max_megapixels_argument(group)
    arguments.add_workers_argument(group)
    arguments.add_dataset_arguments(
        parser,
        None,
        "for --fastest: layout of the data set on whose test images no more than 0.3 points of AUROC may be lost "
        "(default: the training's own data set)",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    # Heavy imports after parsing: --help and a wrong flag answer at once.
    import_torch()
    from efficientad.data.formats import limit_megapixels

    limit_megapixels(args.max_megapixels)
    if args.fastest:
        export_fastest(args)
    elif args.dataset:
        raise UserError("--dataset is for --fastest; name images to compare on with --images")
    else:
        export(args)


def export(args: argparse.Namespace) -> None:
    """Write the format that was asked for."""
    import torch

    from efficientad.benchmarking.fastest import measure_speed
    from efficientad.detector.checkpoint import load_model
    from efficientad.inference import export_check, exporting
    from efficientad.inference.detectors import open_detector
    from efficientad.inference.export_files import unfinished_file
    from efficientad.inference.exported import load_exported
    from efficientad.inference.metadata import SUFFIXES

    name, precision = args.format or "onnx", args.precision or "fp32"
    if precision not in PRECISIONS[name]:
        raise UserError(
            f"--format {name} has no --precision {precision}; choose from {', '.join(PRECISIONS[name])}"
        )
    output = args.output or args.weights_dir / f"detector{SUFFIXES[name]}"
    with unfinished_file(output, SUFFIXES[name], args.overwrite) as part:
        model = load_model(args.weights_dir, torch.device("cpu"))
        images = read_images(args, model.view, precision == "int8")
        print(f"Exporting {args.weights_dir} ({model.model_size}) as {name} in {precision}", flush=True)
        metadata = exporting.describe(model, precision)
        calibration = [metadata.inputs(*export_check.stack([image])) for image in images.to_calibrate]
        exporting.write_export(name, model, metadata, part, calibration)
        found = export_check.compare_files(model, part, images.to_compare, metadata.threshold)
        print(found.format(precision, metadata.threshold))
        if not found.keeps(export_check.BOUNDS[precision]):
            raise UserError(
                f"{output} is not written: it would differ too much from torch; take another --precision"
            )
        reference, exported = open_detector(args.weights_dir, "cpu"), load_exported(part, "cpu", "auto")
        speed = measure_speed(reference, exported, images.to_compare[:1], seconds=1.0)
    print(f"Wrote {output}; predict and eval.py take it as --weights_dir {output}")
    print(speed.format())


def export_fastest(args: argparse.Namespace) -> None:
    """Try what can be computed here, and write the fastest file."""
    import torch

    from efficientad.benchmarking import fastest
    from efficientad.data.datasets import open_dataset
    from efficientad.detector.checkpoint import load_model
    from efficientad.inference.export_files import unfinished_file
    from efficientad.inference.metadata import SUFFIXES

    candidates = choose_candidates(args)
    dataset = None
    if args.dataset:
        dataset = open_dataset(args.dataset, arguments.dataset_path(args), args.subdataset)
    samples = fastest.find_labelled_images(dataset, args.weights_dir)
    outputs = {name: name_output(args, SUFFIXES[name]) for name, _ in candidates}
    with ExitStack() as stack:
        parts = {
            name: stack.enter_context(unfinished_file(output, SUFFIXES[name], args.overwrite))
            for name, output in outputs.items()
        }
        view = load_model(args.weights_dir, torch.device("cpu")).view
        images = read_images(args, view, any(precision == "int8" for _, precision in candidates))
        trials = fastest.Trials(args.weights_dir, images, samples, args.num_workers)
        for name, precision in candidates:
            print(f"Trying {name} in {precision}", flush=True)
            folder = parts[name].parent / precision
            folder.mkdir()
            trials.add(name, precision, folder / parts[name].name)
        best = trials.fastest()
        print(f"\n{trials.format()}\n")
        was_named = args.format or (args.output and args.output.suffix in SUFFIXES.values())
        if best.speed.factor < 1 and not was_named:
            print("Nothing is written: model.pt is the fastest here; for a file nevertheless name a --format")
            return
        for file in list(best.path.parent.iterdir()):
            file.replace(parts[best.format].with_name(file.name))
    output = outputs[best.format]
    print(f"Wrote {output} ({best.precision}); predict and eval.py take it as --weights_dir {output}")
    print(best.speed.format())


def choose_candidates(args: argparse.Namespace) -> list[tuple[str, str]]:
    """The formats and precisions to try.

    Raises:
        UserError: the flags leave none.
    """
    import torch

    from efficientad.inference.metadata import SUFFIXES
    from efficientad.system.devices import resolve_precision

    named = {suffix: name for name, suffix in SUFFIXES.items()}.get(args.output.suffix) if args.output else None
    has_bf16 = resolve_precision("auto", torch.device("cpu")) == "bf16"
    precisions = [args.precision] if args.precision else ["fp32", "int8", *(["bf16"] if has_bf16 else [])]
    found = [
        (name, precision)
        for name in PRECISIONS
        for precision in precisions
        if precision in PRECISIONS[name] and {args.format, named} <= {name, None}
    ]
    if not found:
        raise UserError("no format fits --format, --precision and the ending of --output; leave one of them out")
    return found


def name_output(args: argparse.Namespace, suffix: str) -> Path:
    """The file of a format that --fastest may write."""
    output = args.output or args.weights_dir / "detector"
    return output if output.suffix == suffix else output.with_name(output.name + suffix)


def read_images(args: argparse.Namespace, view, calibrates: bool):
    """The images to compare on, and to calibrate int8 with: export_check.CheckImages."""
    from efficientad.inference import export_check

    stored = export_check.find_good_images(args.images, args.weights_dir)
    return export_check.read_images(
        stored, PARITY_IMAGES, CALIBRATION_IMAGES if calibrates else 0, view, args.num_workers
    )


if __name__ == "__main__":
    run_command(main, get_parser())
