"""A detector at sizes of one's own: whole against tiles and windows, the border, and what is not inspected."""

import pytest
import torch

from efficientad.benchmarking import reference
from efficientad.data.views import View
from efficientad.detector.anomaly_maps import RawMaps
from efficientad.detector.grid import Cells
from efficientad.detector.model import MIRROR, NO_BORDER, EfficientAD
from efficientad.training.options import map_weights

SIZES = [(256, 256), (384, 640), (260, 300), (64, 68)]  # 56 x 56, 88 x 152, 57 x 67 and 8 x 9 cells
BORDERS = [NO_BORDER, MIRROR]


def fitted(size=(256, 256), border=NO_BORDER, has_student=True, patches=7):
    torch.manual_seed(0)
    model = EfficientAD("small", View(*size), border, has_student, patches).eval().requires_grad_(False)
    model.teacher_mean.uniform_(-1, 1)
    model.teacher_std.uniform_(0.5, 2)
    model.rim_weights.uniform_(0.3, 0.9)
    model.memory.normal_()
    model.memory_weights.uniform_(0.5, 2)
    model.quantiles.copy_(torch.tensor([[0.1, 0.4], [0.05, 0.3], [0.2, 0.7]]))
    model.map_weights.copy_(torch.tensor(map_weights(has_student, patches > 0)))
    return model


def noise(size, count=1):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


def assert_close(actual, expected, **more):
    torch.testing.assert_close(actual, expected, **{"rtol": 1e-4, "atol": 1e-3, **more})


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("size", SIZES)
def test_maps_equal_the_plain_version(tiny_networks, size, border):
    model, images = fitted(size, border), noise(size)
    maps = model(images)
    assert maps.shape == (1, 1, *size) and maps.dtype == torch.float32
    assert_close(maps[:, 0], reference.anomaly_maps(model, images))
    inspected = torch.rand(1, *size) < 0.7
    assert_close(model(images, inspected)[:, 0], reference.anomaly_maps(model, images, inspected))


@pytest.mark.parametrize("border", BORDERS)
def test_real_networks_equal_the_plain_version_in_one_pass_and_in_tiles(border):
    size = (100, 180)
    model, images = fitted(size, border), noise(size)
    expected = reference.anomaly_maps(model, images)
    model.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    assert_close(model(images)[:, 0], expected)
    model.most_pixels = 7000
    assert len(model.tiles()) > 3
    assert_close(model(images)[:, 0], expected)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("most_pixels", [6_000, 40_000])
def test_tiles_give_the_maps_of_one_pass(tiny_networks, size, border, most_pixels):
    model, images = fitted(size, border), noise(size)
    assert len(model.tiles()) == 1
    whole = model.raw_maps(images)
    model.most_pixels = most_pixels
    if size != (64, 68):
        assert len(model.tiles()) > 1
    for tiled, expected in zip(model.raw_maps(images).local, whole.local, strict=True):
        assert tiled.shape == (1, 1, *model.grid)
        assert (tiled - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_memory_alone_is_tiled_too(tiny_networks):
    model, images = fitted((260, 300), MIRROR, has_student=False), noise((260, 300))
    whole = model.raw_maps(images)
    model.most_pixels = 10_000
    tiled = model.raw_maps(images)
    assert tiled[:2] == whole[:2] == (None, None)
    assert_close(tiled.memory, whole.memory, rtol=1e-5, atol=1e-6)


def test_a_pass_is_bounded_whatever_the_size(tiny_networks):
    size = (2000, 500)
    model = fitted(size, patches=0)
    model.most_pixels = 2**16
    seen = []
    model.teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, 0].numel()))
    assert model(noise(size)).shape == (1, 1, *size)
    assert len(seen) > 15 and max(seen) <= 2**16 and sum(seen) < 2 * 2000 * 500
    assert model.images_per_pass(8) == 1
    assert fitted().images_per_pass(8) == 8 and fitted((512, 512)).images_per_pass(8) == 4


WINDOWS = [Cells(0, 0, 5, 6), Cells(3, 10, 5, 6), Cells(-5, -6, 5, 6)]  # the last one ends where the grid ends


def placed(window, grid):
    top, left = (start % length for start, length in zip(window[:2], grid, strict=True))
    return Cells(top, left, *window[2:])


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("window", WINDOWS)
def test_teacher_features_of_a_window_are_cut_out_of_the_whole(border, window):
    size = (96, 120)
    model, images = fitted(size, border, has_student=False), noise(size)
    cells = placed(window, model.grid)
    whole = model.teacher_features(model.normalize(model.cut(images)))
    part = model.teacher_features(model.normalize(model.cut(images, cells)))
    assert_close(part, whole[(..., *cells.slices)], rtol=1e-5, atol=1e-5)
    pixels = (255 * images).byte()
    assert torch.equal(model.cut(pixels, cells).float(), model.cut(pixels.float())[(..., *cells.pixels)])


@pytest.mark.parametrize("border", BORDERS)
def test_the_autoencoders_answer_for_windows_is_cut_out_of_the_whole(border):
    size = (96, 120)
    model, images = fitted(size, border), noise(size, len(WINDOWS))
    overview = model.normalize(model.overview(images))
    windows = [placed(window, model.grid) for window in WINDOWS]
    whole = model.autoencode(overview)
    assert whole.shape == (len(WINDOWS), 384, *model.grid)
    parts = model.autoencode(overview, model.upsampling.places(windows))
    for answer, part, cells in zip(whole, parts, windows, strict=True):
        assert_close(part, answer[(..., *cells.slices)], rtol=1e-5, atol=1e-6)


def test_the_autoencoder_sees_the_whole_image_at_256(tiny_networks):
    images = noise((384, 640), 2)
    model = fitted((384, 640))
    expected = torch.nn.functional.interpolate(images, (256, 256), mode="bilinear", antialias=True)
    assert_close(model.overview(images), expected, rtol=1e-5, atol=1e-6)
    square = noise((256, 256))
    assert fitted().overview(square) is square


def test_the_border_is_the_mirrored_image(tiny_networks):
    """So what is seen at the edge of an image is what is seen at its place in the image and its mirror images."""
    size = (64, 80)
    model, images = fitted(size, MIRROR), noise(size)
    assert model.grid == (16, 20)
    extended = model.cut(images)
    assert extended.shape[2:] == (96, 112)
    assert torch.equal(extended[..., 16:-16, 16:-16], images)
    assert torch.equal(extended[..., 15, 16:-16], images[..., 1, :])  # the edge itself is not repeated
    assert torch.equal(extended[..., 16:-16, -1], images[..., -17])


def test_a_border_answers_at_the_rim(tiny_networks):
    images = torch.full((1, 3, 256, 256), 0.5)
    spot = images.clone()
    spot[..., 100:108, :6] = 1
    rim = []
    for border in BORDERS:
        model = fitted(border=border, patches=0)
        difference = (model(spot) - model(images)).abs()[0, 0]
        rim.append(difference[100:108, :6].max() / difference.max())
    assert rim[0] < 0.5 < rim[1]


@pytest.mark.parametrize(("border", "first"), [(NO_BORDER, 16), (MIRROR, 0)])
def test_cells_count_by_their_middle(tiny_networks, border, first):
    model = fitted((64, 68), border)
    inspected = torch.zeros(1, 64, 68, dtype=torch.bool)
    assert not model.counted(inspected).any()
    inspected[0, first + 4, first + 8] = True
    inspected[0, first + 5, first + 8] = True  # the middle of none
    assert model.counted(inspected).nonzero().tolist() == [[0, 0, 1, 2]]
    assert model.counted(inspected).shape == (1, 1, *model.grid)
    assert model.counted(torch.ones_like(inspected)).all()


@pytest.mark.parametrize("border", BORDERS)
def test_the_map_is_0_where_nothing_is_inspected(tiny_networks, border):
    size = (128, 160)
    model = fitted(size, border)
    inspected = torch.zeros(1, *size, dtype=torch.bool)
    raw = RawMaps(*(torch.full((1, 1, *model.grid), 9.0) for _ in range(3)))
    assert (model.combine_maps(raw, inspected) == 0).all()
    inspected[:, 40:90, 50:120] = True
    maps = model.combine_maps(raw, inspected)
    assert (maps[0, 0][~inspected[0]] == 0).all() and (maps[0, 0, 44:86, 54:116] > 0).all()
    every = torch.ones_like(inspected)
    assert torch.equal(model.combine_maps(raw, every), model.combine_maps(raw))


@pytest.mark.parametrize("border", BORDERS)
def test_what_is_shown_elsewhere_does_not_change_the_map(tiny_networks, border):
    """Beyond the patches' reach, as far as the networks are local. The autoencoder sees all that a view shows."""
    size = (128, 160)
    model, images = fitted(size, border), noise(size)
    model.map_weights.copy_(torch.tensor([0.5, 0.0, 0.5]))
    inspected = torch.zeros(1, *size, dtype=torch.bool)
    inspected[:, 48:96, 64:128] = True
    changed = images.clone()
    far = torch.ones(size, dtype=torch.bool)
    far[48 - 24 : 96 + 24, 64 - 24 : 128 + 24] = False  # 16, and 4 of the neighbours, 2 x 2 of the memory
    changed[..., far] = 0
    assert_close(model(changed, inspected), model(images, inspected), rtol=0, atol=1e-4)
    assert (model(changed) - model(images)).abs().max() > 1
