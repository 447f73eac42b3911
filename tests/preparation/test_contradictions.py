"""COCO files that contradict themselves or their images: refused, or named, and no defect passes as good."""

import pytest

import prepare_dataset
from conftest import fail
from originals import BOX, prepare, tree


@pytest.mark.parametrize("place", ["annotation", "images"])
def test_annotations_in_another_place_are_not_overlooked(made, monkeypatch, capsys, place):
    annotations = made.coco.pop("annotations")
    if place == "images":
        for image, annotation in zip(made.coco["images"], annotations, strict=True):
            image["objects"] = [annotation]
    else:
        made.coco[place] = annotations
    message = fail(monkeypatch, capsys, prepare_dataset, *made.flags(), "--unannotated", "good")
    where = "annotation" if place == "annotation" else "objects of an image"
    assert f"no annotations where COCO has them, but in '{where}'" in message
    assert not (made.root / "set").exists()


def test_a_file_without_annotations_may_list_good_images(made):
    del made.coco["annotations"]
    prepare(*made.flags(), "--unannotated", "good")
    assert not any("defect" in name for name in tree(made.root / "set"))


def second_entry(made, name, **changes):
    image = made.coco["images"][0]
    made.coco["images"].append({**image, "id": 99, "file_name": name, **changes})
    made.coco["annotations"].append({**made.coco["annotations"][0], "id": 99, "image_id": 99})


def test_two_ways_to_one_file_are_one_image(made):
    (made.root / "images" / "x").mkdir()
    second_entry(made, "x/../a.png")
    prepare(*made.flags())
    assert [name for name in tree(made.root / "set") if name.startswith("test/defect")] == [
        "test/defect_type_3/a.png",
        "test/defect_type_3/b.png",
    ]


def test_entries_of_one_file_with_different_sizes_are_refused(made, monkeypatch, capsys):
    made.coco["images"][0].update(width=60, height=40)
    second_entry(made, "a.png", width=120, height=80)
    message = fail(monkeypatch, capsys, prepare_dataset, *made.flags())
    assert "1 image with several entries of different sizes" in message and "a.png" in message


def test_outlines_away_from_their_box_are_named(made, capsys):
    left, top, width, height = BOX
    made.coco["annotations"][0]["segmentation"] = [[left, top, left + width, top, left + width, top + height]]
    prepare(*made.flags())
    assert "not touch" not in capsys.readouterr().out
    made.coco["annotations"][1]["segmentation"] = [[0, 38, 3, 38, 3, 40, 0, 40]]
    prepare(*made.flags(), "--overwrite")
    assert "1 segmentation does not touch the box of its annotation (first: annot" in capsys.readouterr().out


def test_a_stated_size_of_another_scale_is_told(made, capsys):
    for image in made.coco["images"]:
        image.update(width=120, height=80)
    prepare(*made.flags())
    printed = capsys.readouterr().out
    assert "The stated size of 2 images is another one than the file's (first: a.png: 120 x 80, the file" in printed


def test_rotated_boxes_are_told(made, capsys):
    made.coco["annotations"][0]["attributes"] = {"rotation": 0.0}
    made.coco["annotations"][1]["attributes"] = {"rotation": 45.0}
    prepare(*made.flags())
    assert "1 box has a rotation and is drawn without it (first: annotation 2 of b.png)" in capsys.readouterr().out
