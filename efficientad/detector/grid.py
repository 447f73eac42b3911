"""The grid of patches on which the PDNs answer: its size, parts of it, and the pixels that they see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

PATCH_SIZE = 33  # receptive field of a PDN, in pixels
PATCH_STRIDE = 4
PATCH_CENTRE = 16  # of the first patch: the networks pad nothing
MAP_PADDING = 4  # so their maps are this many cells smaller on each side than a map of all pixels
_COLUMNS = 256  # of a matrix, made at once
OVERLAP = MAP_PADDING * 2 * PATCH_STRIDE  # pixels by which the input of n cells exceeds n strides


class Cells(NamedTuple):
    """A rectangle of the grid."""

    top: int
    left: int
    height: int
    width: int

    @property
    def pixels(self) -> tuple[slice, slice]:
        """The rows and columns of the PDN's input that these cells see."""
        return tuple(
            slice(PATCH_STRIDE * start, PATCH_STRIDE * (start + length) + OVERLAP)
            for start, length in ((self.top, self.height), (self.left, self.width))
        )

    @property
    def slices(self) -> tuple[slice, slice]:
        """The rows and columns of the grid."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def grid_side(pixels: int) -> int:
    """Side of the unpadded PDN's output: 256 -> 56.

    Args:
        pixels: side of its input.
    """
    return (pixels - PATCH_SIZE) // PATCH_STRIDE + 1


def divide(grid: tuple[int, int], most_pixels: int) -> list[Cells]:
    """Tiles that cover a grid once, each of which sees at most `most_pixels` pixels, if that can be.

    They begin at even rows and columns, so that averages of 2 x 2 cells do not cross their edges.

    Args:
        grid: height and width in cells.
    """
    lengths, parts = list(grid), [1, 1]

    def seen(length: int) -> int:
        return PATCH_STRIDE * length + OVERLAP

    while seen(lengths[0]) * seen(lengths[1]) > most_pixels and max(lengths) > 2:
        longer = 0 if lengths[0] >= lengths[1] else 1
        parts[longer] += 1
        shorter = math.ceil(grid[longer] / parts[longer])
        lengths[longer] = shorter + shorter % 2
    height, width = lengths
    return [
        Cells(top, left, min(height, grid[0] - top), min(width, grid[1] - left))
        for top in range(0, grid[0], height)
        for left in range(0, grid[1], width)
    ]


def join_tiles(parts: Sequence[Tensor], tiles: Sequence[Cells], grid: tuple[int, int], scale: int = 1) -> Tensor:
    """What was computed tile by tile as a whole.

    Args:
        parts: of each tile, N x channels x cells; a single one is the whole already.
        scale: side of the square of cells that has one value.
    """
    if len(parts) == 1:
        return parts[0]
    whole = parts[0].new_empty((*parts[0].shape[:2], *(-(-length // scale) for length in grid)))
    for part, cells in zip(parts, tiles, strict=True):
        top, left = cells.top // scale, cells.left // scale
        height, width = part.shape[-2:]
        whole[..., top : top + height, left : left + width] = part
    return whole


def resize_matrix(source: int, target: int, antialias: bool = False) -> Tensor:
    """The linear resize of `source` values to `target`, as torch computes it: target x source, float32."""
    columns = []
    for first in range(0, source, _COLUMNS):  # all at once would take source x source values
        some = torch.zeros(1, 1, source, min(_COLUMNS, source - first))
        some[0, 0, first:].fill_diagonal_(1)
        size = (target, some.shape[-1])
        columns.append(F.interpolate(some, size, mode="bilinear", antialias=antialias)[0, 0])
    return torch.cat(columns, dim=1)


class Places(NamedTuple):
    """Where windows of one size lie in the grid, for the last layers of the autoencoder."""

    rows: Tensor  # N x (height + 4) x source, the last upsampling along the columns; 0 outside the grid
    columns: Tensor  # N x (width + 4) x source
    inside: Tensor  # N x 1 x (height + 2) x (width + 2), 1 inside the grid


class Upsampling:
    """The autoencoder's last upsampling, window by window."""

    def __init__(self, source: int, grid: tuple[int, int]) -> None:
        """
        Args:
            source: side of the square that is upsampled to the grid.
        """
        self._matrices = [F.pad(resize_matrix(source, length), (0, 0, 2, 2)) for length in grid]
        self._inside = [F.pad(torch.ones(length), (1, 1)) for length in grid]

    def places(self, windows: list[Cells]) -> Places:
        """Of windows of one size, on the CPU."""
        (rows, columns), (inside_rows, inside_columns) = self._matrices, self._inside
        inside = [
            inside_rows[cells.top : cells.top + cells.height + 2, None]
            * inside_columns[cells.left : cells.left + cells.width + 2]
            for cells in windows
        ]
        return Places(
            torch.stack([rows[cells.top : cells.top + cells.height + 4] for cells in windows]),
            torch.stack([columns[cells.left : cells.left + cells.width + 4] for cells in windows]),
            torch.stack(inside)[:, None],
        )
