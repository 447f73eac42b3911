"""The images of a training: found, decoded, and compared with those that an interrupted training began with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from efficientad.data.datasets import (
    Dataset,
    FoundSamples,
    Sample,
    TrainingSplit,
    find_training_images,
    list_good_images,
)
from efficientad.data.images import UnreadableImageError, find_unreadable
from efficientad.data.views import SIDE, SIDE_STEP, View
from efficientad.detector.model import EfficientAD
from efficientad.system.distributed import rank, ranks, say
from efficientad.system.errors import UserError
from efficientad.training.cache import ImageSet
from efficientad.training.depths import choose_depth
from efficientad.training.options import TrainingOptions, TrainingPlan
from efficientad.training.penalty_images import PenaltyImages, penalty_batches
from efficientad.training.progress import Progress, find_labelled_samples

NATURAL_CACHE_SHARE = 0.25  # of what the training images leave; the teacher's features save more and get the rest


@dataclass(frozen=True)
class FoundImages:
    """The image files of a training, not yet decoded."""

    split: TrainingSplit
    test_samples: list[Sample]  # for --evaluate_every; empty without it
    skipped: list[UnreadableImageError]
    view: View  # with the depth
    about_depth: list[str]
    notes: list[str]  # for the user


@dataclass(frozen=True)
class TrainingImages:
    """The images of a training in memory, as far as they fit."""

    images: ImageSet
    train: range  # indices in `images`
    held_out: range
    held_out_is_given: bool  # by the data set; otherwise random
    digests: dict[str, str]  # by their names below the data set's folder
    progress: Progress | None
    penalty_batches: Iterator[Tensor] | None
    features_budget: float  # bytes that are left for the teacher's features


def find_images(dataset: Dataset, options: TrainingOptions, view: View) -> FoundImages:
    """Find the good images and, for --evaluate_every, the test images; with --on_error skip only readable ones.

    Args:
        view: which the images must suit, whatever its size; not yet with its depth.

    Raises:
        UserError: too few images, or none where they should be.
    """
    good, skipped = list_good_images(dataset), []
    paths = [*good.train, *(good.validation or [])]
    depth, about_depth = choose_depth(options.bit_depth, paths, options.num_workers)
    view = replace(view, depth=depth)
    if options.on_error == "skip":
        skipped = find_unreadable(paths, view.read, options.num_workers, quiet=rank() > 0)
        if skipped and len(skipped) == len(paths):
            raise UserError(f"none of the {len(paths)} training images can be used, for example {skipped[0]}")
    split = find_training_images(dataset, options.seed, leave_out={bad.name for bad in skipped})
    tested = FoundSamples([], [])
    if options.evaluate_every is not None:
        check = view.read if options.on_error == "skip" else None
        tested, unreadable = find_labelled_samples(dataset, check, options.num_workers)
        skipped += unreadable
    if len(split.train) < ranks():
        raise UserError(f"{len(split.train)} training images are too few for {ranks()} processes; start fewer")
    return FoundImages(split, tested.samples, skipped, view, about_depth, [*split.notes, *tested.notes])


def load_images(
    dataset: Dataset,
    found: FoundImages,
    penalty: PenaltyImages,
    model: EfficientAD,
    options: TrainingOptions,
    plan: TrainingPlan,
    start: int,
) -> TrainingImages:
    """Decode the images, and divide the memory of --cache_gb between them and the teacher's features.

    Args:
        options: settled.
        start: steps already done.

    Raises:
        UserError: naming all unreadable images.
    """
    train, workers = found.split.train, options.num_workers
    paths = [*train, *found.split.validation]
    budget = options.cache_gb * 1e9
    images = ImageSet(paths, model.view, budget, workers, plan.device)
    held_out = range(len(train), len(paths))
    names = (path.relative_to(dataset.root).as_posix() for path in paths)
    learnt = set(images.digests[: len(train)])
    copies = sum(digest in learnt for digest in images.digests[len(train) :])
    if copies:
        are = "is a copy" if copies == 1 else "are copies"
        say(
            f"Note: {copies} of the {len(held_out)} images held out {are} of others, so the threshold will be "
            "too low; leave the copies out, or put other images into validation/good"
        )
    budget -= images.kept_bytes
    progress = None
    if found.test_samples:
        samples = found.test_samples
        test_paths = [sample.path for sample in samples]
        test_images = ImageSet(test_paths, model.view, budget, workers, plan.device, "test images")
        labels = [sample.is_anomalous for sample in samples]
        progress = Progress(options.evaluate_every, model, images, held_out, test_images, labels, plan.precision)
        budget -= test_images.kept_bytes
    batches = None
    if penalty.stored:
        share = NATURAL_CACHE_SHARE * budget
        side = _penalty_side(model.view, plan.window)
        batches = penalty_batches(penalty, plan.batch_size, side, share, workers, plan.seed, start)
        if plan.device.type == "cpu":  # else they have the host's memory to themselves
            budget -= share
    digests = dict(zip(names, images.digests, strict=True))
    given = found.split.is_given
    return TrainingImages(images, range(len(train)), held_out, given, digests, progress, batches, budget)


def _penalty_side(view: View, window: int | None) -> int:
    """Side of the penalty images: about as many pixels as a step sees of an image, at most the paper's."""
    height, width = (side if window is None else min(side, window) for side in view.size)
    return min(SIDE, round((height * width) ** 0.5 / SIDE_STEP) * SIDE_STEP)
