"""Export a detector to a file for ONNX Runtime, OpenVINO or torch, if it answers as the original does there."""

import argparse

from efficientad.inference import export_options
from efficientad.inference.export_options import CALIBRATION_IMAGES, PARITY_IMAGES, PRECISIONS, ExportOptions
from efficientad.system import arguments, dataset_arguments
from efficientad.system.errors import UserError, run_command
from efficientad.system.startup import import_torch


def get_parser() -> argparse.ArgumentParser:
    offered = "; ".join(f"{name}: {', '.join(precisions)}" for name, precisions in PRECISIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m efficientad.export",
        description=__doc__,
        epilog="The file takes uint8 RGB images N x H x W x 3 and returns anomaly_map N x H x W and score N, both "
        "float32; --input and --outputs change that. Threshold, size H W and versions are in its metadata. With a "
        "model of --resize fit it takes "
        "inspected, too: uint8 N x H x W, 0 where a pixel does not count. It is written only if it answers as "
        "torch does, within the bounds that are printed. eval.py and predict take it as --weights_dir.",
    )
    group = parser.add_argument_group("export")
    group.add_argument(
        "-w",
        "--weights_dir",
        type=arguments.training_folder,
        required=True,
        metavar="DIR",
        help="folder of a training",
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
    _add_interface_arguments(parser)
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
    dataset_arguments.add_dataset_arguments(
        parser,
        None,
        "for --fastest: layout of the data set on whose test images no more than 0.3 points of AUROC may be lost "
        "(default: the training's own data set)",
    )
    return parser


def _add_interface_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the file takes and gives")
    group.add_argument(
        "--input",
        choices=(export_options.MODEL_SIZE, export_options.ANY_SIZE),
        default=export_options.MODEL_SIZE,
        help="model: images of the model's size; any: of any size, which an ONNX file resizes as the toolkit does; "
        "not with --roi, --ignore or --resize fit of train.py (default: %(default)s)",
    )
    group.add_argument(
        "--outputs",
        choices=(export_options.SCORES, export_options.ALL),
        default=export_options.SCORES,
        help="scores: anomaly_map and score; all: also pred_score (N, from 0 to 1, 0.5 at the threshold), "
        "pred_label (N, whether the score is above it) and pred_mask (N x H x W, whether the map is) "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--threshold",
        type=arguments.threshold,
        default="auto",
        metavar="X",
        help="what --outputs all and the metadata go by; eval.py and predict have a flag of their own. auto: the "
        "model's own, calibrated by train.py (default: %(default)s)",
    )
    group.add_argument(
        "--opset",
        type=int,
        choices=range(export_options.LOWEST_OPSET, export_options.HIGHEST_OPSET + 1),
        metavar="N",
        help=f"of an ONNX file, {export_options.LOWEST_OPSET} to {export_options.HIGHEST_OPSET} (default: the "
        "lowest that can express it, for old runtimes)",
    )


def main(args: argparse.Namespace) -> None:
    # Heavy imports after parsing: --help and a wrong flag answer at once.
    import_torch()
    from efficientad.benchmarking import export_run
    from efficientad.data.datasets import open_dataset
    from efficientad.data.formats import limit_megapixels

    limit_megapixels(args.max_megapixels)
    options = ExportOptions(
        args.input == export_options.ANY_SIZE, args.outputs == export_options.ALL, args.threshold, args.opset
    )
    plan = arguments.read_options(export_run.ExportPlan, args, options=options)
    dataset = None
    if args.dataset:
        if not args.fastest:
            raise UserError("--dataset is for --fastest; name images to compare on with --images")
        dataset = open_dataset(args.dataset, dataset_arguments.dataset_path(args), args.subdataset)
    if args.fastest:
        export_run.export_fastest(plan, dataset)
    else:
        export_run.export(plan)


if __name__ == "__main__":
    run_command(main, get_parser())
