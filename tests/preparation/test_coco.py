import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from efficientad.preparation.coco import read_coco
from efficientad.preparation.shapes import annotation_box, draw_mask
from efficientad.system.errors import UserError

SQUARE = [2, 3, 8, 3, 8, 9, 2, 9]


def coco_file(path, **changes):
    contents = {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 10}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [2, 3, 6, 6]}],
        "categories": [{"id": 7, "name": "dent"}],
    }
    contents.update(changes)
    path.write_text(json.dumps({key: value for key, value in contents.items() if value is not None}))
    return path


def square_mask():
    mask = np.zeros((10, 20), dtype=np.uint8)
    mask[3:9, 2:8] = 255
    return mask


def test_read(tmp_path):
    coco = read_coco(coco_file(tmp_path / "coco.json"))
    assert coco.categories == {7: "dent"}
    (image,) = coco.images
    assert (image.file_name, image.size, len(image.annotations)) == ("a.png", (20, 10), 1)
    assert coco.notes == []


def test_what_many_exports_lack_is_not_needed(tmp_path):
    """No annotation ids, no sizes, no names of categories, a byte order mark, image ids that are texts."""
    path = coco_file(
        tmp_path / "coco.json",
        images=[{"id": "x", "file_name": "a.png"}],
        annotations=[{"image_id": "x", "category_id": 7}, {"image_id": "x", "category_id": 7}],
        categories=[{"id": 7}],
    )
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    coco = read_coco(path)
    assert coco.categories == {7: "7"}
    assert coco.images[0].size is None and len(coco.images[0].annotations) == 2


IMAGE = {"id": 1, "file_name": "a.png"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": None}, "has no categories"),
        ({"categories": []}, "has no categories"),
        ({"images": []}, "has no images"),
        ({"images": {"1": IMAGE}}, "its images are not a list"),
        ({"annotations": [3]}, "its annotations are not a list"),
        ({"images": [IMAGE, {"id": 1, "file_name": "b.png"}]}, "two of its images have the id 1"),
        (
            {"categories": [{"id": 7, "name": "dent"}, {"id": 7, "name": "dust"}]},
            "two of its categories have the id",
        ),
        ({"categories": [{"name": "dent"}]}, "one of its categories has no valid id"),
        ({"images": [{"id": True, "file_name": "a.png"}]}, "one of its images has no valid id"),
        ({"images": [{"id": 1}]}, "image 1 has no file_name"),
        ({"images": [{"id": 1, "file_name": "/"}]}, "image 1 has no file_name"),
        ({"images": [{**IMAGE, "width": 10**6, "height": 10**6}]}, "1000000 x 1000000 pixels"),
        ({"annotations": [{"id": 5, "image_id": 1, "category_id": 8}]}, "annotation 5 has the category_id 8"),
        ({"annotations": [{"id": 5, "image_id": 1}]}, "annotation 5 has the category_id None"),
        ({"annotations": [{"image_id": [1], "category_id": 7}]}, "annotation 1 has no valid image_id"),
        ({"annotations": [{"id": [1], "image_id": 1, "category_id": 7}]}, "an annotation's id is neither"),
        (
            {"annotations": [{"id": 1, "image_id": "2", "category_id": 7}]},
            "no annotation has the image_id",
        ),
    ],
)
def test_files_that_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as raised:
        read_coco(coco_file(tmp_path / "coco.json", **changes))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b'{"images": [', b"\xff\xfe{", b"[" * 100_000, b"[]", b"3"])
def test_broken_json_is_one_line(tmp_path, content):
    path = tmp_path / "coco.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="coco.json is not a (JSON|COCO) file") as raised:
        read_coco(path)
    assert "\n" not in str(raised.value)


def test_missing_file_names_the_flag(tmp_path):
    with pytest.raises(UserError, match="does not exist.*--annotations"):
        read_coco(tmp_path / "coco.json")
    with pytest.raises(UserError, match="is not a file"):
        read_coco(tmp_path)


def test_annotations_of_no_image_could_hide_a_defect(tmp_path):
    annotations = [{"image_id": 1, "category_id": 7}, {"image_id": 99, "category_id": 7}]
    with pytest.raises(UserError, match="1 annotation belongs to no image.*annotation 2 has the image_id 99"):
        read_coco(coco_file(tmp_path / "coco.json", annotations=annotations))


def test_two_annotations_of_one_id_both_count(tmp_path):
    annotations = [{"id": 5, "image_id": 1, "category_id": 7, "bbox": [left, 0, 2, 2]} for left in (0, 9)]
    (image,) = read_coco(coco_file(tmp_path / "coco.json", annotations=annotations)).images
    assert image.annotations == annotations


def run_lengths(mask):
    """Uncompressed: runs of 0 and 1 by turns, column by column."""
    flat = mask.T.ravel() > 0
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def compressed(mask):
    encoded = coco_mask.encode(np.asfortranarray((mask > 0).astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


@pytest.mark.parametrize(
    "annotation",
    [
        {"segmentation": [SQUARE]},
        {"segmentation": run_lengths(square_mask()), "iscrowd": 1},
        {"segmentation": compressed(square_mask())},
        {"bbox": [2, 3, 6, 6]},
        {"bbox": [2.4, 3.7, 5.1, 4.9], "segmentation": []},  # every pixel that the box touches
        {"bbox": [2, 3, 6, 6], "segmentation": [[1, 2, 3]]},
        {"bbox": [2, 3, 6, 6], "segmentation": [[float("nan")] * 6]},
        {"bbox": [2, 3, 6, 6], "segmentation": {"size": [11, 20], "counts": [220]}},
        {"bbox": [2, 3, 6, 6], "segmentation": {"size": [10, 20], "counts": [150, 10**9]}},
        {"bbox": [2, 3, 6, 6], "segmentation": {"size": [10, 20], "counts": [-5, 205]}},
        {"bbox": [2, 3, 6, 6], "segmentation": {"size": [10, 20], "counts": "~~~~"}},
        {"bbox": [2, 3, 6, 6], "segmentation": {"size": [10, 20], "counts": "oooooooooooooooooooo0"}},
        {"bbox": [2, 3, 6, 6], "segmentation": "text"},
    ],
)
def test_segmentations_and_failing_them_boxes(annotation):
    assert (draw_mask([annotation], 20, 10) == square_mask()).all()


def test_random_run_lengths_are_read_as_pycocotools_reads_them():
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(1, 80, 2).tolist()
        mask = (rng.random((height, width)) < rng.random()) * np.uint8(255)
        for segmentation in (compressed(mask), run_lengths(mask)):
            assert (draw_mask([{"segmentation": segmentation}], width, height) == mask).all()


def test_mask_is_the_union():
    other = np.zeros((10, 20), dtype=np.uint8)
    other[0:2, 15:20] = 255
    annotations = [{"segmentation": [SQUARE]}, {"bbox": [15, 0, 5, 2]}, {"segmentation": compressed(other)}]
    assert (draw_mask(annotations, 20, 10) == np.maximum(square_mask(), other)).all()
    assert (draw_mask([], 20, 10) == 0).all()


@pytest.mark.parametrize(
    "box",
    [None, [1, 2, 3], [1, 2, -3, 4], [1, 2, 0, 4], [30, 2, 3, 4], [0, 0, float("nan"), 1], [0, 0, 10**400, 1], "x"],
)
def test_boxes_without_area_mark_nothing(box):
    assert annotation_box({"bbox": box}, 20, 10) is None
    assert (draw_mask([{"bbox": box}], 20, 10) == 0).all()


def test_boxes_are_cut_at_the_image():
    assert annotation_box({"bbox": [-5, -5, 100, 8]}, 20, 10) == (0, 0, 20, 3)


def test_polygons_that_reach_far_out_cost_nothing():
    mask = draw_mask([{"segmentation": [[-1e8, -1e8, 1e8, -1e8, 1e8, 1e8, -1e8, 1e8]]}], 20, 10)
    assert (mask == 255).all()
