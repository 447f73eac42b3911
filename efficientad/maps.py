"""Anomaly maps for people and programs: float TIFF, or the image beside a heat map as JPG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from efficientad.atomic_file import atomic_file

JPG_QUALITY = 90
_LARGEST_JPG = 65_500  # pixels on a side; libjpeg writes no more
_SMALLEST_SOFTNESS = 1e-6


def resize_map(anomaly_map: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bilinear resize of a float32 map to height x width."""
    resized = F.interpolate(
        torch.from_numpy(anomaly_map)[None, None], (height, width), mode="bilinear", align_corners=False
    )
    return resized[0, 0].numpy()


def heat_levels(anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """The map through a sigmoid centred on the threshold with softness threshold / 3: float32 in [0, 1].

    0.5 is the threshold, 0.05 is nothing; a threshold of 0 gives a step.
    """
    softness = max(threshold / 3, _SMALLEST_SOFTNESS)
    # tanh saturates where the exp of the textbook's formula overflows
    return 0.5 + 0.5 * np.tanh((anomaly_map - np.float32(threshold)) / np.float32(2 * softness))


def jet(levels: np.ndarray) -> np.ndarray:
    """The jet colour map, blue - cyan - yellow - red: [0, 1] of any shape -> uint8 RGB in a last axis of 3."""
    distance = np.abs(4 * levels[..., None] - np.array([3, 2, 1], dtype=np.float32))
    return np.rint(255 * np.clip(1.5 - distance, 0, 1)).astype(np.uint8)


def write_tiff(path: Path, anomaly_map: np.ndarray) -> None:
    """Write a float32 map H x W as a single-channel 32-bit float TIFF."""
    _save(Image.fromarray(anomaly_map), path, "TIFF")


def write_side_by_side(path: Path, image: Image.Image, anomaly_map: np.ndarray, threshold: float) -> None:
    """Write a JPG of the RGB image with the heat map of its H x W map to its right, smaller if it must be."""
    heat_map = Image.fromarray(jet(heat_levels(anomaly_map, threshold)))
    both = Image.new("RGB", (2 * image.width, image.height))
    both.paste(image, (0, 0))
    both.paste(heat_map, (image.width, 0))
    both.thumbnail((_LARGEST_JPG, _LARGEST_JPG))  # changes nothing but what is larger
    _save(both, path, "JPEG")


def write_overlay(path: Path, image: Image.Image, anomaly_map: np.ndarray, threshold: float) -> None:
    """Write a JPG of the RGB image under the heat map of its H x W map, the more opaque the higher its level."""
    levels = heat_levels(anomaly_map, threshold)[..., None]
    pixels = np.asarray(image) + levels * (jet(levels[..., 0]).astype(np.float32) - np.asarray(image))
    _save(Image.fromarray(np.rint(pixels).astype(np.uint8)), path, "JPEG")


def _save(picture: Image.Image, path: Path, file_format: str) -> None:
    with atomic_file(path, durable=False) as file:
        picture.save(file, file_format, **({"quality": JPG_QUALITY} if file_format == "JPEG" else {}))
