"""COCO files as exporters really write them: read as they are meant, or named; no mask is wrong in silence."""

import gzip
import json
import re
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare_dataset
from conftest import draw_part, fail
from originals import BOX, Originals, prepare, tree

AREA = BOX[2] * BOX[3]
MATCH = "there under another spelling, for example .*--match_names"


def mask_of(made, name="a", folder="set"):
    """The mask as an array, or None if there is none."""
    path = made.root / folder / "ground_truth" / "defect_type_3" / f"{name}_mask.png"
    if not path.exists():
        return None
    with Image.open(path) as mask:
        return np.asarray(mask) > 0


def rectangle(size=(60, 40), box=BOX):
    mask = np.zeros(size[::-1], dtype=bool)
    mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = True
    return mask


@pytest.fixture
def error(made, monkeypatch, capsys):
    """Runs the command to its error and returns that; nothing is left."""

    def run(*words):
        message = fail(monkeypatch, capsys, prepare_dataset, *made.flags(), *words)
        assert not (made.root / "set").exists()
        return message

    return run


class TestIds:
    @pytest.mark.parametrize("convert", [str, float, lambda number: f"{number}.0"])
    def test_ids_of_another_type_are_taken_and_counted(self, made, capsys, convert):
        made.annotated("bare.png")
        made.coco["annotations"][1]["image_id"] = convert(2)
        made.coco["annotations"][0]["category_id"] = convert(3)
        made.coco["categories"][1]["id"] = convert(3)
        prepare(*made.flags(), "--unannotated", "good")
        printed = capsys.readouterr().out
        assert f"in annotations are taken as the numbers that they mean: 1 (first: {convert(2)!r})" in printed
        assert f"are taken as the whole numbers that they mean: 2 (first: {convert(3)!r})" in printed
        names = tree(made.root / "set")
        assert {"test/defect_type_3/a.png", "test/defect_type_3/b.png"} <= set(names)
        assert {Path(name).name for name in names if "/good/" in name} == {"1.png", "2.png", "3.png", "bare.png"}

    def test_numbers_find_images_whose_ids_are_text(self, made):
        for image in made.coco["images"]:
            image["id"] = f"{image['id']:05d}"
        prepare(*made.flags())
        assert (mask_of(made, "b") == rectangle()).all()

    def test_text_ids_that_agree_are_no_oddity(self, made, capsys):
        for entry, key in [(image, "id") for image in made.coco["images"]] + [
            (annotation, "image_id") for annotation in made.coco["annotations"]
        ]:
            entry[key] = f"0{entry[key]}"
        prepare(*made.flags())
        assert "that they mean" not in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("9", "1 annotation belongs to no image of the file (first: annotation 2 has the image_id '9')"),
            ("b.png", "belongs to no image"),
            (2.5, "belongs to no image"),
            (float("nan"), "belongs to no image"),
            (True, "has no valid image_id"),
            ([2], "has no valid image_id"),
            (None, "has no valid image_id"),
        ],
    )
    def test_annotations_of_no_image_end_the_command(self, made, error, value, message):
        made.coco["annotations"][1]["image_id"] = value
        assert message in error("--unannotated", "good")

    def test_ids_that_mean_the_same_are_ambiguous(self, made, error):
        made.coco["images"][1]["id"] = "1"
        assert "ids 1 and '1', which mean the same" in error()
        made.coco["images"][1]["id"] = 2
        made.coco["categories"][0]["id"] = "3"
        assert "categories have the ids '3' and 3, which mean the same" in error()
        made.coco["categories"][0]["id"] = 1
        made.coco["images"][0]["id"], made.coco["images"][1]["id"] = "1", "01"
        assert "belong to no image" in error() or "no annotation has the image_id" in error()

    def test_category_ids_are_numbers(self, made, error):
        made.coco["categories"][0]["id"] = "LED"
        assert "category ids must be whole numbers, here 'LED'" in error()


NESTED = [[10, 8], [22, 8], [22, 14], [10, 14]]
FLAT = [10, 8, 22, 8, 22, 14, 10, 14]


class TestShapes:
    @pytest.mark.parametrize(
        ("segmentation", "note"),
        [
            (NESTED, "Outlines of points [x, y]"),
            ([NESTED], "Outlines of points [x, y]"),
            (FLAT, "Segmentations that are one outline"),
            ([[str(value) for value in FLAT]], "Coordinates that are text"),
        ],
    )
    def test_outlines_of_other_forms_are_read_and_said(self, made, capsys, segmentation, note):
        made.coco["annotations"][0].update(segmentation=segmentation, bbox=[0, 0, 60, 40])
        prepare(*made.flags())
        assert (mask_of(made) == rectangle()).all()
        assert f"{note}" in (printed := capsys.readouterr().out)
        assert ": 1 annotation (first: annotation 1 of a.png)" in printed

    def test_boxes_of_text_are_read_and_said(self, made, capsys):
        for annotation in made.coco["annotations"]:
            annotation["bbox"] = [str(value) for value in BOX]
        prepare(*made.flags())
        assert (mask_of(made) == rectangle()).all()
        assert "Coordinates that are text are read as numbers: 2 annotations" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("segmentation", "why"),
        [
            ({"size": [60, 40], "counts": [100, 20, 2280]}, "width before height"),
            ({"size": [20, 30], "counts": [600]}, "not of the image's size"),
            ({"size": [40, 60], "counts": [5, 5]}, "do not fill the image"),
            ({"rle": [0, 1, 2, 3]}, "perhaps of Label Studio's brush"),
            ([[float("nan")] * 6], "not finite"),
            ([[1, 2, 3, 4, 5, 6, 7]], "odd number"),
            ([[1, 2, 3, 4]], "fewer than three points"),
            ([{"x": 1, "y": 2}], "not a list of numbers"),
            ("text", "neither outlines nor run lengths"),
            ([[1, 1, 5, 5, 9, 9]], "encloses no pixel"),
            ([[0, 0, 60, 1, 0, 1] * 9000], "pixels long"),
        ],
    )
    @pytest.mark.parametrize("box", [BOX, None])
    def test_unreadable_segmentations_are_named(self, made, capsys, segmentation, why, box):
        made.coco["annotations"][0].update(segmentation=segmentation, bbox=box)
        prepare(*made.flags())
        printed = capsys.readouterr().out
        assert why in printed
        if box:
            assert (
                "1 segmentation cannot be read and is drawn as its box (first: annotation 1 of a.png: " in printed
            )
            assert (mask_of(made) == rectangle()).all()
        else:
            assert "1 annotation draws nothing (first: annotation 1 of a.png: " in printed
            assert "1 defective image gets no mask" in printed and mask_of(made) is None
        assert (mask_of(made, "b") == rectangle()).all()

    @pytest.mark.parametrize(
        ("box", "why"),
        [([10, 8, 0, 6], "no area"), ([100, 8, 5, 5], "outside"), (["x", 1, 2, 3], "not four numbers")],
    )
    def test_boxes_that_draw_nothing_are_named(self, made, capsys, box, why):
        for number in range(5):
            made.annotated(f"more_{number}.png", 3)
        made.coco["annotations"][0]["bbox"] = box
        prepare(*made.flags())
        printed = capsys.readouterr().out
        assert "1 annotation draws nothing (first: annotation 1 of a.png: " in printed and why in printed
        assert "1 defective image gets no mask" in printed and str(made.root / "images" / "a.png") in printed
        assert mask_of(made) is None and mask_of(made, "b").sum() == AREA

    def test_outlines_that_are_read_in_part(self, made, capsys):
        made.coco["annotations"][0]["segmentation"] = [FLAT, [1, 2, 3, 4]]
        prepare(*made.flags())
        assert "1 segmentation is read only in part (first: annotation 1 of a.png: " in capsys.readouterr().out
        assert (mask_of(made) == rectangle()).all()

    def test_classes_without_shapes_are_one_line(self, made, capsys):
        for annotation in made.coco["annotations"]:
            annotation.update(bbox=None, segmentation=[])
        prepare(*made.flags())
        printed = capsys.readouterr().out
        assert "2 annotations have neither box nor segmentation and make no masks" in printed
        assert "gets no mask" not in printed and "get no mask" not in printed
        assert not (made.root / "set" / "ground_truth").exists()

    def test_labels_of_the_part_may_be_odd(self, made, capsys):
        made.annotated("good.png", 1, bbox=[0, 0, 1000, 1000], segmentation="text")
        prepare(*made.flags())
        assert "(first" not in capsys.readouterr().out

    def test_relative_coordinates_end_the_command(self, made, error, capsys):
        for number, annotation in enumerate(made.coco["annotations"]):
            annotation["bbox"] = [0.1 * number, 0.2, 0.25, 0.3]
        assert "all 2 annotations lie within 0..1 (first: annotation 1 of a.png): relative" in error()
        for annotation in made.coco["annotations"]:
            annotation.update(bbox=None, segmentation=[[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]])
        assert "relative coordinates?" in error()
        made.coco["annotations"][1].update(bbox=BOX, segmentation=None)
        prepare(*made.flags())
        assert "1 annotation lies within 0..1" in capsys.readouterr().out

    def test_whole_numbers_of_one_pixel_are_not_relative(self, made):
        for annotation in made.coco["annotations"]:
            annotation["bbox"] = [0, 0, 1, 1]
        prepare(*made.flags())
        assert mask_of(made).sum() == 1

    def test_boxes_of_two_corners_end_the_command(self, made, error):
        for annotation in made.coco["annotations"]:
            annotation["bbox"] = [40, 20, 52, 30]
        assert "2 of 2 boxes leave their image" in (message := error()) and "[x1, y1, x2, y2]" in message

    def test_one_box_that_leaves_its_image_is_named(self, made, capsys):
        for number in range(9):
            made.annotated(f"more_{number}.png", 3)
        made.coco["annotations"][0]["bbox"] = [50, 30, 55, 35]
        prepare(*made.flags())
        assert "1 annotation leaves its image (first: annotation 1 of a.png: from (50, 30) to (105, 65)" in (
            capsys.readouterr().out
        )
        assert mask_of(made).sum() == 100

    def test_an_inexact_box_does_not_end_the_command(self, made, capsys):
        for annotation in made.coco["annotations"]:
            annotation["bbox"] = [30, 8, 32, 10]
        prepare(*made.flags())
        assert "2 annotations leave their image" in capsys.readouterr().out

    def test_boxes_that_are_not_drawn_do_not_matter(self, made):
        for annotation in made.coco["annotations"]:
            annotation.update(bbox=[40, 20, 52, 30], segmentation=[FLAT])
        prepare(*made.flags())
        assert (mask_of(made) == rectangle()).all()


def turned(path, orientation, size=(60, 40)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    draw_part(orientation, size=size).save(path, exif=exif)


class TestFrames:
    def exported(self, root, images):
        """A set of photographs: orientation and box of each, and 60 x 40 stored and stated."""
        made = Originals(root / "original")
        made.good("1.png", "2.png")
        for number, (orientation, box) in enumerate(images):
            made.annotated(f"{number}.jpg", 3, bbox=box)
            turned(made.root / "images" / f"{number}.jpg", orientation)
        return made

    def test_upright_boxes_beside_stored_sizes(self, tmp_path, capsys):
        """As Label Studio has it; that of image 1 would fit the stored picture, too."""
        made = self.exported(tmp_path, [(6, [5, 44, 10, 12]), (6, BOX), (8, [2, 50, 9, 9])])
        prepare(*made.flags(), "--preview", made.root / "preview")
        assert (mask_of(made, "0") == rectangle((40, 60), [5, 44, 10, 12])).all()
        assert (mask_of(made, "1") == rectangle((40, 60))).all()
        assert (mask_of(made, "2") == rectangle((40, 60), [2, 50, 9, 9])).all()
        printed = capsys.readouterr().out
        assert "3 images turned by EXIF data (first: 0.jpg)" in printed and "--preview" in printed

    def test_stored_boxes_beside_stored_sizes(self, tmp_path):
        """Then a photograph that stands on its head was annotated as it is stored, too."""
        images = [(6, [45, 8, 12, 6]), (8, BOX), (3, BOX), (2, BOX), (4, BOX), (1, BOX), (5, BOX), (7, BOX)]
        made = self.exported(tmp_path, images)
        prepare(*made.flags(), "--preview", made.root / "preview")
        upright = {
            "0": np.rot90(rectangle(box=[45, 8, 12, 6]), -1),
            "1": np.rot90(rectangle()),
            "2": np.rot90(rectangle(), 2),
            "3": rectangle()[:, ::-1],
            "4": rectangle()[::-1],
            "5": rectangle(),
            "6": rectangle().T,
            "7": np.rot90(rectangle(), 2).T,
        }
        for name, mask in upright.items():
            assert (mask_of(made, name) == mask).all(), name

    def test_boxes_that_fit_both_ways_are_said(self, tmp_path, capsys):
        made = self.exported(tmp_path, [(6, BOX), (3, BOX)])
        prepare(*made.flags())
        assert (mask_of(made, "0") == np.rot90(rectangle(), -1)).all()
        assert (mask_of(made, "1") == rectangle()).all()
        printed = capsys.readouterr().out
        assert "2 images turned by EXIF data" in printed and "would fit the stored and the upright" in printed
        assert "--preview" in printed

    def test_stored_sizes_of_smaller_copies(self, tmp_path):
        made = self.exported(tmp_path, [(6, [20, 4, 8, 2])])
        made.coco["images"][0].update(width=30, height=20)
        prepare(*made.flags())
        assert (mask_of(made, "0") == np.rot90(rectangle(box=[40, 8, 16, 4]), -1)).all()

    @pytest.mark.parametrize("stated", [(1, 1), (640, 640), (40, 60)])
    def test_stated_sizes_that_are_not_the_files(self, made, capsys, stated):
        made.coco["images"][0].update(width=stated[0], height=stated[1])
        prepare(*made.flags())
        assert (mask_of(made) == rectangle()).all()
        assert (
            f"of 1 image do not go with the file (first: a.png: {stated[0]} x {stated[1]}, the file has 60 x 40)"
            in (capsys.readouterr().out)
        )

    def test_annotations_of_a_stretched_copy(self, made, capsys):
        for number, image in enumerate(made.coco["images"]):
            image.update(width=600, height=600)
            made.coco["annotations"][number]["bbox"] = [300, 300, 100, 150]
        prepare(*made.flags())
        assert (mask_of(made) == rectangle(box=[30, 20, 10, 10])).all()
        assert "stretched to the file's size" in capsys.readouterr().out


class TestNames:
    def renamed(self, made, wanted, there):
        """a.png has the name `wanted` in the annotations and `there` in the folder."""
        made.coco["images"][0]["file_name"] = wanted
        target = made.root / "images" / there
        target.parent.mkdir(parents=True, exist_ok=True)
        (made.root / "images" / "a.png").rename(target)

    @pytest.mark.parametrize(
        ("wanted", "there"),
        [
            ("img_1.png", "IMG_1.PNG"),
            ("Capture%20d%C3%A9cran%201.png", "Capture d\u00e9cran 1.png"),
            (unicodedata.normalize("NFC", "f\u00fcr.png"), unicodedata.normalize("NFD", "f\u00fcr.png")),
            (unicodedata.normalize("NFD", "f\u00fcr.png"), unicodedata.normalize("NFC", "f\u00fcr.png")),
            ("https://bucket.example/x/p.png?sig=1/2#top", "p.png"),
            ("p.png", "Train/Data/p.png"),
            ("images/p.png", "p.png"),
            ("/data/upload/p.png", "p.png"),
            ("..\\..\\media\\upload\\4\\p.png", "p.png"),
            ("../elsewhere/p.png", "sub/p.png"),
            ("images\\1/p.png", "p.png"),
            ("100%.png", "sub/100%.png"),
        ],
    )
    def test_other_spellings_are_named_and_taken_with_the_flag(self, made, error, capsys, wanted, there):
        self.renamed(made, wanted, there)
        message = error()
        assert str(made.root / "images" / there) in message and "--match_names takes it" in message
        assert len(message.splitlines()) <= 2
        prepare(*made.flags(), "--match_names")
        assert "1 annotated image is taken by --match_names:\n" in capsys.readouterr().out
        assert f"test/defect_type_3/{Path(there).name}" in tree(made.root / "set")

    def test_missing_images_remain_missing(self, made, error):
        self.renamed(made, "A.PNG", "a.png")
        made.coco["images"][1]["file_name"] = "nowhere.png"
        assert "2 annotated images are missing, but 1 of them there" in error()
        assert "1 annotated image is missing; check" in (message := error("--match_names"))
        assert "nowhere.png" in message

    def test_several_candidates_are_refused(self, made, error):
        self.renamed(made, "c.png", "x/c.png")
        made.image(made.root / "images" / "y" / "c.png", 77)
        assert "1 annotated image is missing; check" in error()
        assert "1 file_name could mean several files" in (message := error("--match_names"))
        assert str(Path("x", "c.png")) in message and str(Path("y", "c.png")) in message

    def test_the_whole_path_precedes_the_name(self, made):
        self.renamed(made, "X/C.png", "x/c.png")
        made.image(made.root / "images" / "y" / "c.png", 77)
        prepare(*made.flags(), "--match_names")
        copied = made.root / "set" / "test" / "defect_type_3" / "c.png"
        assert copied.read_bytes() == (made.root / "images" / "x" / "c.png").read_bytes()

    @pytest.mark.parametrize("inside", [True, False])
    def test_good_images_are_not_taken_for_defective_ones_of_their_name(self, made, monkeypatch, capsys, inside):
        """Unless all images are in one folder."""
        self.renamed(made, "sub/1.png", "1.png")
        (made.root / "images" / "1.png").unlink()
        folder = made.root / "images" / "normal"
        (made.root / "normal").rename(folder)
        flags = [*made.flags(), "--match_names"]
        flags[5] = folder if inside else made.root / "images"
        if inside:
            assert "1 annotated image is missing; check" in fail(monkeypatch, capsys, prepare_dataset, *flags)
        else:
            prepare(*flags)
            assert "test/defect_type_3/1.png" in tree(made.root / "set")

    def test_a_file_that_two_entries_mean_is_refused(self, made, error):
        made.coco["images"][0]["file_name"] = "B.png"
        (made.root / "images" / "a.png").unlink()
        assert "1 file is meant by two entries" in error("--match_names")

    def test_nothing_outside_the_folder_is_ever_taken(self, made, error):
        made.image(made.root / "secret.png", 5)
        made.coco["images"][0]["file_name"] = "../secret.png"
        assert "1 file_name is outside" in error("--match_names", "--skip_missing")


class TestFiles:
    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
    def test_unicode_of_any_kind_is_read(self, made, encoding):
        flags = made.flags()
        made.coco["categories"][1]["name"] = "Kratzer \u00fc \u5212\u75d5"
        (made.root / "instance.json").write_bytes(json.dumps(made.coco, ensure_ascii=False).encode(encoding))
        prepare(*flags)
        assert mask_of(made).sum() == AREA

    @pytest.mark.parametrize(
        ("contents", "message"),
        [
            (gzip.compress(b"{}", mtime=0), "compressed with gzip"),
            (b'{"name": "Kr\xe4tzer"}', "text is not in UTF-8; save it again in UTF-8"),
            ('{"name": "\u5212\u75d5"}'.encode("gbk"), "it may be in GBK"),
            (b"\x96\0\1", "neither text in UTF-8 nor in UTF-16"),
            (b"<annotation><filename>a.png</filename></annotation>", "XML as of Pascal VOC"),
            (b"<?xml version='1.0'?><annotations/>", "it is XML;"),
            (b"0 0.5 0.5 0.25 0.25\n1 0.1 0.25 0.5 0.0625\n", "a label file of YOLO"),
            (b"0 0.1 0.1 0.5 0.1 0.5 0.5\n", "a label file of YOLO"),
            (b'{"image": "a.png"}\n{"image": "b.png"}\n', "one JSON document a line"),
            (b'{"shapes": [], "imagePath": "a.png"}', "is a labelme file.*labelme2coco.py"),
            (b'{"a.png1": {"filename": "a.png", "regions": []}}', "VGG Image Annotator"),
            (b'{"_via_settings": {}, "_via_img_metadata": {}}', "VGG Image Annotator"),
            (b'[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]', "COCO results"),
            (b'[{"id": 1, "data": {}, "annotations": []}]', "Label Studio's own JSON"),
            (b"[]", "is not a COCO file"),
            (b'{"a": 1}', "is not a COCO file"),
            (b"\x89PNG\r\n\x1a\n", "it is an image"),
        ],
    )
    def test_other_files_are_named_as_what_they_are(self, made, monkeypatch, capsys, contents, message):
        flags = made.flags()
        (made.root / "instance.json").write_bytes(contents)
        line = fail(monkeypatch, capsys, prepare_dataset, *flags)
        assert re.search(message, line) and len(line.splitlines()) == 1

    def test_archives_and_folders(self, made, monkeypatch, capsys):
        flags = made.flags()
        with zipfile.ZipFile(made.root / "export.zip", "w") as archive:
            archive.write(made.root / "instance.json", "result.json")
        (made.root / "export.zip").replace(made.root / "instance.json")
        assert "is a ZIP archive; unpack it" in fail(monkeypatch, capsys, prepare_dataset, *flags)
        flags = made.flags()
        flags[1] = made.root
        message = fail(monkeypatch, capsys, prepare_dataset, *flags)
        assert "not a file but a folder" in message and str(made.root / "instance.json") in message


class TestCategories:
    @pytest.mark.parametrize("name", ["OK ", "no defect", "No_Defect", "Normal", "PASS", "defect-free"])
    def test_good_parts_by_other_names(self, made, name):
        made.coco["categories"].append({"id": 20, "name": name})
        made.annotated("fine.png", 20)
        prepare(*made.flags())
        names = tree(made.root / "set")
        assert any(entry.endswith("good/fine.png") for entry in names)
        assert not any("defect_type_20" in entry for entry in names)

    def test_a_defect_folder_never_has_the_name_of_good_parts(self, made, capsys):
        made.coco["categories"][1]["name"] = "no defect"
        prepare(*made.flags(), "--normal_categories", "--folder_names", "name")
        assert "test/no defect_3/a.png" in tree(made.root / "set")
        assert "no defect is no defect_3" in capsys.readouterr().out

    def test_a_root_of_other_categories_is_no_defect(self, made, capsys):
        made.coco["categories"] = [
            {"id": 0, "name": "defects", "supercategory": "none"},
            {"id": 3, "name": "dust", "supercategory": "defects"},
            {"id": 4, "name": "dent", "supercategory": "dent"},
        ]
        prepare(*made.flags())
        assert (
            "Every category but defects (0), which only groups others, counts as a defect"
            in capsys.readouterr().out
        )
        assert not any("defect_type_0" in name for name in tree(made.root / "set"))

    def test_names_that_share_a_folder_get_their_ids(self, made, capsys):
        made.coco["categories"] = [{"id": 3, "name": "a / b"}, {"id": 4, "name": "a \\ b"}]
        made.annotated("c.png", 4)
        prepare(*made.flags(), "--folder_names", "name")
        assert {"test/a _ b_3/a.png", "test/a _ b_4/c.png"} <= set(tree(made.root / "set"))
        assert "name is not unique or not possible:\n  a / b is a _ b_3" in capsys.readouterr().out
