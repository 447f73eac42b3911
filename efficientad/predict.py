"""Score new images, or watch a folder for them: decisions, anomaly maps, anomalous regions."""

import argparse

from efficientad.system import arguments
from efficientad.system.args_file import Parser
from efficientad.system.errors import UserError, run_command
from efficientad.system.startup import import_torch
from efficientad.training.options import NOTED

ANOMALOUS = 3  # the exit status; 1 is Python's own for a crash, 2 is that of an error


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m efficientad.predict",
        description=__doc__,
        noted=NOTED,
        leave_out=lambda settings: ["batch_size", "output_dir"],  # a training's mean something else
        epilog="scores.csv has the path, score, threshold, decision (1: anomalous), milliseconds, size and time of "
        "each image. Exit status: 0 all images are good, 3 some are anomalous, 2 an error (also if just one image "
        "cannot be read or its maps not be written; the others have their results), 130 interrupted; 1 is always a "
        "fault of the program. With --watch it is 0 after Ctrl-C or SIGTERM.",
    )
    group = parser.add_argument_group("model")
    group.add_argument(
        "-w",
        "--weights_dir",
        type=arguments.training_folder,
        required=True,
        metavar="PATH",
        help="folder of a training, or a file of efficientad.export",
    )
    arguments.add_threshold_argument(group)
    group = parser.add_argument_group("images")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "-i",
        "--input",
        type=arguments.name,
        nargs="+",
        metavar="PATH",
        help="folders (of any depth), image files, or quoted patterns such as 'lot/**/*.png'",
    )
    source.add_argument(
        "--watch",
        type=arguments.named_path,
        metavar="DIR",
        help="score images as they appear in this folder, at any depth, until stopped: once a file has not changed "
        "for half a second, and again when it changes, as a new line of scores.csv. (A file that is rewritten in "
        "place is noticed after 2 seconds, or later where there are so many files that looking at each takes "
        "long.) Needs an output folder of its own; after a restart its scores.csv continues",
    )
    arguments.add_scoring_batch_size_argument(group)
    arguments.add_max_megapixels_argument(group)
    arguments.add_machine_arguments(parser)
    group = parser.add_argument_group("output")
    arguments.add_output_dir_argument(group, "gets scores.csv, maps/ and regions", "predictions")
    group.add_argument(
        "-f",
        "--map_format",
        choices=("none", "tiff", "jpg", "overlay"),
        default="none",
        help="in maps/; tiff: float32 maps at each image's size; jpg: the image beside a heat map, green at the "
        "threshold, red far above it; overlay: the heat map on the image (default: %(default)s)",
    )
    group.add_argument(
        "--save_regions",
        action="store_true",
        help="write the connected pixels above the threshold, however few, as COCO annotations with score, box and "
        "mask: regions.json, or with --watch regions/<image>.json",
    )
    group.add_argument(
        "--report",
        action="store_true",
        help="write report.html, too: the images with their heat maps, the highest scores first, and a threshold "
        "to move, in one file of at most 30 MB, for which pictures become smaller or those of low scores are left "
        "out; not with --watch",
    )
    group.add_argument("--print", action="store_true", dest="print_each", help="print a line for each image")
    return parser


def main(args: argparse.Namespace) -> int:
    # Heavy imports after parsing: --help and a wrong flag answer at once.
    import_torch()
    from efficientad.data.formats import limit_megapixels
    from efficientad.inference import run

    limit_megapixels(args.max_megapixels)
    options = arguments.read_options(run.PredictOptions, args)
    if args.watch and args.report:
        raise UserError(
            "--report is a page of one batch: give the images with --input, or leave it out with --watch"
        )
    if args.watch:
        run.watch_folder(args.watch, options)
        return 0
    report = None
    if args.report:
        from efficientad.evaluation.batch_report import BatchReport

        report = BatchReport(arguments.command_line(get_parser(), args))
    return ANOMALOUS if run.score_inputs(args.input, options, report) else 0


if __name__ == "__main__":
    run_command(main, get_parser())
