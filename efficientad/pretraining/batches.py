"""The augmented images of a distillation: for the same seed the same, however often a run is resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from efficientad.data.image_collections import ImageCache
from efficientad.data.transforms import augment, draw_light, random_crops, where_gray
from efficientad.detector.grid import PATCH_SIZE, PATCH_STRIDE
from efficientad.detector.networks import IMAGENET_MEAN, IMAGENET_STD
from efficientad.system.distributed import rank, ranks
from efficientad.system.parallel import parallel_map
from efficientad.system.random_streams import random_stream

MOST_HELD_OUT = 64
GRAY_SHARE = 0.1  # of the images; shown gray to both networks (algorithm 3)


@dataclass(frozen=True)
class DistillationPlan:
    """Settings of the pretraining loop."""

    steps: int | None  # at least one of steps and minutes
    minutes: float | None
    batch_size: int  # of each process
    lr: float
    weight_decay: float
    schedule: str  # of the learning rate: constant or cosine
    crop_scale: float  # smallest area of the random crops; 1: whole images
    relight: float  # strongest change of light between backbone and teacher, a factor; 1: none
    window: int  # side of the part of each image that the teacher sees in a step, in pixels
    device: torch.device
    precision: str  # resolved
    seed: int
    workers: int
    optimizer: str = "adam"  # or muon


def hold_out(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices of `count` images: those to train on, and one in fifty to hold out, at most MOST_HELD_OUT."""
    order = torch.randperm(count, generator=random_stream(seed, "held-out images")).tolist()
    held_out = min(MOST_HELD_OUT, max(1, count // 50))
    return order[held_out:], order[:held_out]


class Batches:
    """Augmented batches of a plan's training images; those of a step depend on the seed and the step alone."""

    def __init__(
        self, images: ImageCache, indices: list[int], plan: DistillationPlan, sizes: tuple[int, int]
    ) -> None:
        """
        Args:
            indices: of the training images in `images`.
            sizes: of the images for the backbone and for the teacher, in pixels.
        """
        self._images, self._indices, self._plan, self._sizes = images, indices, plan, sizes
        self._mean, self._std = (
            torch.tensor(values, device=plan.device).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
        )

    def from_step(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless pairs of the same images for both networks, on the plan's device, float32: this process's share.

        Each pair: N x 3 x B x B in [0, 1] for the backbone and N x 3 x S x S, ImageNet-normalized, for the teacher.
        """
        plan = self._plan
        read = parallel_map(self._read, self._order(start), plan.workers)
        for step, pixels in enumerate(read, start):
            generator = random_stream(plan.seed, "crops", step, rank())
            pixels = pixels.to(plan.device, non_blocking=True)
            large, small = random_crops(pixels, plan.crop_scale, self._sizes, generator)
            gray = torch.rand(len(pixels), generator=generator) < GRAY_SHARE
            yield where_gray(large, gray), self._for_teacher(where_gray(small, gray), generator)

    def whole(
        self, indices: list[int], report: Callable[[int], object] = lambda count: None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As from_step, of given images, once, the same each time: whole, in colour, relit for the teacher.

        `report` is called with the number of images of each pair.
        """
        generator = random_stream(self._plan.seed, "light")
        batches = [indices[i : i + self._plan.batch_size] for i in range(0, len(indices), self._plan.batch_size)]
        for pixels in parallel_map(self._read, batches, self._plan.workers):
            large, small = random_crops(pixels.to(self._plan.device), 1.0, self._sizes, torch.Generator())
            yield large, self._for_teacher(small, generator)
            report(len(pixels))

    def _for_teacher(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if self._plan.relight > 1:
            images = augment(images, draw_light(len(images), self._plan.relight, generator))
        return (images - self._mean) / self._std

    def _read(self, indices: list[int]) -> Tensor:
        return torch.stack([self._images[index] for index in indices])

    def _order(self, start: int) -> Iterator[list[int]]:
        plan, count = self._plan, len(self._indices)
        at = (start * ranks() + rank()) * plan.batch_size
        epoch, order = -1, []
        while True:
            batch = []
            for position in range(at, at + plan.batch_size):
                if position // count != epoch:
                    epoch = position // count
                    generator = random_stream(plan.seed, "epochs", epoch)
                    order = torch.randperm(count, generator=generator).tolist()
                batch.append(self._indices[order[position % count]])
            yield batch
            at += ranks() * plan.batch_size


def random_windows(
    images: Tensor, targets: Tensor, window: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A random square of each image, and the targets of the patches wholly within it.

    Args:
        images: N x 3 x S x S.
        targets: N x C x P x P, of every patch of the images.
        window: side in pixels, 33 + 4k; at least S: everything.
    """
    if window >= images.shape[-1]:
        return images, targets
    patches = patches_within(window)
    corners = torch.randint(0, targets.shape[-1] - patches + 1, (len(images), 2), generator=generator).tolist()
    parts, answers = [], []
    for image, target, (y, x) in zip(images, targets, corners, strict=True):
        top, left = PATCH_STRIDE * y, PATCH_STRIDE * x
        parts.append(image[:, top : top + window, left : left + window])
        answers.append(target[:, y : y + patches, x : x + patches])
    return torch.stack(parts), torch.stack(answers)


def patches_within(window: int) -> int:
    """The number of the PDN's patches side by side in `window` pixels."""
    return (window - PATCH_SIZE) // PATCH_STRIDE + 1
