"""What a detector sees of an image, and the way of its map back to the image's pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from bad_inputs import READABLE, write_file
from conftest import draw_part, mask_of
from efficientad.data.images import UnreadableImageError, read_image
from efficientad.data.transforms import to_tensor
from efficientad.data.views import FIT, View


def with_dot(size, x, y, radius):
    """A black image with a white square around a pixel."""
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), (x - radius, y - radius, x + radius + 1, y + radius + 1))
    return image


def test_a_stretched_whole_image_is_seen_as_ever():
    image = draw_part(1, size=(300, 170))
    for view in (View(), View(64, 128)):
        resized = image.resize((view.width, view.height), Image.Resampling.BILINEAR)
        pixels = view.pixels(image)
        assert pixels.dtype == torch.uint8 and pixels.shape == (3, *view.size)
        assert torch.equal(pixels, to_tensor(resized))
        assert view.inspected(image.size) is None and view.inspected_in_image(image.size) is None
        assert view.counts_everywhere and view.is_whole


def test_a_map_of_the_whole_image_is_resized_to_it():
    anomaly_map = torch.rand(64, 128)
    expected = torch.nn.functional.interpolate(anomaly_map[None, None], (170, 300), mode="bilinear")[0, 0]
    assert np.array_equal(View(64, 128).to_image(anomaly_map.numpy(), (300, 170)), expected.numpy())


@pytest.mark.parametrize(
    ("size", "box"),  # of the image, and where it is in the input: left, top, right, bottom
    [
        ((100, 50), (0, 32, 128, 96)),
        ((50, 100), (32, 0, 96, 128)),
        ((77, 77), (0, 0, 128, 128)),
        ((400, 100), (0, 48, 128, 80)),
        ((5000, 100), (0, 62, 128, 65)),
    ],
)
def test_a_fitted_image_keeps_its_shape_amid_mirror_images(size, box):
    left, top, right, bottom = box
    image = draw_part(1, size=size)
    view = View(128, 128, FIT)
    pixels = view.pixels(image)
    resized = to_tensor(image.resize((right - left, bottom - top), Image.Resampling.BILINEAR))
    assert torch.equal(pixels[:, top:bottom, left:right], resized)
    assert not view.counts_everywhere and not view.is_whole
    inspected = torch.zeros(128, 128, dtype=torch.bool)
    inspected[top:bottom, left:right] = True
    assert torch.equal(view.inspected(size), inspected)
    assert view.inspected_in_image(size) is None
    for near in range(min(top, bottom - top)):
        assert torch.equal(pixels[:, top - 1 - near], pixels[:, top + near])
        assert torch.equal(pixels[:, bottom + near], pixels[:, bottom - 1 - near])
    for near in range(min(left, right - left)):
        assert torch.equal(pixels[:, :, left - 1 - near], pixels[:, :, left + near])
        assert torch.equal(pixels[:, :, right + near], pixels[:, :, right - 1 - near])


VIEWS = {
    "stretch": View(96, 128),
    "larger": View(512, 640),
    "fit": View(128, 128, FIT),
    "fit upright": View(160, 64, FIT),
    "roi": View(96, 128, roi=(60, 30, 100, 80)),
    "shares": View(96, 128, roi=(0.25, 0.25, 0.5, 0.5)),
    "fit roi": View(128, 96, FIT, (60, 30, 100, 80)),
    "fit shares": View(96, 128, FIT, (0.25, 0.25, 0.5, 0.5)),
}


@pytest.mark.parametrize("ignores", [False, True])
@pytest.mark.parametrize("name", VIEWS)
def test_the_map_lines_up_with_the_image(tmp_path, name, ignores):
    """The brightness of the input, taken as a map, shows a dot where the image does."""
    size, (x, y) = (240, 160), (104, 71)
    view = VIEWS[name]
    if ignores:
        mask = mask_of(tmp_path, (480, 320), (0, 0, 100, 320), (300, 150, 480, 320))
        view = View(*view.size, view.resize, view.roi, mask)
    seen = view.pixels(with_dot(size, x, y, 4))[0].numpy().astype(np.float32)
    mapped = view.to_image(seen, size)
    assert mapped.shape == (160, 240) and mapped.dtype == np.float32
    weights = mapped.clip(130) - 130  # above what is painted over
    rows, columns = np.indices(mapped.shape)
    assert (weights * rows).sum() / weights.sum() == pytest.approx(y, abs=0.6)
    assert (weights * columns).sum() / weights.sum() == pytest.approx(x, abs=0.6)
    assert mapped[y, x] > 150 and mapped[y + 14 :].max() < 130 and mapped[:, : x - 14].max() < 130


@pytest.mark.parametrize("resize", ["stretch", FIT])
def test_the_map_is_0_outside_of_what_is_inspected(tmp_path, resize):
    size = (240, 160)
    view = View(96, 128, resize, (60, 30, 100, 80), mask_of(tmp_path, size, (100, 0, 120, 160)))
    expected = np.zeros((160, 240), dtype=bool)
    expected[30:110, 60:160] = True
    expected[:, 100:120] = False
    assert np.array_equal(view.inspected_in_image(size), expected)
    assert np.array_equal(view.to_image(np.ones((96, 128), dtype=np.float32), size) > 0, expected)
    seen = view.inspected(size).float().numpy()
    overlap = view.to_image(seen, size) > 0.5
    assert (overlap != expected).mean() < 0.02  # but for pixels at the edges


def test_a_region_is_cut_out_before_it_is_resized():
    image = draw_part(1, size=(240, 160))
    part = View(96, 128).pixels(image.crop((60, 30, 160, 110)))
    assert torch.equal(View(96, 128, roi=(60, 30, 100, 80)).pixels(image), part)
    assert torch.equal(View(96, 128, roi=(0.25, 0.1875, 100 / 240, 0.5)).pixels(image), part)
    view = View(96, 128, roi=(60, 30, 100, 80))
    assert view.counts_everywhere and not view.is_whole and view.inspected(image.size) is None


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_region_counts_in_the_upright_image(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    draw_part(1, size=(240, 160)).save(tmp_path / "turned.png", exif=exif)
    image = read_image(tmp_path / "turned.png")
    upright = Image.fromarray(np.asarray(image)[20:120, 10:90])
    assert torch.equal(View(64, 64, roi=(10, 20, 80, 100)).pixels(image), View(64, 64).pixels(upright))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (7, 3)])
@pytest.mark.parametrize("roi", [(0.0, 0.0, 1.0, 1.0), (0.999, 0.999, 0.001, 0.001), (0.3, 0.6, 1e-9, 1e-9)])
def test_shares_are_one_pixel_at_least_of_every_image(size, roi):
    left, top, right, bottom = View(roi=roi).box(size)
    assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
    view = View(64, 64, roi=roi)
    image = Image.new("RGB", size, "red")
    assert (view.pixels(image)[0] == 255).all()
    assert (view.to_image(np.ones((64, 64), dtype=np.float32), size) > 0).sum() == (right - left) * (bottom - top)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 30), (1000, 40)])
def test_small_and_thin_images_can_be_seen(size):
    for view in (View(64, 128), View(64, 128, FIT))[: 1 if 5000 in size else 2]:
        assert (view.pixels(Image.new("RGB", size, "red"))[0] == 255).all()
        assert view.to_image(np.ones(view.size, dtype=np.float32), size).min() == pytest.approx(1)


@pytest.mark.parametrize("name", READABLE)
def test_odd_files_are_seen_or_refused_by_name(tmp_path, name):
    path = write_file(tmp_path, name)
    image = read_image(path)
    mask = mask_of(tmp_path, (60, 40), (0, 0, 30, 40))
    for view in (View(64, 96), View(64, 96, FIT), View(96, 64, FIT, (0, 0, 30, 30)), View(96, 64, ignored=mask)):
        try:
            pixels = view.pixels(image, str(path))
        except UnreadableImageError as error:
            assert view != View(64, 96) and image.size != (60, 40) and error.name == str(path)
        else:
            assert pixels.dtype == torch.uint8 and pixels.shape == (3, *view.size)
            assert view.to_image(np.ones(view.size, dtype=np.float32), image.size).shape == image.size[::-1]


def test_a_region_of_one_pixel():
    view = View(64, 64, roi=(5, 7, 1, 1))
    image = with_dot((20, 20), 5, 7, 0)
    assert (view.pixels(image) == 255).all()
    mapped = view.to_image(np.ones((64, 64), dtype=np.float32), image.size)
    assert np.argwhere(mapped).tolist() == [[7, 5]]


@pytest.mark.parametrize("size", [(159, 400), (400, 109), (1, 1)])
def test_an_image_that_the_region_does_not_fit_is_named(size):
    view = View(roi=(60, 30, 100, 80))
    with pytest.raises(UnreadableImageError) as raised:
        view.pixels(Image.new("RGB", size), "a.png")
    sizes = f"a.png: {size[0]}x{size[1]} pixels, the region of interest ends at 160, 110"
    assert str(raised.value) == f"{sizes}; see --roi of train.py"
    view.pixels(Image.new("RGB", (160, 110)))


def test_an_image_of_another_shape_than_the_mask_is_named(tmp_path):
    view = View(ignored=mask_of(tmp_path, (240, 160), (0, 0, 50, 50)))
    for size in ((240, 160), (480, 320), (120, 80), (241, 160)):
        assert view.inspected(size).shape == (256, 256) and view.pixels(Image.new("RGB", size)) is not None
    for size in ((160, 240), (240, 170), (1, 5000)):
        with pytest.raises(UnreadableImageError) as raised:
            view.pixels(Image.new("RGB", size), "a.png")
        sizes = f"a.png: {size[0]}x{size[1]} pixels, the mask of what is ignored 240x160"
        assert str(raised.value) == f"{sizes}; see --ignore of train.py"


@pytest.mark.parametrize("resize", ["stretch", FIT])
@pytest.mark.parametrize("roi", [None, (60, 30, 100, 80)])
def test_what_is_ignored_cannot_be_seen(tmp_path, resize, roi):
    """Not even by the autoencoder, which sees the whole input, or at the edge, where pixels are blended."""
    image, box = draw_part(1, size=(240, 160)), (90, 40, 131, 77)
    view = View(100, 128, resize, roi, mask_of(tmp_path, (240, 160), box))
    changed = image.copy()
    changed.paste((255, 0, 0), box)
    before = image.tobytes()
    assert torch.equal(view.pixels(image), view.pixels(changed))
    assert image.tobytes() == before
    inspected = view.inspected(image.size)
    open_view = View(100, 128, resize, roi)
    far = torch.nn.functional.max_pool2d(1.0 - inspected[None].float(), 5, 1, 2)[0] == 0
    far &= open_view.inspected(image.size) if resize == FIT else True
    assert torch.equal(view.pixels(image)[:, far], open_view.pixels(image)[:, far])


def test_a_mask_is_scaled_to_the_image(tmp_path):
    view = View(64, 64, ignored=mask_of(tmp_path, (240, 160), (60, 40, 120, 80)))
    for factor in (0.5, 1, 3):
        size = (round(240 * factor), round(160 * factor))
        inspected = view.inspected_in_image(size)
        ignored = np.argwhere(~inspected)
        assert inspected.shape == size[::-1]
        assert ignored.min(axis=0).tolist() == [40 * factor, 60 * factor]
        assert (ignored.max(axis=0) + 1).tolist() == [80 * factor, 120 * factor]
        expected = np.ones((64, 64), dtype=bool)
        expected[16:32, 16:32] = False
        assert np.array_equal(view.inspected(size).numpy(), expected)


def test_an_image_of_which_nothing_is_inspected_is_named(tmp_path):
    size = (240, 160)
    mask = mask_of(tmp_path, size, (50, 20, 180, 120))
    covered = View(96, 128, roi=(60, 30, 100, 80), ignored=mask)
    for view in (covered, View(64, 64, FIT)):
        image = Image.new("RGB", size if view is covered else (3000, 1))
        with pytest.raises(UnreadableImageError) as raised:
            view.pixels(image, "a.png")
        sizes = f"a.png: {image.width}x{image.height} pixels, of which nothing would be inspected"
        assert str(raised.value) == f"{sizes}; see --roi, --ignore and --resize of train.py"
    assert not covered.to_image(np.ones((96, 128), dtype=np.float32), size).any()
