"""Anomaly maps as files: float TIFF, or a JPG of the image with a heat map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from efficientad.data.images import fit_jpg
from efficientad.system.files import atomic_file

JPG_QUALITY = 90
_SMALLEST_SOFTNESS = 1e-6
_STRIP_PIXELS = 2**15


def heat_levels(anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """The map through a sigmoid centred on the threshold with softness threshold / 3: float32 in [0, 1].

    0.5 is the threshold, 0.05 a map value of 0; a threshold of 0 gives a step.
    """
    softness = max(threshold / 3, _SMALLEST_SOFTNESS)
    # tanh saturates where the exp of the textbook's formula overflows
    return 0.5 + 0.5 * np.tanh((anomaly_map - np.float32(threshold)) / np.float32(2 * softness))


def jet(levels: np.ndarray) -> np.ndarray:
    """The jet colour map, blue - cyan - yellow - red: [0, 1] of any shape -> uint8 RGB in a new last axis."""
    distance = np.abs(4 * levels[..., None] - np.array([3, 2, 1], dtype=np.float32))
    return np.rint(255 * np.clip(1.5 - distance, 0, 1)).astype(np.uint8)


def heat_map(anomaly_map: np.ndarray, threshold: float) -> Image.Image:
    """The colours of an H x W map as an RGB image; see heat_levels, of which 256 are told apart, and jet."""
    return _in_colours(_level_bytes(anomaly_map, threshold))


def _level_bytes(anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """heat_levels as H x W uint8, 255 for 1."""
    levels = np.empty(anomaly_map.shape, dtype=np.uint8)
    height = max(1, _STRIP_PIXELS // anomaly_map.shape[1])  # temporary arrays stay in the processor's cache
    for top in range(0, len(levels), height):
        rows = slice(top, top + height)
        levels[rows] = 255 * heat_levels(anomaly_map[rows], threshold) + np.float32(0.5)
    return levels


def _in_colours(levels: np.ndarray) -> Image.Image:
    """The colours of H x W uint8 levels, looked up by Pillow, which lets other threads run meanwhile."""
    colours = Image.fromarray(levels)
    colours.putpalette(_PALETTE)
    return colours.convert("RGB")


_PALETTE = jet(np.arange(256, dtype=np.float32) / 255).tobytes()


def write_tiff(path: Path, anomaly_map: np.ndarray) -> None:
    """Write a float32 map H x W as a single-channel 32-bit float TIFF."""
    _save(Image.fromarray(anomaly_map), path, "TIFF")


def write_side_by_side(
    path: Path, image: Image.Image, anomaly_map: np.ndarray, threshold: float, inspected: np.ndarray | None = None
) -> None:
    """Write a JPG of the RGB image with the heat map of its H x W map to its right, smaller if it must be.

    Args:
        inspected: H x W bools; elsewhere the heat map is the image itself. None: all of it.
    """
    heat = heat_map(anomaly_map, threshold)
    if inspected is not None:
        heat.paste(image, mask=Image.fromarray(~inspected))
    both = Image.new("RGB", (2 * image.width, image.height))
    both.paste(image, (0, 0))
    both.paste(heat, (image.width, 0))
    _save(both, path, "JPEG")


def write_overlay(
    path: Path, image: Image.Image, anomaly_map: np.ndarray, threshold: float, inspected: np.ndarray | None = None
) -> None:
    """Write a JPG of the RGB image under the heat map of its H x W map, the more opaque the higher its level.

    Args:
        inspected: H x W bools; elsewhere nothing covers the image. None: all of it.
    """
    levels = _level_bytes(anomaly_map, threshold)
    heat = _in_colours(levels)
    opacity = levels if inspected is None else levels * inspected
    _save(Image.composite(heat, image, Image.fromarray(opacity)), path, "JPEG")


def _save(picture: Image.Image, path: Path, file_format: str) -> None:
    if file_format == "JPEG":
        fit_jpg(picture)
    with atomic_file(path, durable=False) as file:
        picture.save(file, file_format, **({"quality": JPG_QUALITY} if file_format == "JPEG" else {}))
