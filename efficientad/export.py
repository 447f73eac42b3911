"""Export a trained detector to one file for ONNX Runtime, OpenVINO or torch, and check that it answers the same."""

import argparse
from pathlib import Path

from efficientad.system import arguments
from efficientad.system.errors import UserError, run_command

PRECISIONS = {"onnx": ("fp32", "fp16", "int8"), "openvino": ("fp32", "bf16", "int8"), "torch": ("fp32", "bf16")}
PARITY_IMAGES = 32
CALIBRATION_IMAGES = 48
BATCH_SIZE = 5


def get_parser() -> argparse.ArgumentParser:
    offered = "; ".join(f"{name}: {', '.join(precisions)}" for name, precisions in PRECISIONS.items())
    parser = argparse.ArgumentParser(prog="python -m efficientad.export", description=__doc__)
    group = parser.add_argument_group("export")
    group.add_argument(
        "-w", "--weights_dir", type=Path, required=True, metavar="DIR", help="folder of the training"
    )
    group.add_argument(
        "--format",
        choices=PRECISIONS,
        default="onnx",
        help="onnx: an .onnx file; openvino: an .xml file with its .bin; torch: a .pt2 program of torch.export "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16", "int8"),
        default="fp32",
        help=f"of the networks' arithmetic; {offered} (default: %(default)s)",
    )
    group.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="the file (default: detector.onnx, .xml or .pt2 in the training's folder)",
    )
    group.add_argument("--overwrite", action="store_true", help="replace the file if it is there (default: refuse)")
    group = parser.add_argument_group("check")
    group.add_argument(
        "--images",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="folders or tar files of good images, to compare with torch on and to calibrate int8 with "
        f"(default: the training's own); {PARITY_IMAGES} and {CALIBRATION_IMAGES} of them are taken",
    )
    arguments.add_workers_argument(group)
    return parser


def main(args: argparse.Namespace) -> None:
    # Heavy imports after parsing: --help and a wrong flag answer at once.
    import tempfile

    import torch

    from efficientad.detector.checkpoint import load_model
    from efficientad.inference import export_check, exporting
    from efficientad.inference.detectors import SUFFIXES, TorchDetector, load_exported

    if args.precision not in PRECISIONS[args.format]:
        offered = ", ".join(PRECISIONS[args.format])
        raise UserError(f"--format {args.format} has no --precision {args.precision}; choose from {offered}")
    output = args.output or args.weights_dir / f"detector{SUFFIXES[args.format]}"
    check_output(output, SUFFIXES[args.format], args.overwrite)
    cpu = torch.device("cpu")
    model = load_model(args.weights_dir, cpu)
    check, calibration = read_images(args, model.image_size)
    metadata = describe(model, args.precision)
    print(f"Exporting {args.weights_dir} ({model.model_size}) as {args.format} in {args.precision}", flush=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.unfinished-") as folder:
        part = Path(folder, output.name)
        images = calibration.permute(0, 2, 3, 1).contiguous().numpy()
        exporting.write_export(args.format, model, metadata, part, images)
        exported = load_exported(part, "cpu", "auto")
        found = export_check.compare(
            TorchDetector(model, cpu, "fp32"), exported, check, BATCH_SIZE, metadata.threshold
        )
        print(found.format(args.precision, metadata.threshold))
        if not found.keeps(export_check.BOUNDS[args.precision]):
            raise UserError(
                f"{output} is not written: it would differ too much from torch; take another --precision"
            )
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.suffix == output.suffix):
            file.replace(output.with_name(file.name))  # an .xml appears after its .bin
    print(f"Wrote {output}; predict and eval.py take it as --weights_dir {output}")


def check_output(output: Path, suffix: str, overwrite: bool) -> None:
    """Refuse a file that cannot or must not be written."""
    if output.suffix != suffix:
        raise UserError(f"--output {output}: its name must end in {suffix}")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}")
    for file in (output, output.with_suffix(".bin")) if suffix == ".xml" else (output,):
        if file.exists() and not overwrite:
            raise UserError(f"{file} is there already; add --overwrite, or choose another --output")


def read_images(args: argparse.Namespace, size: int) -> tuple:
    """Images to compare on and others to calibrate with, uint8 N x 3 x size x size; with few images the same."""
    import torch

    from efficientad.data.images import UnreadableImageError, raise_if_unreadable
    from efficientad.data.transforms import to_square
    from efficientad.system.parallel import parallel_map
    from efficientad.system.progress_bars import progress_bar

    stored = find_images(args)
    check = spread(stored, PARITY_IMAGES)
    kept = set(check)
    calibration = spread([image for image in stored if image not in kept] or stored, CALIBRATION_IMAGES)

    def read(image):
        try:
            return to_square(image.read(), size)
        except UnreadableImageError as error:
            return str(error)

    wanted = [*check, *(calibration if args.precision == "int8" else calibration[:1])]
    pixels = list(
        progress_bar(parallel_map(read, wanted, args.num_workers), "Reading images", len(wanted), unit="image")
    )
    raise_if_unreadable([problem for problem in pixels if isinstance(problem, str)])
    return torch.stack(pixels[: len(check)]), torch.stack(pixels[len(check) :])


def find_images(args: argparse.Namespace) -> list:
    """The images given, or those of the training.

    Raises:
        UserError: none were given, and those of the training are no longer there.
    """
    from efficientad.data.datasets import find_training_images, open_dataset
    from efficientad.data.image_collections import StoredImage, find_stored_images
    from efficientad.data.images import were_skipped
    from efficientad.detector.checkpoint import read_training

    if args.images:
        return find_stored_images(args.images)
    training = read_training(args.weights_dir)
    try:
        path = Path(training[arguments.path_argument(training["dataset"])])
        dataset = open_dataset(training["dataset"], path, training["subdataset"])
        split = find_training_images(dataset, training["seed"])
        skipped = were_skipped(args.weights_dir, [*split.train, *split.validation])
        split = find_training_images(dataset, training["seed"], leave_out=skipped)
    except (KeyError, UserError):
        raise UserError(
            "the images of the training are no longer where they were; name a folder of good images with --images"
        ) from None
    return [StoredImage(path) for path in (*split.validation, *split.train)]


def spread(items: list, count: int) -> list:
    """At most `count` of the items, evenly over all."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def describe(model, precision: str):
    """The metadata of an export."""
    import torch

    import efficientad
    from efficientad.inference.detectors import Metadata

    versions = {"efficientad": efficientad.__version__, "torch": str(torch.__version__)}
    return Metadata(model.model_size, model.image_size, precision, model.calibration, versions)


if __name__ == "__main__":
    run_command(main, get_parser())
