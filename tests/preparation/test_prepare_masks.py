"""The masks that prepare_dataset.py draws from annotations."""

import numpy as np
import pytest
from PIL import Image

from conftest import draw_part
from originals import Originals, prepare


def test_masks_are_the_union_of_all_defects_and_of_nothing_else(originals):
    """b.png has a second defect, elsewhere; a.png has an LED all over it."""
    originals.coco["annotations"][2]["bbox"] = [40, 20, 5, 5]
    originals.coco["annotations"][0]["bbox"] = [0, 0, 60, 40]
    prepare(*originals.flags())
    expected = np.zeros((40, 60), dtype=np.uint8)
    expected[8:14, 10:22] = 255
    folder = originals.root / "set" / "ground_truth"
    with Image.open(folder / "defect_type_3" / "a_mask.png") as mask:
        assert mask.mode == "L" and (np.asarray(mask) == expected).all()
    expected[20:25, 40:45] = 255
    for name in ("defect_type_3", "defect_type_12"):
        with Image.open(folder / name / "b_mask.png") as mask:
            assert (np.asarray(mask) == expected).all()


@pytest.mark.parametrize("stated", ["upright", "as stored", "not at all"])
def test_masks_fit_the_upright_image(tmp_path, stated):
    """A camera on its side: 60 x 40 are stored and 40 x 60 shown; annotation tools differ."""
    made = Originals(tmp_path / "original")
    made.good("1.png", "2.png")
    entry = made.annotated("turned.jpg", 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    draw_part(1).save(made.root / "images" / "turned.jpg", exif=exif)
    entry["width"], entry["height"] = {"upright": (40, 60), "as stored": (60, 40), "not at all": (None, None)}[
        stated
    ]
    prepare(*made.flags())
    with Image.open(made.root / "set/ground_truth/defect_type_3/turned_mask.png") as mask:
        found = np.asarray(mask)
    expected = np.zeros((60, 40), dtype=np.uint8)
    if stated == "as stored":
        stored = np.zeros((40, 60), dtype=np.uint8)
        stored[8:14, 10:22] = 255
        expected = np.rot90(stored, -1)
    else:
        expected[8:14, 10:22] = 255
    assert (found == expected).all()


def test_masks_of_annotations_on_a_smaller_copy_are_enlarged(tmp_path):
    made = Originals(tmp_path / "original")
    made.good("1.png", "2.png")
    entry = made.annotated("big.png", 3, size=(120, 80))
    entry["width"], entry["height"] = 60, 40
    prepare(*made.flags())
    with Image.open(made.root / "set/ground_truth/defect_type_3/big_mask.png") as mask:
        assert mask.size == (120, 80) and mask.getbbox() == (20, 16, 44, 28)
