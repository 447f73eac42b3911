"""Tiles of the grid, and the linear resize as a matrix."""

import pytest
import torch
from torch.nn import functional as F

from efficientad.detector.grid import OVERLAP, PATCH_STRIDE, Cells, divide, grid_side, resize_matrix


def seen_pixels(cells):
    rows, columns = cells.pixels
    return (rows.stop - rows.start) * (columns.stop - columns.start)


def test_a_grid_within_the_budget_is_one_tile():
    assert divide((56, 57), 256 * 260) == [Cells(0, 0, 56, 57)]
    assert divide((56, 57), 256 * 260 - 1) == [Cells(0, 0, 56, 30), Cells(0, 30, 56, 27)]


@pytest.mark.parametrize("grid", [(8, 8), (9, 8), (57, 67), (56, 56), (88, 152), (7, 517)])
@pytest.mark.parametrize("budget", [1, 2000, 5000, 10_000, 2**16, 2**20])
def test_tiles_cover_the_grid_once_begin_evenly_and_keep_the_budget(grid, budget):
    covered = torch.zeros(grid, dtype=torch.int64)
    for cells in divide(grid, budget):
        assert cells.top % 2 == cells.left % 2 == 0
        assert min(cells.height, cells.width) >= 1
        assert seen_pixels(cells) <= max(budget, (2 * PATCH_STRIDE + OVERLAP) ** 2)  # 2 x 2 cells are the least
        covered[cells.slices] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("grid", [(6, 8184), (1999, 499)])
def test_large_grids_are_not_cut_into_splinters(grid):
    """Or the overlap would be most of the work."""
    assert sum(map(seen_pixels, divide(grid, 2**20))) < 1.2 * seen_pixels(Cells(0, 0, *grid))


def test_the_pixels_of_cells_give_exactly_these_cells():
    rows, columns = Cells(3, 4, 5, 6).pixels
    assert (rows.start, columns.start) == (12, 16)
    assert (grid_side(rows.stop - rows.start), grid_side(columns.stop - columns.start)) == (5, 6)
    whole, whole_columns = Cells(0, 0, 56, 57).pixels
    assert (whole.stop, whole_columns.stop) == (256, 260)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(
    ("source", "target"), [(128, 56), (128, 183), (64, 256), (1000, 256), (256, 256), (700, 3)]
)
def test_the_matrix_is_torchs_resize(source, target, antialias):
    values = torch.rand(2, 3, source, 5)
    expected = F.interpolate(values, (target, 5), mode="bilinear", antialias=antialias)
    actual = resize_matrix(source, target, antialias) @ values
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
