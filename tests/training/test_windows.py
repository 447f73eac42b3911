"""A step that sees windows of large images learns what it would of the whole images."""

import pytest
import torch

from efficientad.data.transforms import to_unit_range
from efficientad.data.views import View
from efficientad.detector.grid import Cells
from efficientad.detector.model import EfficientAD
from efficientad.system.devices import autocast
from efficientad.training.cache import ImageBatch, TeacherFeatures
from efficientad.training.losses import compute_losses
from efficientad.training.windows import Windows, see_whole, see_windows

CPU = torch.device("cpu")


def random_pixels(count, *size):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def make_batch(pixels, inspected=None):
    return ImageBatch(torch.arange(len(pixels)), pixels, inspected)


@pytest.mark.parametrize(
    ("grid", "margin", "side", "expected"),
    [
        ((56, 56), 0, 256, None),  # the paper
        ((64, 64), 16, 256, None),  # the whole image with its border
        ((88, 152), 0, 256, (56, 56)),
        ((96, 160), 16, 256, (56, 56)),
        ((24, 152), 0, 256, (24, 56)),  # 128 x 640
        ((32, 160), 16, 256, (32, 56)),
        ((88, 152), 0, 64, (8, 8)),
        ((88, 152), 0, None, None),
        ((88, 152), 0, 640, None),
    ],
)
def test_the_size_of_windows(grid, margin, side, expected):
    windows = Windows.of(grid, margin, side)
    assert (None if windows is None else (windows.height, windows.width)) == expected


def test_windows_lie_anywhere_in_the_grid():
    windows = Windows((12, 9), 8, 9)
    drawn = windows.draw(500, torch.Generator().manual_seed(0))
    chosen = {windows.choose(places, None) for places in drawn}
    assert {cells.top for cells in chosen} == set(range(5)) and {cells.left for cells in chosen} == {0}
    assert all(cells[2:] == (8, 9) for cells in chosen)


@pytest.mark.parametrize("place", [(0, 0), (39, 59), (20, 31)])
def test_a_window_shows_something_that_counts(place):
    """Also a single cell in a corner, which most windows miss."""
    windows = Windows((40, 60), 8, 8)
    counted = torch.zeros(40, 60, dtype=torch.bool)
    counted[place] = True
    for places in windows.draw(20, torch.Generator().manual_seed(0)):
        assert counted[windows.choose(places, counted).slices].sum() == 1


@pytest.mark.parametrize("border", ["none", "mirror"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_of_windows_are_cut_from_the_whole(border, precision):
    """The real teacher; kept answers are cut, others computed."""
    torch.manual_seed(0)
    model = EfficientAD(view=View(64, 80), border=border).eval()
    pixels = random_pixels(3, 64, 80)
    with torch.no_grad(), autocast(CPU, precision):
        whole = model.teacher(model.normalize(model.cut(to_unit_range(pixels)))).float()
    windows = [Cells(0, 2, 8, 6), Cells(0, 6, 8, 6), Cells(0, 3, 8, 6)]
    one_answer = 2 * whole[0].numel()
    spread = whole.std()
    for budget in (0, 1.5 * one_answer, 1e9):
        features = TeacherFeatures(model, budget, CPU, precision)
        found = features(torch.arange(3), pixels, windows)
        for window, expected, cells in zip(found, whole, windows, strict=True):
            difference = (window - expected[(..., *cells.slices)]).abs().max()
            assert difference < (0.004 if precision == "fp32" else 0.03) * spread
        assert len(features) == min(3, budget // one_answer)


@pytest.mark.parametrize("border", ["none", "mirror"])
def test_answers_in_tiles_are_those_of_one_pass(border):
    torch.manual_seed(0)
    model = EfficientAD(view=View(128, 160), border=border).eval()
    pixels, indices = random_pixels(1, 128, 160), torch.tensor([0])
    whole = TeacherFeatures(model, 1e9, CPU, "fp32")(indices, pixels)
    model.most_pixels = 80 * 80
    assert len(model.tiles()) > 3
    kept = TeacherFeatures(model, 1e9, CPU, "fp32")
    tiles = [kept(indices, pixels, [cells]) for cells in model.tiles()]
    for found, cells in zip(tiles, model.tiles(), strict=True):
        torch.testing.assert_close(found, whole[(..., *cells.slices)], rtol=0, atol=0.004 * whole.std().item())


@pytest.mark.parametrize("border", ["none", "mirror"])
@pytest.mark.parametrize("size", [(64, 300), (132, 260)])
def test_losses_of_a_window_are_those_of_its_part_of_the_image(border, size):
    """Student, teacher and autoencoder, computed for the window alone and cut from the whole."""
    torch.manual_seed(0)
    model = EfficientAD(view=View(*size), border=border).eval()
    batch = make_batch(random_pixels(2, *size))
    windows = Windows.of(model.grid, model.margin, 64)
    drawn = windows.draw(2, torch.Generator().manual_seed(0))
    whole, seen = see_whole(model, batch), see_windows(model, batch, windows, drawn)
    assert len(set(seen.windows)) == 2
    cut = [(i, slice(None), *cells.slices) for i, cells in enumerate(seen.windows)]
    with torch.no_grad():
        teacher = model.teacher_features(model.normalize(whole.images))
        student = model.student(model.normalize(whole.images))
        autoencoder = model.autoencode(model.normalize(whole.overview))
        teacher, student, autoencoder = (
            torch.stack([answer[place] for place in cut]) for answer in (teacher, student, autoencoder)
        )
        found = compute_losses(
            model, seen.images, seen.images, teacher, None, overview=seen.overview, places=seen.places
        )
    assert found.ae.item() == pytest.approx((autoencoder - teacher).square().mean().item(), rel=1e-5)
    assert found.stae.item() == pytest.approx((student[:, 384:] - autoencoder).square().mean().item(), rel=1e-5)
    differences = (teacher - student[:, :384]).square().flatten()
    hardest = differences[differences >= differences.quantile(0.999)].mean().item()
    assert found.hard.item() == pytest.approx(hardest, rel=1e-5)


@pytest.mark.parametrize("with_windows", [False, True])
def test_what_does_not_count_changes_no_loss(tiny_networks, with_windows):
    torch.manual_seed(0)
    model = EfficientAD(view=View(128, 128, "fit")).eval()
    pixels = random_pixels(3, 128, 128)
    inspected = torch.zeros(3, 128, 128, dtype=torch.bool)
    inspected[:, :, 40:90] = True
    inspected[1, 60:] = False
    windows = Windows(model.grid, 12, 12)
    drawn = windows.draw(3, torch.Generator().manual_seed(0))

    def losses(change):
        batch = make_batch(pixels, inspected)
        seen = see_windows(model, batch, windows, drawn) if with_windows else see_whole(model, batch)
        with torch.no_grad():
            teacher = model.teacher_features(model.normalize(seen.images))
            teacher = torch.where(seen.counted, teacher, teacher + change)  # as other pixels there would change it
            return torch.stack(
                compute_losses(
                    model, seen.images, seen.images, teacher, None, None, seen.overview, seen.places, seen.counted
                )
            )

    assert torch.equal(losses(0.0), losses(100.0))
    counted = see_whole(model, make_batch(pixels, inspected)).counted
    assert counted.shape == (3, 1, 24, 24) and 0 < counted.sum() < counted.numel()


def test_losses_over_what_counts_are_means_of_it(tiny_networks):
    """Half of an image that does not count: as if there were the other half alone."""
    torch.manual_seed(0)
    model = EfficientAD(view=View(128, 128)).eval()
    teacher, counted = torch.randn(1, 384, 24, 24), torch.zeros(1, 1, 24, 24, dtype=torch.bool)
    counted[..., :12] = True
    images = torch.rand(1, 3, 128, 128)
    overview = model.overview(images)
    with torch.no_grad():
        found = compute_losses(model, images, images, teacher, None, overview=overview, counted=counted)
        student = model.student(model.normalize(images))[..., :12]
        autoencoder = model.autoencode(model.normalize(overview))[..., :12]
        features = model.teacher_features(model.normalize(images))[..., :12]
    assert found.ae.item() == pytest.approx((autoencoder - features).square().mean().item(), rel=1e-5)
    assert found.stae.item() == pytest.approx((student[:, 384:] - autoencoder).square().mean().item(), rel=1e-5)
    differences = (teacher[..., :12] - student[:, :384]).square().flatten()
    hardest = differences[differences >= differences.quantile(0.999)].mean().item()
    assert found.hard.item() == pytest.approx(hardest, rel=1e-5)
