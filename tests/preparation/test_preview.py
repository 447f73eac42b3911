"""prepare_dataset.py --preview: annotations drawn where they belong."""

import numpy as np
import pytest
from PIL import Image

from originals import BOX, Originals, prepare, tree


def test_preview(originals, capsys):
    prepare(*originals.flags(), "--preview", originals.root / "preview")
    assert tree(originals.root / "preview") == ["a.jpg", "b.jpg", "c.jpg", "manifest.csv"]
    with (
        Image.open(originals.root / "preview" / "a.jpg") as drawn,
        Image.open(originals.root / "images/a.png") as image,
    ):
        difference = np.abs(np.asarray(drawn).astype(int) - np.asarray(image)).max(axis=2)
    x, y, width, height = BOX
    assert difference[y + height, x : x + width].min() > 60  # the lower edge of the box
    assert difference[30:, 45:].max() < 60
    prepare(*originals.flags(), "--preview", originals.root / "preview", "--overwrite")


@pytest.mark.parametrize(("size", "box"), [((40, 60), (10, 20, 22, 26)), ((60, 40), (26, 10, 32, 22))])
def test_preview_of_a_turned_image(tmp_path, size, box):
    """Upright it is 40 x 60; annotations that refer to 60 x 40 turn with the picture."""
    made = Originals(tmp_path / "original")
    made.good("1.png", "2.png")
    entry = made.annotated("turned.jpg", 3, bbox=[10, 20, 12, 6] if size == (40, 60) else BOX)
    entry["width"], entry["height"] = size
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), "white").save(made.root / "images" / "turned.jpg", exif=exif)
    prepare(*made.flags(), "--preview", made.root / "preview")
    with Image.open(made.root / "preview" / "turned.jpg") as drawn:
        assert drawn.size == (40, 60)
        pixels = np.asarray(drawn).min(axis=2)
    left, top, right, bottom = box
    assert (pixels[top : bottom + 1, [left, right]] < 128).all()
    assert (pixels[[top, bottom], left : right + 1] < 128).all()


def test_preview_of_twelve_bits_is_not_black(tmp_path):
    made = Originals(tmp_path / "original")
    made.good("1.png", "2.png")
    made.annotated("deep.png", 3, bbox=BOX)
    Image.fromarray(np.full((40, 60), 3900, dtype=np.uint16)).save(made.root / "images" / "deep.png")
    prepare(*made.flags(), "--preview", made.root / "preview")
    with Image.open(made.root / "preview" / "deep.jpg") as drawn:
        assert drawn.getpixel((1, 38))[0] == pytest.approx(255 * 3900 / 4095, abs=6)
