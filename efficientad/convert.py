"""Make a training's folder of an EfficientAD that another tool has trained, for eval.py, predict and export."""

import argparse

from efficientad.system import arguments
from efficientad.system.errors import run_command
from efficientad.system.startup import import_torch


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m efficientad.convert",
        description=__doc__,
        epilog="Files with pickled networks are read without running anything in them. What is in the files is "
        "taken as it is; what is not, such as the threshold, is fitted on --images. A network that would answer "
        "otherwise here than there is refused.",
    )
    group = parser.add_argument_group("conversion")
    group.add_argument(
        "-i",
        "--input",
        type=arguments.named_path,
        required=True,
        metavar="PATH",
        help="a folder with teacher_final.pth, student_final.pth and autoencoder_final.pth (whole networks or "
        "state_dicts), perhaps also teacher_mean.pt, teacher_std.pt and quantiles.pt; or a .ckpt of anomalib",
    )
    group.add_argument(
        "--images",
        type=arguments.named_path,
        required=True,
        metavar="DIR",
        help="good images. If there are no statistics of the teacher, those of the training: a tenth, as that "
        "training has held it out, is for quantiles and threshold. Else images that it has not learned from",
    )
    group.add_argument(
        "-o", "--output", type=arguments.named_path, required=True, metavar="DIR", help="gets model.pt, args.json"
    )
    arguments.add_target_fpr_argument(group)
    group.add_argument("--overwrite", action="store_true", help="replace a model there (default: refuse)")
    arguments.add_max_megapixels_argument(group)
    arguments.add_machine_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    # Heavy imports after parsing: --help and a wrong flag answer at once.
    import_torch()
    from efficientad.data.formats import limit_megapixels
    from efficientad.training.converting import ConversionOptions, convert

    limit_megapixels(args.max_megapixels)
    model = convert(arguments.read_options(ConversionOptions, args))
    print(f"Wrote {model}; eval.py, predict and export take it as --weights_dir {args.output}")


if __name__ == "__main__":
    run_command(main, get_parser())
