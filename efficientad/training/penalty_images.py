"""Images for the penalty on the student (section 3.2): natural ones, or drawn by a program.

Drawn images have overlapping shapes of all sizes ("dead leaves"), filled with noise whose spectrum falls with the
frequency: two things that photographs have in common.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from efficientad.data.image_collections import ImageCache, StoredImage, find_stored_images
from efficientad.data.transforms import to_square, to_tensor
from efficientad.system.distributed import own_part, ranks
from efficientad.system.errors import UserError
from efficientad.system.parallel import parallel_map
from efficientad.system.random_streams import random_stream, seed_sequence
from efficientad.training.options import DRAWN, NONE

SIDE = 128  # pixels
TEXTURES = 4  # in an image
NOISES = 48  # in all
SPECTRA = (0.3, 2.2)  # exponents by which amplitudes fall with the frequency; in photographs about 1
SMALLEST_RADIUS, LARGEST_RADIUS = (2, 8), (40, 160)  # of an image's shapes, drawn for each image
MOST_SHAPES = 63


@dataclass(frozen=True)
class DrawnImage:
    """The image of a number, always the same one; takes the place of a StoredImage."""

    number: int

    @property
    def path(self) -> Path:
        """Its name in messages."""
        return Path(f"drawn image {self.number}")

    def read(self) -> Image.Image:
        """Draw it: RGB, SIDE x SIDE."""
        rng = np.random.default_rng(seed_sequence(0, "drawn images", self.number))
        textures = [_texture(rng) for _ in range(TEXTURES)]
        image = textures[0].copy()
        smallest, largest = rng.uniform(*SMALLEST_RADIUS), rng.uniform(*LARGEST_RADIUS)
        for _ in range(rng.integers(2, MOST_SHAPES + 1)):
            # The density of radii falls with their cube: no scale stands out, as in photographs
            radius = 1 / math.sqrt(1 / smallest**2 + rng.random() * (1 / largest**2 - 1 / smallest**2))
            texture = textures[rng.integers(TEXTURES)].transpose(Image.Transpose(int(rng.integers(7))))
            if rng.random() < 0.6:
                texture = _recoloured(rng, texture)
            image.paste(texture, (0, 0), _shape(rng, radius))
        if rng.random() < 0.3:  # out of focus
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 2)))
        return image


@functools.cache
def _noises() -> np.ndarray:
    """Periodic fields of noise: NOISES x SIDE x SIDE, float32, mean 0, standard deviation 1."""
    rng = np.random.default_rng(seed_sequence(0, "noise fields"))
    frequencies = np.fft.fftfreq(SIDE)
    distances = np.hypot(frequencies[:, None], frequencies)
    distances[0, 0] = 1 / SIDE
    exponents = np.linspace(*SPECTRA, NOISES)[:, None, None]
    fields = np.fft.ifft2(np.fft.fft2(rng.normal(size=(NOISES, SIDE, SIDE))) / distances**exponents).real
    fields -= fields.mean(axis=(1, 2), keepdims=True)
    return (fields / fields.std(axis=(1, 2), keepdims=True)).astype(np.float32)


def _noise(rng: np.random.Generator, which: int) -> np.ndarray:
    return np.roll(_noises()[which], rng.integers(SIDE, size=2), axis=(0, 1))


def _texture(rng: np.random.Generator) -> Image.Image:
    which = rng.integers(NOISES)
    light, hue = _noise(rng, which), _noise(rng, which)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) / SIDE
    if rng.random() < 0.3:  # stripes, as of fabric and machined surfaces
        angle, waves = rng.uniform(0, np.pi), rng.uniform(3, 43)
        wave = np.sin(2 * np.pi * waves * (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))))
        light = 0.3 * light + (np.sign(wave) if rng.random() < 0.5 else wave)
    contrast, tint = rng.uniform(0.05, 0.8), rng.normal(size=3)
    tint *= rng.uniform(0, 0.4) / np.linalg.norm(tint)
    brightness = 128 + 55 * (0.9 * rng.normal(size=3) + 0.3 * rng.normal())
    slope = 30 * rng.uniform() * rng.normal(size=2)  # of the lighting
    light = 55 * contrast * light + slope[0] * y + slope[1] * x
    bands = [
        Image.fromarray((light + (55 * contrast * tint[i]) * hue + brightness[i]).clip(0, 255).astype(np.uint8))
        for i in range(3)
    ]
    return Image.merge("RGB", bands)


def _shape(rng: np.random.Generator, radius: float) -> Image.Image:
    """A mask: an ellipse, a polygon or a line at a random place."""
    mask = Image.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(mask)
    centre = rng.uniform(-radius / 2, SIDE + radius / 2, 2)
    kind = rng.integers(4)
    if kind == 0:
        extent = radius * np.array([1, rng.uniform(0.3, 1)])
        draw.ellipse((*(centre - extent), *(centre + extent)), fill=255)
    elif kind == 1:
        corners = centre + radius * rng.uniform(-1, 1, (rng.integers(2, 5), 2))
        draw.line(corners.ravel().tolist(), fill=255, width=int(rng.integers(1, 6)))
    else:  # twice as often
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        arms = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.6, 1, (len(angles), 1))
        draw.polygon((centre + radius * arms).ravel().tolist(), fill=255)
    return mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2))) if rng.random() < 0.5 else mask


def _recoloured(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    contrast, shifts = rng.uniform(0.4, 1.6), 50 * rng.normal(size=(3, 1))
    tables = contrast * np.arange(256) + shifts
    return image.point(tables.clip(0, 255).astype(np.uint8).ravel().tolist())


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
    """The images for the penalty, wherever they come from."""

    stored: Sequence[StoredImage | DrawnImage]
    prepare: Callable[[Image.Image, int], Tensor]  # to a uint8 tensor 3 x size x size
    kind: str
    digest: str = ""  # of the names in their order; it stays the same when the folder moves

    def __str__(self) -> str:
        return f"{len(self.stored)} {self.kind} images" if self.stored else "off"


def find_penalty_images(sources: Sequence[Path]) -> PenaltyImages:
    """The images in folders and tar files, the drawn ones for the word "drawn", or none for "none".

    Raises:
        UserError: one of the words beside other sources; see find_stored_images.
    """
    words = [str(source) for source in sources]
    if words == [NONE]:
        return PenaltyImages([], to_square, NONE)
    if words == [DRAWN]:
        # Drawn at half the size, as large as the centre that is cut from a photograph of 256 x 256
        return PenaltyImages([DrawnImage(number) for number in range(DRAWN_IMAGES)], to_square, DRAWN)
    for word in (NONE, DRAWN):
        if word in words:
            raise UserError(f'"{word}" cannot go with other images for the penalty; take one or the other')
    stored, names = [], hashlib.sha256()
    for source in sources:
        for image in find_stored_images([source]):
            name = image.path.relative_to(source).as_posix()  # "." of a source that is a tar file
            names.update(f"{name} {image.offset} {image.length}\n".encode(errors="surrogateescape"))
            stored.append(image)
    return PenaltyImages(stored, crop_centre_half, "natural", names.hexdigest())


def penalty_batches(
    images: PenaltyImages,
    batch_size: int,
    size: int,
    budget_bytes: float,
    workers: int,
    seed: int,
    start: int = 0,
) -> Iterator[Tensor]:
    """Endless uint8 batches, batch_size x 3 x size x size; every image once before any comes again.

    Sources may be far larger than memory: images beyond the budget are decoded when needed, a little ahead. An
    unreadable image is replaced by another one and reported: one in a million must not end a long training.

    Args:
        start: batches to skip. Each process has its own part of every joined batch.

    Raises:
        UserError: no image at all is readable.
    """
    cache = ImageCache(images.stored, lambda image: images.prepare(image, size), 3 * size * size, budget_bytes)
    order = _own_indices(len(cache), batch_size, start, random_stream(seed, "penalty order"))
    batch: list[Tensor] = []
    for image in parallel_map(cache.__getitem__, order, workers):
        batch.append(image)
        if len(batch) == batch_size:
            yield torch.stack(batch)
            batch = []


def _own_indices(count: int, batch_size: int, start: int, generator: torch.Generator) -> Iterator[int]:
    everything = itertools.islice(_shuffled_forever(count, generator), start * batch_size * ranks(), None)
    while joined := list(itertools.islice(everything, batch_size * ranks())):
        yield from joined[own_part(len(joined))]


def _shuffled_forever(count: int, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
