"""Windows of large images: a training step sees one of each image, so that it costs the same at any size.

A student is as local as its patches, so windows teach it what whole images would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from efficientad.data.transforms import to_unit_range
from efficientad.data.views import SIDE
from efficientad.detector.grid import Cells, Places, grid_side
from efficientad.detector.model import EfficientAD
from efficientad.training.cache import ImageBatch

_TRIES = 32  # places that are drawn for each window, of which the first where anything counts is taken


@dataclass(frozen=True)
class Windows:
    """Windows of one size in a grid."""

    grid: tuple[int, int]  # height and width, in cells
    height: int  # of a window, in cells
    width: int

    @classmethod
    def of(cls, grid: tuple[int, int], margin: int, side: int | None) -> Windows | None:
        """The windows for a training, or None if it sees whole images.

        Args:
            margin: pixels that the border adds on each side of an image.
            side: of a window, in pixels, a multiple of 4; None: whole images. Where an image is not
                larger, a window covers it and its border.
        """
        if side is None:
            return None
        whole = grid_side(side + 2 * margin)
        height, width = (length if length <= whole else grid_side(side) for length in grid)
        return None if (height, width) == tuple(grid) else cls(grid, height, width)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Places for the windows of `count` images: count x tries x 2, rows and columns.

        Args:
            generator: on the CPU.
        """
        free = torch.tensor([self.grid[0] - self.height, self.grid[1] - self.width]) + 1
        return (torch.rand(count, _TRIES, 2, generator=generator, dtype=torch.float64) * free).long()

    def choose(self, places: Tensor, counted: Tensor | None) -> Cells:
        """The window at the first of the places where anything counts, or else around the first cell that does.

        Args:
            places: tries x 2.
            counted: bools of the grid's size, at least one of them true; None: everything counts.
        """
        for top, left in places.tolist():
            cells = Cells(top, left, self.height, self.width)
            if counted is None or counted[cells.slices].any():
                return cells
        row, column = counted.nonzero()[0].tolist()
        top = max(0, min(row - self.height // 2, self.grid[0] - self.height))
        left = max(0, min(column - self.width // 2, self.grid[1] - self.width))
        return Cells(top, left, self.height, self.width)


class Seen(NamedTuple):
    """What a step sees of N images."""

    images: Tensor  # N x 3 x h x w, float32 in [0, 1]: for the PDNs, with the border
    windows: list[Cells] | None  # of the images, and one even without any; None: they are whole
    overview: Tensor | None  # N x 3 x 256 x 256, for the autoencoder; None: `images` are what it sees
    places: Places | None  # of the windows, for the autoencoder
    counted: Tensor | None  # bools, N x 1 x cells; None: all count


def see_whole(model: EfficientAD, images: ImageBatch) -> Seen:
    """The whole images, on their device."""
    pixels = to_unit_range(images.pixels)
    is_paper = model.view.size == (SIDE, SIDE) and not model.margin
    overview = None if is_paper else model.overview(pixels)
    counted = None if images.inspected is None else model.counted(images.inspected)
    return Seen(model.cut(pixels), None, overview, None, counted)


def see_windows(model: EfficientAD, images: ImageBatch, windows: Windows, drawn: Tensor) -> Seen:
    """A window of each image, at the places drawn for it: N x tries x 2."""
    counted = None if images.inspected is None else model.counted(images.inspected)
    chosen = [windows.choose(places, None if counted is None else counted[i, 0]) for i, places in enumerate(drawn)]
    spare = Cells(0, 0, windows.height, windows.width)  # a process may have no image
    parts = [model.cut(images.pixels[i : i + 1], cells) for i, cells in enumerate(chosen)]
    if counted is not None:
        of_windows = [counted[(slice(i, i + 1), slice(None), *cells.slices)] for i, cells in enumerate(chosen)]
        counted = torch.cat(of_windows or [counted[(..., *spare.slices)]])
    device, all_places = images.pixels.device, model.upsampling.places(chosen or [spare])
    return Seen(
        to_unit_range(torch.cat(parts or [model.cut(images.pixels, spare)])),
        chosen or [spare],
        model.overview(to_unit_range(images.pixels)),
        Places(*(part[: len(chosen)].to(device, non_blocking=device.type == "cuda") for part in all_places)),
        counted,
    )
