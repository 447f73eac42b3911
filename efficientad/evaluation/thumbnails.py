"""Small pictures of a test image for the report: thumbnail, anomaly map and mask, a few kB together."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

REPORT_BYTES = 30_000_000  # of a report, at most, so that it can be mailed and opens quickly
PAGE_BYTES = 500_000  # of a report without its images
TEXT_BYTES = 350  # of an image's names, links and mask, at most
MAP_LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"  # a pixel of a map is one letter
MAP_FLOOR = 4.0  # on the 0-255 scale; the levels are about linear below it and logarithmic above
_BYTES_PER_PIXEL = 0.14  # of a thumbnail with much texture
_LARGEST_SIDE, _SMALLEST_SIDE = 320, 64
_FINE_MAP, _COARSE_MAP = 64, 32  # the networks' own maps of the paper's input have 56
_QUALITIES = (70, 50, 30, 10)
_MOST_MASK_TEXT = 1200


@dataclass(frozen=True)
class PictureSizes:
    """The sizes of the pictures in one report."""

    thumbnail_side: int  # of the longer side, in pixels
    thumbnail_bytes: int  # at most
    map_side: int


@dataclass(frozen=True)
class Picture:
    """The pictures of one image in a report."""

    image_size: tuple[int, int]  # width and height of the original
    thumbnail: bytes  # WebP, in the original's aspect ratio
    anomaly_map: str  # map_side rows of map_side letters; see encode_map
    mask: str  # see encode_mask; empty without a mask
    peak: float  # the largest value of the map, to which its letters are relative


def plan_pictures(count: int) -> PictureSizes:
    """The largest pictures that keep a report of `count` images below REPORT_BYTES."""
    share = (REPORT_BYTES - PAGE_BYTES) / count - TEXT_BYTES
    map_side = _FINE_MAP if share > 4 * _FINE_MAP**2 else _COARSE_MAP
    room = max(0, int(0.75 * (share - map_side**2 - 4)))  # base64 makes four letters of three bytes
    side = min(_LARGEST_SIDE, max(_SMALLEST_SIDE, int((room / _BYTES_PER_PIXEL) ** 0.5)))
    return PictureSizes(side, min(room, int(2 * _BYTES_PER_PIXEL * side**2)), map_side)


def encode_thumbnail(image: Image.Image, sizes: PictureSizes) -> bytes:
    """The RGB image as a small WebP, with the best quality that fits."""
    scale = min(1.0, sizes.thumbnail_side / max(image.size))
    width, height = (max(1, round(scale * side)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=1.5)
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=quality, method=1)
        if buffer.tell() <= sizes.thumbnail_bytes:
            break
    return buffer.getvalue()


def encode_map(anomaly_map: np.ndarray, side: int) -> str:
    """A map as side * side letters of MAP_LEVELS, row by row.

    Each is the largest value of its cell, so that a peak of one pixel is not lost, on a logarithmic scale from 0
    to the largest value of the whole map: value = MAP_FLOOR * ((1 + largest / MAP_FLOOR) ** (level / 63) - 1).

    Args:
        anomaly_map: H x W float32, 0-255 scale; where it is smaller than the grid, its values are repeated.
    """
    rows, columns = (np.arange(side) * length // side for length in anomaly_map.shape)
    peaks = np.maximum.reduceat(np.maximum.reduceat(anomaly_map, rows, axis=0), columns, axis=1)
    logarithms = np.log1p(np.maximum(peaks, 0) / MAP_FLOOR)
    largest = logarithms.max()
    levels = np.rint((len(MAP_LEVELS) - 1) * logarithms / (largest or 1)).astype(np.uint8)
    return np.frombuffer(MAP_LEVELS.encode(), np.uint8)[levels].tobytes().decode()


def encode_mask(masks: Sequence[np.ndarray], side: int) -> str:
    """The union of an image's masks as "width height run run ..."; empty without masks.

    Runs count the cells that are outside, inside, outside, ... row by row. A cell is inside if any of its pixels
    is.

    Args:
        masks: H x W, not 0 where the defect is.
        side: cells of the grid's longer side; halved while the text is too long.
    """
    if not masks:
        return ""
    union = Image.fromarray(np.any([mask != 0 for mask in masks], axis=0).astype(np.uint8) * 255)
    while True:
        scale = min(1.0, side / max(union.size))
        width, height = (max(1, round(scale * length)) for length in union.size)
        grid = np.asarray(union.resize((width, height), Image.Resampling.BOX, reducing_gap=2.0)) > 0
        text = f"{width} {height} {' '.join(map(str, _runs(grid)))}"
        if len(text) <= _MOST_MASK_TEXT or side <= 8:
            return text
        side //= 2


def _runs(grid: np.ndarray) -> list[int]:
    """Lengths of the runs of equal cells, row by row, beginning with cells that are False."""
    cells = np.concatenate([[False], grid.ravel()])
    starts = np.flatnonzero(cells[1:] != cells[:-1])
    return np.diff([0, *starts, grid.size]).tolist()
