"""Natural images, or images drawn in their place, as an endless stream for the penalty (section 3.2)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from efficientad.data.image_collections import ImageCache, StoredImage, find_stored_images
from efficientad.data.transforms import to_square, to_tensor
from efficientad.drawn import DrawnImage
from efficientad.recipes import DRAWN, NONE
from efficientad.system.distributed import own_part, ranks
from efficientad.system.errors import UserError
from efficientad.system.parallel import parallel_map

DRAWN_IMAGES = 1000


def crop_centre_half(image: Image.Image, size: int) -> Tensor:
    """Resize to (2 size) x (2 size) and cut out the central size x size, as one resize: uint8 3 x size x size.

    The paper's penalty images: 512 x 512, then the central 256 x 256.
    """
    width, height = image.size
    centre = (width / 4, height / 4, width * 3 / 4, height * 3 / 4)
    return to_tensor(image.resize((size, size), Image.Resampling.BILINEAR, box=centre))


@dataclass(frozen=True)
class PenaltyImages:
    """Where the images for the penalty come from."""

    stored: Sequence[StoredImage | DrawnImage]
    prepare: Callable[[Image.Image, int], Tensor]  # to a uint8 tensor 3 x size x size
    kind: str

    def __str__(self) -> str:
        return f"{len(self.stored)} {self.kind} images" if self.stored else "off"


def find_penalty_images(sources: Sequence[Path]) -> PenaltyImages:
    """The images in folders and tar files, those that are drawn for the word "drawn", or none for "none".

    Raises:
        UserError: one of the words beside other sources; see find_stored_images.
    """
    names = [str(source) for source in sources]
    if names == [NONE]:
        return PenaltyImages([], to_square, NONE)
    if names == [DRAWN]:
        # Drawn at half the size, as large as the centre that is cut from a photograph of 256 x 256
        return PenaltyImages([DrawnImage(number) for number in range(DRAWN_IMAGES)], to_square, DRAWN)
    for word in (NONE, DRAWN):
        if word in names:
            raise UserError(f'"{word}" cannot go with other images for the penalty; take one or the other')
    return PenaltyImages(find_stored_images(sources), crop_centre_half, "natural")


def penalty_batches(
    images: PenaltyImages,
    batch_size: int,
    size: int,
    budget_bytes: float,
    workers: int,
    seed: int,
    start: int = 0,
) -> Iterator[Tensor]:
    """Endless uint8 batches, batch_size x 3 x size x size, every image once before any comes again.

    Sources may be far larger than memory: beyond the budget images are decoded as they are needed, a little ahead.
    An unreadable image is replaced by another one, with a line that names it: one in a million must not end a
    long training.

    Args:
        start: batches to pass over. Of several ranks each has its own part of every joined batch.

    Raises:
        UserError: no image at all is readable.
    """
    cache = ImageCache(images.stored, lambda image: images.prepare(image, size), 3 * size * size, budget_bytes)
    order = _own_indices(len(cache), batch_size, start, seed)
    batch: list[Tensor] = []
    for image in parallel_map(cache.__getitem__, order, workers):
        batch.append(image)
        if len(batch) == batch_size:
            yield torch.stack(batch)
            batch = []


def _own_indices(count: int, batch_size: int, start: int, seed: int) -> Iterator[int]:
    everything = itertools.islice(_shuffled_forever(count, seed), start * batch_size * ranks(), None)
    while joined := list(itertools.islice(everything, batch_size * ranks())):
        yield from joined[own_part(len(joined))]


def _shuffled_forever(count: int, seed: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
