"""prepare_dataset.py --annotations none: masks that come with the images, and what else lies in the folders."""

import numpy as np
import pytest
from PIL import Image

import prepare_dataset
from conftest import draw_part, fail
from efficientad.data.datasets import find_test_samples, open_dataset
from efficientad.data.labels import is_good_name
from efficientad.evaluation.masks import find_masks
from originals import Originals, prepare, tree

WHITE = (10, 8, 22, 14)


@pytest.fixture
def folders(tmp_path):
    made = Originals(tmp_path / "original")
    made.good("1.png", "2.png", "3.png")
    for name in ("dent/1.jpg", "dent/deep/1.jpg", "dust/2.png", "dust/3.jpg", "loose.png"):
        made.image(made.root / "defects" / name, len(name))
    return made


def flags(made, *more):
    return [
        *("--annotations", "none", "--unlabeled_dir", made.root / "normal", "--defect_dir", made.root / "defects"),
        *("--output_dir", made.root / "set", *more),
    ]


def write_mask(path, mode="L", value=255, size=(60, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.new(mode, size)
    mask.paste(value, WHITE)
    mask.save(path)


def read(path):
    with Image.open(path) as mask:
        assert mask.mode == "L"
        return np.asarray(mask)


def expected():
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[8:14, 10:22] = 255
    return mask


def test_masks_are_found_by_the_images_path(folders, capsys):
    masks = folders.root / "masks"
    write_mask(masks / "dent" / "1_mask.png")
    write_mask(masks / "dent" / "deep" / "1.jpg.png", value=1)
    write_mask(masks / "dust" / "2.bmp", mode="RGB", value=(0, 7, 0))
    write_mask(masks / "dust" / "3_label.tiff", mode="1", value=1)
    write_mask(masks / "good" / "1.png")
    prepare(*flags(folders, "--mask_dir", masks))
    output = folders.root / "set"
    names = [name for name in tree(output) if name.startswith("ground_truth")]
    assert names == [
        "ground_truth/dent/1_2_mask.png",
        "ground_truth/dent/1_mask.png",
        "ground_truth/dust/2_mask.png",
        "ground_truth/dust/3_mask.png",
    ]
    for name in names:
        assert (read(output / name) == expected()).all(), name
    printed = capsys.readouterr().out
    assert "4 of 5 defective images have a mask; without one, and left out of pixel metrics: 1\n" in printed
    assert str(folders.root / "defects" / "loose.png") in printed
    assert f"1 mask belongs to no image and is not used:\n  {masks / 'good' / '1.png'}" in printed
    dataset = open_dataset("custom", output, "")
    found, _ = find_masks(dataset, find_test_samples(dataset).samples)
    assert sum(masks.own is not None for masks in found.samples.values()) == 4
    prepare(*flags(folders, "--overwrite"))
    assert not [name for name in tree(output) if name.startswith("ground_truth")]


@pytest.mark.parametrize("size", [(60, 40), (40, 60)])
def test_masks_of_a_turned_photograph(folders, size):
    exif = Image.Exif()
    exif[0x0112] = 6
    draw_part(1).save(folders.root / "defects" / "dent" / "1.jpg", exif=exif)
    write_mask(folders.root / "masks" / "dent" / "1.png", size=size)
    prepare(*flags(folders, "--mask_dir", folders.root / "masks"))
    found = read(folders.root / "set" / "ground_truth" / "dent" / "1_mask.png")
    upright = np.zeros((60, 40), dtype=np.uint8)
    upright[8:14, 10:22] = 255
    assert (found == (np.rot90(expected(), -1) if size == (60, 40) else upright)).all()


def test_masks_may_lie_among_the_images(folders, capsys):
    write_mask(folders.root / "defects" / "masks" / "dust" / "2.png")
    prepare(*flags(folders, "--mask_dir", folders.root / "defects" / "masks"))
    names = tree(folders.root / "set")
    assert "ground_truth/dust/2_mask.png" in names and not any("test/masks" in name for name in names)


def test_empty_masks_are_named_and_not_written(folders, capsys):
    write_mask(folders.root / "masks" / "dust" / "2.png", value=0)
    prepare(*flags(folders, "--mask_dir", folders.root / "masks"))
    printed = capsys.readouterr().out
    assert "1 defective image gets no mask, since nothing is marked" in printed
    assert not (folders.root / "set" / "ground_truth").exists()


def test_masks_that_cannot_be_right_are_refused(folders, monkeypatch, capsys):
    masks = folders.root / "masks"

    def error(*more):
        return fail(monkeypatch, capsys, prepare_dataset, *flags(folders, "--mask_dir", masks, *more))

    assert "--mask_dir" in error()
    write_mask(masks / "other" / "2.png")
    assert "none of the 1 image" in (message := error()) and "dent/1_mask.png" in message
    write_mask(masks / "dust" / "2.png", size=(30, 20))
    assert "1 mask does not have the size of its image" in (message := error())
    assert f"{masks / 'dust' / '2.png'} is 30 x 20" in message and "is 60 x 40" in message
    write_mask(masks / "dust" / "2.png")
    write_mask(masks / "dust" / "2_mask.png")
    assert "an image has one mask" in error()
    (masks / "dust" / "2_mask.png").unlink()
    folders.image(folders.root / "defects" / "dust" / "2.jpg", 4)
    assert "a mask one image" in error()
    (folders.root / "defects" / "dust" / "2.jpg").unlink()
    (masks / "dust" / "2.png").write_bytes((masks / "dust" / "2.png").read_bytes()[:60])
    assert "cannot read 1 image" in error()
    masks = folders.root / "defects"
    assert "must be different folders" in error()
    assert "give their folder with --defect_dir" in fail(
        monkeypatch, capsys, prepare_dataset, *folders.flags(), "--mask_dir", masks
    )
    assert not (folders.root / "set").exists()


@pytest.mark.parametrize("name", ["good", "OK", "normal", "no_defect", "Defect-Free"])
def test_good_parts_among_the_defects_are_refused(folders, monkeypatch, capsys, name):
    assert is_good_name(name) and not is_good_name(f"{name}2")
    folders.image(folders.root / "defects" / name / "9.png", 9)
    message = fail(monkeypatch, capsys, prepare_dataset, *flags(folders))
    assert "is among the defects" in message and name in message


def test_files_that_are_no_images_and_flags_that_do_nothing_are_said(folders, capsys):
    (folders.root / "defects" / "dent" / "notes.txt").write_text("x")
    (folders.root / "normal" / "scan.pdf").write_text("x")
    (folders.root / "normal" / "scan2.pdf").write_text("x")
    prepare(*flags(folders, "--labeled_dir", folders.root / "images"))
    printed = capsys.readouterr().out
    assert f"--defect_dir: 1 file is no image: {folders.root / 'defects' / 'dent' / 'notes.txt'}" in printed
    assert "--unlabeled_dir: 2 files are no images: .pdf (2)" in printed
    assert "Without annotations --labeled_dir changes nothing" in printed
    prepare(*flags(folders, "--overwrite"))
    assert "--labeled_dir" not in capsys.readouterr().out
