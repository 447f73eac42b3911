"""Pretrain an EfficientAD teacher: a PDN that predicts the features of an ImageNet network (arXiv 2303.14535)."""

import argparse
from pathlib import Path

from efficientad.system import arguments
from efficientad.system.errors import UserError, run_command

PAPER_STEPS = 60000
STATISTICS_IMAGES = 10000
_MAY_DIFFER = ("resume", "overwrite", "output", "device", "precision", "num_workers", "cache_gb")  # when resuming


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m efficientad.pretrain",
        description=__doc__,
        epilog="Give the result to train.py with --weights. On several GPUs: torchrun --nproc_per_node=N -m "
        "efficientad.pretrain ...",
    )
    group = parser.add_argument_group("distillation")
    group.add_argument(
        "--images",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="folders (any depth) or tar files of natural images, best ImageNet's",
    )
    group.add_argument(
        "-m",
        "--model_size",
        choices=arguments.MODEL_SIZES,
        default="small",
        help="of the teacher (default: %(default)s)",
    )
    group.add_argument(
        "--backbone",
        default="wide_resnet101_2",
        metavar="NAME",
        help="a classification network of torchvision, timm:NAME for one of timm, or efficientnet_lite0, 1 or 2 "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--backbone_weights",
        type=Path,
        metavar="FILE",
        help="its weights, .safetensors or .pth (default: fetched once, or those of a package)",
    )
    group.add_argument(
        "--layers",
        nargs="+",
        metavar="NAME",
        help="modules of the backbone whose output is taken, NAME:input for what they are given (default: one at "
        "stride 8 and one at stride 16)",
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
        help="of the features to 384 channels: averages as in the paper, or principal components "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--init_weights", type=Path, metavar="FILE", help="teacher to start from (default: random weights)"
    )
    group.add_argument(
        "--solve_output",
        action="store_true",
        help="begin and end with the output layer solved by least squares, for short runs (default: no)",
    )
    group = parser.add_argument_group("training")
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
        help="time of the training, to which the schedule is fitted (default: no limit)",
    )
    group.add_argument(
        "-b",
        "--batch_size",
        type=arguments.positive_int,
        default=16,
        metavar="N",
        help="images per step and process (default: %(default)s)",
    )
    group.add_argument(
        "--lr",
        type=arguments.positive_float,
        default=1e-4,
        metavar="X",
        help="learning rate (default: %(default)s)",
    )
    group.add_argument(
        "--optimizer",
        choices=("adam", "muon"),
        default="adam",
        help="adam as in the paper; muon learns more in the same steps, with an --lr of 2e-3 to 6e-3 "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--weight_decay",
        type=arguments.non_negative_float,
        default=1e-5,
        metavar="X",
        help="0: off (default: %(default)s)",
    )
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
        help="show most images to the teacher up to X times darker, or sqrt(X) times brighter, and to the "
        "backbone as they are, for features that depend less on the light; 1: off, as in the paper "
        "(default: %(default)s)",
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
        help="images for the features' mean and deviation, at most (default: %(default)s)",
    )
    group.add_argument("--seed", type=arguments.seed, default=42, metavar="N", help="(default: %(default)s)")
    arguments.add_cache_argument(arguments.add_machine_arguments(parser), 8.0, "decoded images")
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="the best teacher, a state_dict in fp16; beside it FILE.csv (log) and FILE.state (to resume)",
    )
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue an interrupted run with the same flags")
    existing.add_argument("--overwrite", action="store_true", help="replace what is there (default: refuse)")
    return parser


def main(args: argparse.Namespace) -> None:
    from efficientad.system.distributed import process_group

    with process_group(args.device) as (rank, ranks):
        pretrain(args, rank, ranks)


def pretrain(args: argparse.Namespace, rank: int, ranks: int) -> None:
    """One process's part of the run.

    Args:
        rank, ranks: which of how many processes this is.

    Raises:
        UserError: flags or files that do not fit, and what the functions below raise.
    """
    import torch

    from efficientad.data.image_collections import ImageCache, find_stored_images
    from efficientad.data.transforms import to_square
    from efficientad.detector.initialization import start_teacher
    from efficientad.detector.networks import IMAGE_SIZE
    from efficientad.pretraining import backbones
    from efficientad.pretraining.batches import Batches, DistillationPlan, hold_out
    from efficientad.pretraining.loop import Distillation
    from efficientad.pretraining.targets import DistillationTarget
    from efficientad.system.devices import describe_device, keep_freed_memory, resolve_device, resolve_precision
    from efficientad.system.distributed import wait_for_ranks
    from efficientad.system.progress_bars import progress_bar
    from efficientad.system.torch_files import read_state

    _check_flags(args)
    compute = resolve_device(args.device)
    keep_freed_memory(compute)
    plan = DistillationPlan(
        steps=args.steps or (None if args.minutes else PAPER_STEPS),
        minutes=args.minutes,
        batch_size=args.batch_size,
        lr=args.lr,
        weight_decay=args.weight_decay,
        schedule=args.schedule or ("cosine" if args.minutes else "constant"),
        crop_scale=args.crop_scale,
        relight=args.relight,
        window=args.window,
        device=compute,
        precision=resolve_precision(args.precision, compute),
        seed=args.seed,
        workers=args.num_workers,
        optimizer=args.optimizer,
        rank=rank,
        ranks=ranks,
    )
    if plan.precision == "fp16":
        raise UserError("--precision fp16 is for train.py and eval.py; a distillation takes bf16 or fp32")
    stored = find_stored_images(args.images)
    settings = _settings(args, ranks, len(stored))
    state_file = args.output.with_name(f"{args.output.name}.state")
    state = read_state(state_file, "a pretraining", "pdn", settings) if args.resume else None
    torch.manual_seed(args.seed)
    pdn = start_teacher(args.model_size, args.init_weights)
    backbone = backbones.load_backbone(args.backbone, args.layers, args.backbone_weights)
    training, held_out = hold_out(len(stored), args.seed)
    if len(training) < ranks:
        raise UserError(f"{len(stored)} natural images are too few; give more with --images")
    if rank == 0:
        lengths = [f"{plan.steps} steps"] * bool(plan.steps) + [f"{plan.minutes} minutes"] * bool(plan.minutes)
        processes = f" on each of {ranks} processes" if ranks > 1 else ""
        print(f"Teacher {args.model_size} from {args.backbone} ({', '.join(backbone.layers)}), {args.projection}")
        print(f"{len(training)} natural images, {len(held_out)} more held out")
        print(f"At most {' or '.join(lengths)} of batch size {args.batch_size}{processes}")
        print(f"Using {describe_device(compute, plan.precision)}", flush=True)

    pdn = pdn.to(compute)
    target = DistillationTarget(backbone, args.projection, IMAGE_SIZE, args.backbone_size).to(compute)
    if plan.precision == "bf16" or compute.type == "cuda":  # elsewhere it gains nothing
        pdn, target = (module.to(memory_format=torch.channels_last) for module in (pdn, target))
    side = max(args.backbone_size, 2 * IMAGE_SIZE)
    images = ImageCache(stored, lambda image: to_square(image, side), 3 * side * side, args.cache_gb * 1e9)
    batches = Batches(images, training, plan, (args.backbone_size, IMAGE_SIZE))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    run = Distillation(pdn, target, batches, plan, args.output, settings)
    if state:
        run.resume(state)
        if rank == 0:
            print(f"Resuming after {run.step} steps, {run.seconds / 60:.1f} minutes", flush=True)
    else:
        if rank == 0:
            state_file.unlink(missing_ok=True)  # of a run that is not to be resumed
        seen = training[: max(args.statistics_images, ranks)][rank::ranks]
        bar = progress_bar(total=len(seen), desc="Statistics of the features", unit="image", disable=rank > 0)
        with bar:
            target.fit((large for large, _ in batches.whole(seen, bar.update)), plan.precision)
    pairs = [(small, target(large, plan.precision).half()) for large, small in batches.whole(held_out[rank::ranks])]
    best = run.run(pairs, args.solve_output)
    wait_for_ranks()
    if rank == 0:
        run.state_file.unlink(missing_ok=True)
        print(
            f"Wrote {args.output}: explained variance {best:.4f} of held-out images; use it with: "
            f"python train.py --model_size {args.model_size} --weights {args.output} ..."
        )


def _settings(args: argparse.Namespace, ranks: int, found: int) -> dict[str, str]:
    """What must be the same for --resume; of the backbone's weights it is the content, wherever the file lies."""
    from efficientad.pretraining.backbone_weights import file_digest

    settings = {key: str(value) for key, value in vars(args).items() if key not in _MAY_DIFFER}
    if args.backbone_weights:
        settings["backbone_weights"] = f"of sha256 {file_digest(args.backbone_weights)}"
    return settings | {"processes": str(ranks), "images found": str(found)}


def _check_flags(args: argparse.Namespace) -> None:
    if args.output.is_dir():
        raise UserError(f"{args.output} is a folder; name a file with --output")
    state = args.output.with_name(f"{args.output.name}.state")
    if args.resume and not state.exists():
        raise UserError(f"{state} does not exist, so there is nothing to resume; leave out --resume")
    for file in (args.output, state):
        if file.exists() and not (args.resume or args.overwrite):
            raise UserError(
                f"{file} exists; continue that run with --resume, replace it with --overwrite, or "
                "choose another --output"
            )
    if args.window < 256 and (args.window < 37 or args.window % 4 != 1):
        raise UserError(
            f"--window {args.window}: a window of whole patches is 37, 41, 45, ... pixels wide; "
            f"take {max(37, args.window // 4 * 4 + 1)}"
        )


if __name__ == "__main__":
    run_command(main, get_parser())
