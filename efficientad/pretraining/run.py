"""The pretraining of one teacher, from natural images to its file; an interrupted one is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict

import torch
from torch import nn

from efficientad.data.image_collections import ImageCache, ReadableImage, find_stored_images
from efficientad.data.transforms import to_square
from efficientad.data.views import SIDE
from efficientad.detector.fused_pooling import compiled_pooling
from efficientad.detector.initialization import start_teacher
from efficientad.pretraining import backbones
from efficientad.pretraining.backbone_weights import file_digest
from efficientad.pretraining.batches import Batches, DistillationPlan, hold_out
from efficientad.pretraining.loop import Distillation
from efficientad.pretraining.options import MAY_DIFFER, PAPER_STEPS, PretrainingOptions
from efficientad.pretraining.targets import DistillationTarget
from efficientad.system.devices import describe_device, keep_freed_memory, resolve_device, resolve_precision
from efficientad.system.distributed import rank, ranks, say, wait_for_ranks
from efficientad.system.errors import UserError
from efficientad.system.progress_bars import progress_bar
from efficientad.system.random_streams import seed_torch
from efficientad.system.runs import lock_output
from efficientad.system.torch_files import read_state


def pretrain_teacher(options: PretrainingOptions) -> None:
    """Find, check and load everything, distill, and write the best teacher to options.output.

    With several processes all must call it; the first one writes and prints.

    Raises:
        UserError: flags or files that do not fit, a file in the way, or answers that are not finite.
        Interrupted: by a signal during the training; its state is saved.
    """
    with lock_output(options.output, "--output") if rank() == 0 else nullcontext():
        wait_for_ranks()  # the first one has the lock, or has failed alone
        distill_teacher(options)


def distill_teacher(options: PretrainingOptions) -> None:
    """pretrain_teacher, while no other run writes to its output."""
    check_options(options)
    plan = make_plan(options)
    keep_freed_memory(plan.device)
    stored = find_stored_images(options.images)
    settings = collect_settings(options, len(stored))
    state = read_state(options.state_file, "a pretraining", "pdn", settings) if options.resume else None
    pdn, target = load_networks(options, plan)
    training, held_out = hold_out(len(stored), plan.seed)
    if len(training) < ranks():
        raise UserError(f"{len(stored)} natural images are too few; give more with --images")
    report_start(options, plan, target, len(training), len(held_out))
    batches = load_batches(stored, training, options, plan)

    options.output.parent.mkdir(parents=True, exist_ok=True)
    run = Distillation(pdn, target, batches, plan, options.output, options.state_file, settings)
    if state:
        run.resume(state)
        say(f"Resuming after {run.step} steps, {run.seconds / 60:.1f} minutes")
    else:
        if rank() == 0:
            options.state_file.unlink(missing_ok=True)  # of a run that is not resumed
        fit_target(target, batches, training[: max(options.statistics_images, ranks())], plan)
    own = held_out[rank() :: ranks()]
    pairs = [(small, target(large, plan.precision).half()) for large, small in batches.whole(own)]
    with compiled_pooling(plan.device):
        best = run.run(pairs, options.solve_output)
    wait_for_ranks()
    if rank() == 0:
        options.state_file.unlink(missing_ok=True)
    say(
        f"Wrote {options.output}: explained variance {best:.4f} of held-out images; use it with: "
        f"python train.py --model_size {options.model_size} --weights {options.output} ..."
    )


def check_options(options: PretrainingOptions) -> None:
    """Raise a UserError for flags that do not fit each other or the files that are there."""
    if options.output.is_dir():
        raise UserError(f"{options.output} is a folder; name a file with --output")
    if options.resume and not options.state_file.exists():
        raise UserError(f"{options.state_file} does not exist, so there is nothing to resume; leave out --resume")
    for file in (options.output, options.state_file):
        if file.exists() and not (options.resume or options.overwrite):
            raise UserError(
                f"{file} exists; continue that run with --resume, replace it with --overwrite, or "
                "choose another --output"
            )
    window = options.window
    if window < SIDE and (window < 37 or window % 4 != 1):
        raise UserError(
            f"--window {window}: a window of whole patches is 37, 41, 45, ... pixels wide; "
            f"take {max(37, window // 4 * 4 + 1)}"
        )


def make_plan(options: PretrainingOptions) -> DistillationPlan:
    """The plan that follows from the options on this machine.

    Raises:
        UserError: a device or precision that is not available.
    """
    device = resolve_device(options.device)
    precision = resolve_precision(options.precision, device)
    if device.type == "mps":
        raise UserError("--device mps: a distillation needs float64, which Apple's GPUs lack; use --device cpu")
    if precision == "fp16":
        raise UserError("--precision fp16 is for train.py and eval.py; a distillation takes bf16 or fp32")
    return DistillationPlan(
        steps=options.steps or (None if options.minutes else PAPER_STEPS),
        minutes=options.minutes,
        batch_size=options.batch_size,
        lr=options.lr,
        weight_decay=options.weight_decay,
        schedule=options.schedule or ("cosine" if options.minutes else "constant"),
        crop_scale=options.crop_scale,
        relight=options.relight,
        window=options.window,
        device=device,
        precision=precision,
        seed=options.seed,
        workers=options.num_workers,
        optimizer=options.optimizer,
    )


def collect_settings(options: PretrainingOptions, found: int) -> dict[str, str]:
    """The settings that must be the same for --resume; backbone weights are compared by their content.

    Args:
        found: how many images there are.
    """
    settings = {key: str(value) for key, value in asdict(options).items() if key not in MAY_DIFFER}
    if options.backbone_weights:
        settings["backbone_weights"] = f"of sha256 {file_digest(options.backbone_weights)}"
    return settings | {"processes": str(ranks()), "images found": str(found)}


def load_networks(options: PretrainingOptions, plan: DistillationPlan) -> tuple[nn.Sequential, DistillationTarget]:
    """The teacher with its first weights and the backbone that it learns from, on the plan's device."""
    seed_torch(plan.seed, "weights")
    pdn = start_teacher(options.model_size, options.init_weights).to(plan.device)
    backbone = backbones.load_backbone(options.backbone, options.layers, options.backbone_weights)
    target = DistillationTarget(backbone, options.projection, SIDE, options.backbone_size).to(plan.device)
    if plan.precision == "bf16" or plan.device.type == "cuda":  # elsewhere it gains nothing
        pdn, target = (module.to(memory_format=torch.channels_last) for module in (pdn, target))
    return pdn, target


def report_start(
    options: PretrainingOptions, plan: DistillationPlan, target: DistillationTarget, training: int, held_out: int
) -> None:
    """Print the facts of the run, before it begins."""
    lengths = [f"{plan.steps} steps"] * bool(plan.steps) + [f"{plan.minutes} minutes"] * bool(plan.minutes)
    processes = f" on each of {ranks()} processes" if ranks() > 1 else ""
    layers = ", ".join(target.backbone.layers)
    say(f"Teacher {options.model_size} from {options.backbone} ({layers}), {options.projection}")
    say(f"{training} natural images, {held_out} more held out")
    say(f"At most {' or '.join(lengths)} of batch size {plan.batch_size}{processes}")
    say(f"Using {describe_device(plan.device, plan.precision)}")


def load_batches(
    stored: Sequence[ReadableImage], training: list[int], options: PretrainingOptions, plan: DistillationPlan
) -> Batches:
    """The batches of the training images, which are decoded when they are first needed."""
    side = max(options.backbone_size, 2 * SIDE)
    images = ImageCache(stored, lambda image: to_square(image, side), 3 * side * side, options.cache_gb * 1e9)
    return Batches(images, training, plan, (options.backbone_size, SIDE))


def fit_target(target: DistillationTarget, batches: Batches, indices: list[int], plan: DistillationPlan) -> None:
    """Fit the projection and the statistics of the features on these images; see DistillationTarget.fit."""
    own = indices[rank() :: ranks()]
    with progress_bar(total=len(own), desc="Statistics of the features", unit="image", disable=rank() > 0) as bar:
        target.fit((large for large, _ in batches.whole(own, bar.update)), plan.precision)
