"""Large JPEGs are decoded at a part of their size where the networks see about the same."""

import io

import numpy as np
import pytest
from PIL import Image

from conftest import draw_part, mask_of
from efficientad.data.depth import Depth
from efficientad.data.images import decode_at_least
from efficientad.data.views import FIT, View

SIZE = (1100, 1024)  # of the images; an eighth of it would do for 32 x 32
SEEN = View(64, 64, depth=Depth())


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def textures():
    rng = np.random.default_rng(5)
    columns, rows = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    yield "part", np.asarray(draw_part(3, size=SIZE).convert("L"))
    yield "noise", rng.integers(0, 256, columns.shape)
    yield "chess board", 255 * ((columns + rows) % 2)
    yield "lines", np.where((columns // 2 + rows // 3) % 2, 220, 40)
    yield "dots", np.where((columns % 37 < 3) & (rows % 41 < 3), 255, 90)
    yield "edges", np.where((columns // 100 + rows // 90) % 2, 250, 5)


TEXTURES = {name: Image.fromarray(gray.astype(np.uint8)).convert("RGB") for name, gray in textures()}


@pytest.mark.parametrize("kind", TEXTURES)
@pytest.mark.parametrize("view", [SEEN, View(64, 96, depth=Depth()), View(64, 64, FIT, depth=Depth())])
def test_the_input_is_about_that_of_the_whole_image(kind, view):
    data = jpeg(TEXTURES[kind])
    whole = decode_at_least(data, "x", None, Depth()).image
    expected = view.pixels(whole, "x").numpy().astype(int)
    image, size = view.decode(data, "x")
    assert size == whole.size == SIZE and image.width <= SIZE[0] / 2
    assert image.width >= 4 * view.width and image.height >= 4 * view.height
    difference = np.abs(view.pixels(image, "x", size).numpy() - expected)
    assert difference.max() <= 4 and difference.mean() <= 0.8


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_turned_and_other_jpegs(mode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = TEXTURES["edges"].crop((0, 0, 1100, 600)).convert(mode)
    data = jpeg(image, exif=exif)
    view = View(64, 128, depth=Depth())
    whole = decode_at_least(data, "x", None, Depth()).image
    reduced, size = view.decode(data, "x")
    assert size == whole.size == ((1100, 600) if orientation < 5 else (600, 1100))
    assert reduced.mode == "RGB" and reduced.size == ((550, 300) if orientation < 5 else whole.size)
    difference = np.abs(view.pixels(reduced, "x", size).numpy().astype(int) - view.pixels(whole, "x").numpy())
    assert difference.max() <= 4


def test_of_two_frames_the_first_is_reduced():
    buffer = io.BytesIO()
    TEXTURES["edges"].save(buffer, "MPO", save_all=True, append_images=[TEXTURES["noise"]])
    image, size = SEEN.decode(buffer.getvalue(), "x")
    assert size == SIZE and image.width < SIZE[0]
    whole = SEEN.pixels(TEXTURES["edges"], "x").numpy().astype(int)
    assert np.abs(SEEN.pixels(image, "x", size).numpy() - whole).max() <= 6


def test_what_needs_the_whole_image_gets_it(tmp_path):
    data = jpeg(TEXTURES["noise"])
    whole = decode_at_least(data, "x", None).image.tobytes()
    mask = mask_of(tmp_path, SIZE, (0, 0, 9, 9))
    for view in (
        View(64, 64),  # of a model from before
        View(64, 64, roi=(0.0, 0.0, 0.5, 0.5), depth=Depth()),
        View(64, 64, ignored=mask, depth=Depth()),
        View(256, 256, depth=Depth()),
    ):
        image, size = view.decode(data, "x")
        assert image.tobytes() == whole and size == SIZE
    assert SEEN.decode_whole(data, "x").tobytes() == whole
    small = jpeg(TEXTURES["noise"].resize((500, 500)))
    assert SEEN.decode(small, "x").image.size == (500, 500)
    png = io.BytesIO()
    TEXTURES["noise"].save(png, "PNG")
    assert SEEN.decode(png.getvalue(), "x").image.size == SIZE
