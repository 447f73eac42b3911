"""Export a detector to a file for ONNX Runtime, OpenVINO or torch, if it answers as the original does there."""

import argparse

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
        default="onnx",
        help="onnx: an .onnx file; openvino: an .xml file with its .bin; torch: a .pt2 program of torch.export "
        "(open one only from someone you trust). Needs pip install onnx onnxscript onnxruntime, and for openvino "
        "openvino, too (default: %(default)s)",
    )
    group.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16", "int8"),
        default="fp32",
        help=f"of the networks' arithmetic; {offered}. fp16 is for GPUs, bf16 for processors that have it "
        "(default: %(default)s)",
    )
    arguments.add_output_file_argument(
        group, "the file (default: detector.onnx, .xml or .pt2 in the training's folder)"
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
    return parser


def main(args: argparse.Namespace) -> None:
    # Heavy imports after parsing: --help and a wrong flag answer at once.
    import_torch()
    import torch

    from efficientad.data.formats import limit_megapixels
    from efficientad.detector.checkpoint import load_model
    from efficientad.inference import export_check, exporting
    from efficientad.inference.metadata import SUFFIXES

    limit_megapixels(args.max_megapixels)
    if args.precision not in PRECISIONS[args.format]:
        offered = ", ".join(PRECISIONS[args.format])
        raise UserError(f"--format {args.format} has no --precision {args.precision}; choose from {offered}")
    output = args.output or args.weights_dir / f"detector{SUFFIXES[args.format]}"
    with exporting.unfinished_file(output, SUFFIXES[args.format], args.overwrite) as part:
        model = load_model(args.weights_dir, torch.device("cpu"))
        stored = export_check.find_good_images(args.images, args.weights_dir)
        calibrated = CALIBRATION_IMAGES if args.precision == "int8" else 0
        images = export_check.read_images(stored, PARITY_IMAGES, calibrated, model.view, args.num_workers)
        print(f"Exporting {args.weights_dir} ({model.model_size}) as {args.format} in {args.precision}", flush=True)
        metadata = exporting.describe(model, args.precision)
        calibration = [metadata.inputs(*export_check.stack([image])) for image in images.to_calibrate]
        exporting.write_export(args.format, model, metadata, part, calibration)
        found = export_check.compare_files(model, part, images.to_compare, metadata.threshold)
        print(found.format(args.precision, metadata.threshold))
        if not found.keeps(export_check.BOUNDS[args.precision]):
            raise UserError(
                f"{output} is not written: it would differ too much from torch; take another --precision"
            )
    print(f"Wrote {output}; predict and eval.py take it as --weights_dir {output}")


if __name__ == "__main__":
    run_command(main, get_parser())
