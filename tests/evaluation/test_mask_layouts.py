"""Masks that are named, placed or drawn otherwise than usual: taken where that is clear, else told."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientad.data.datasets import Dataset, Sample, find_test_samples
from efficientad.evaluation.localization import Localization
from efficientad.evaluation.mask_values import describe_values, read_mask
from efficientad.evaluation.masks import find_masks
from efficientad.evaluation.pixel_metrics import PixelMetrics

SIZE = (40, 30)  # width, height
UPRIGHT = {"dent/a": (3, 2, 9, 8), "dent/b": (20, 10, 30, 14), "scratch/c": (0, 12, 25, 15)}  # corners of defects


def box(left, top, right, bottom):
    mask = np.zeros(SIZE[::-1], dtype=np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def root(tmp_path):
    for seed, name in enumerate(["good/g.png", *(f"{name}.png" for name in UPRIGHT)]):
        save(tmp_path / "test" / name, np.random.default_rng(seed).integers(0, 255, (*SIZE[::-1], 3), np.uint8))
    return tmp_path


def find(root):
    dataset = Dataset("custom", root)
    return find_masks(dataset, find_test_samples(dataset).samples)


def measure(root) -> tuple[PixelMetrics, list[str]]:
    """The pixel metrics of the same random maps."""
    masks, notes = find(root)
    localization = Localization(masks)
    for seed, sample in enumerate(masks.samples):
        anomaly_map = np.random.default_rng(seed).normal(size=SIZE[::-1]).astype(np.float32)
        localization.add(sample, localization.count(sample, anomaly_map))
    return localization.metrics(), notes


def write_masks(root, name="ground_truth/{}_mask.png", draw=lambda mask: mask):
    for image, corners in UPRIGHT.items():
        save(root / name.format(image), draw(box(*corners)))


def remove_masks(root):
    for path in root.glob("ground_truth/**/*.*"):
        path.unlink()


@pytest.fixture
def usual(root):
    """The metrics of masks as they should be, which are then removed."""
    write_masks(root)
    metrics, notes = measure(root)
    assert notes == []
    remove_masks(root)
    for folder in sorted(root.glob("ground_truth/**/"), reverse=True):
        folder.rmdir()
    return metrics


@pytest.mark.parametrize(
    "name",
    ["{}.png", "{}_mask.bmp", "{}.png.png", "{}.png_mask.png", "{}_label.png", "{}_gt.tif", "{}_mask.webp"],
)
def test_names_of_masks(root, usual, name):
    draw = (lambda mask: np.stack([mask] * 3, axis=-1)) if name.endswith("webp") else lambda mask: mask
    if name.endswith("webp"):
        for image, corners in UPRIGHT.items():
            (root / "ground_truth" / image).parent.mkdir(parents=True, exist_ok=True)
            path = root / "ground_truth" / name.format(image)
            Image.fromarray(draw(box(*corners))).save(path, lossless=True)
    else:
        write_masks(root, f"ground_truth/{name}", draw)
    assert measure(root) == (usual, [])


@pytest.mark.parametrize("folder", ["masks", "mask", "Masks", "Ground Truth", "ground-truth", "GT"])
def test_names_of_the_folder(root, usual, folder):
    write_masks(root, folder + "/{}.png")
    assert measure(root) == (usual, [f"masks are taken from {root / folder}"])


def test_two_folders_of_masks_are_not_chosen_from(root, usual):
    write_masks(root, "masks/{}.png")
    write_masks(root, "gt/{}.png")
    masks, notes = find(root)
    assert masks is None
    assert notes == [f"{root} has several folders of masks, gt and masks: none is used; name one ground_truth"]
    write_masks(root)  # whose name is clear
    assert measure(root) == (usual, [])


def test_class_folders_in_another_letter_case(root, usual):
    write_masks(root)
    (root / "ground_truth" / "dent").rename(root / "ground_truth" / "DENT")
    assert measure(root) == (usual, [f"{root / 'ground_truth' / 'DENT'} is taken as the masks of dent"])


def test_masks_without_class_folders(root, usual):
    for image, corners in UPRIGHT.items():
        save(root / "ground_truth" / f"{Path(image).name}_mask.png", box(*corners))
    save(root / "ground_truth" / "g.png", box(0, 0, 0, 0))  # of a good image, which needs none
    assert measure(root) == (usual, [f"3 masks in no class folder of {root / 'ground_truth'} taken by name"])


def test_masks_without_class_folders_that_suit_two_images(root):
    save(root / "test" / "scratch" / "a.png", np.full((*SIZE[::-1], 3), 7, np.uint8))
    for name in ("a", "b"):
        save(root / "ground_truth" / f"{name}.png", box(0, 0, 3, 3))
    masks, notes = find(root)
    assert {sample.image_name for sample, known in masks.samples.items() if known.own} == {"b.png"}
    folder = root / "ground_truth"
    assert notes == [
        f"1 mask in no class folder of {folder} taken by name",
        f"1 file in {folder} is not clearly the mask of one defective test image, for example {folder / 'a.png'}; "
        "see Masks in dataset/README.md for the names",
    ]


def test_a_usual_name_comes_before_another_image_that_it_might_suit(root):
    """ "a_gt.png" may be the mask of the image a_gt, or of the image a."""
    save(root / "test" / "dent" / "a_gt.png", np.full((*SIZE[::-1], 3), 7, np.uint8))
    save(root / "ground_truth" / "dent" / "a_gt.png", box(0, 0, 3, 3))
    masks, notes = find(root)
    assert {sample.image_name for sample, known in masks.samples.items() if known.own} == {"a_gt.png"}
    assert notes == []


def test_files_that_are_no_masks_of_test_images_are_counted(root):
    write_masks(root)
    folder = root / "ground_truth"
    for name in ("dent/z_mask.png", "hole/a_mask.png", "hole/b_mask.png"):
        save(folder / name, box(0, 0, 3, 3))
    save(folder / "good" / "g_mask.png", box(0, 0, 0, 0))
    (folder / "dent" / "a.json").write_text("{}")
    masks, notes = find(root)
    assert sum(known.own is not None for known in masks.samples.values()) == 3
    assert notes == [
        f"3 files in {folder} are not clearly the mask of one defective test image, for example "
        f"{folder / 'dent' / 'z_mask.png'}; see Masks in dataset/README.md for the names",
        f"1 file is no image: {folder / 'dent' / 'a.json'}",
    ]


def test_no_mask_at_all_is_told(root):
    save(root / "ground_truth" / "dent" / "unknown.png", box(0, 0, 3, 3))
    masks, notes = find(root)
    assert masks is None and "1 file in" in notes[0]


def soft(mask):
    """With gray edges, as painting programs leave them."""
    blurred = mask.copy()
    blurred[1:][(mask[:-1] == 255) & (mask[1:] == 0)] = 60
    return blurred


@pytest.mark.parametrize("kind", ["255", "labels", "rgb", "one_bit", "soft", "jpg"])
def test_inverted_masks(root, usual, kind):
    name = "ground_truth/{}_mask.png"
    if kind == "soft":
        write_masks(root, draw=soft)
        usual, _ = measure(root)
        remove_masks(root)
        write_masks(root, draw=lambda mask: 255 - soft(mask))
    elif kind == "jpg":
        for image, corners in UPRIGHT.items():
            path = root / f"ground_truth/{image}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 - box(*corners)).save(path, quality=80)
    else:
        draw = {
            "255": lambda mask: 255 - mask,
            "labels": lambda mask: 1 - mask // 255,
            "rgb": lambda mask: np.stack([255 - mask] * 3, axis=-1),
            "one_bit": lambda mask: mask == 0,
        }[kind]
        write_masks(root, name, draw)
    metrics, notes = measure(root)
    assert metrics == usual
    assert notes == [
        "3 of 3 masks looked at mark more than half of their image and its border: all masks are taken as "
        "inverted, defects black on white"
    ]


def test_an_inverted_mask_in_the_report_is_upright(root):
    write_masks(root, draw=lambda mask: 255 - mask)
    masks, _ = find(root)
    shown = {sample.image_name: masks.values(sample) for sample in masks.samples}
    assert (shown["a.png"][0] == (box(*UPRIGHT["dent/a"]) > 0)).all() and shown["g.png"] == []


def test_large_defects_are_not_inverted(root):
    large = box(5, 0, 40, 30)  # most of the image, but not all of its border
    for name in UPRIGHT:
        save(root / "ground_truth" / f"{name}.png", large)
    masks, notes = find(root)
    known = {sample.image_name: masks.values(sample) for sample in masks.samples}
    assert (known["a.png"][0] == large).all()
    assert notes == [
        "3 of 3 masks looked at mark more than half of their image; if they are inverted, defects black on white, "
        "invert them all"
    ]


def test_one_upright_mask_forbids_to_invert_the_others(root):
    write_masks(root, draw=lambda mask: 255 - mask)
    save(root / "ground_truth" / "dent" / "a_mask.png", box(3, 2, 9, 8))
    masks, notes = find(root)
    shown = {sample.image_name: masks.values(sample) for sample in masks.samples}
    assert (shown["a.png"][0] > 0).sum() == 36
    assert notes and notes[0].startswith("2 of 3 masks looked at mark more than half of their image; if they are")


def test_masks_of_the_whole_image_say_nothing_about_the_others(root):
    write_masks(root)
    for name in ("dent/a", "dent/b"):
        save(root / "ground_truth" / f"{name}_mask.png", box(0, 0, *SIZE))
    masks, notes = find(root)
    assert notes == [] and all((values != 0).any() for sample in masks.samples for values in masks.values(sample))


def test_masks_with_a_background_that_is_not_0_are_told(root):
    write_masks(root, draw=lambda mask: np.maximum(mask, 10))
    assert find(root)[1] == [
        "all 3 masks looked at mark the whole image; what is not 0 counts as defective, so make the background 0"
    ]


def test_one_inverted_mask_among_others_is_named(root):
    write_masks(root)
    path = root / "ground_truth" / "dent" / "b_mask.png"
    save(path, 255 - box(*UPRIGHT["dent/b"]))
    (note,) = find(root)[1]
    assert note.startswith("1 of 3 masks looked at marks more than half of its image and the whole border, for")
    assert f"{path}; inverted?" in note


def test_masks_among_the_images_are_told(root):
    write_masks(root)
    save(root / "test" / "dent" / "a_mask.png", box(*UPRIGHT["dent/a"]))
    (note,) = find(root)[1]
    assert note.startswith("1 mask taken for several images each, for example ") and "a.png and" in note


def test_all_masks_are_looked_at_before_they_are_inverted(tmp_path):
    """An upright one among many inverted ones, which a sample would miss."""
    paths = [tmp_path / f"{number:03d}.png" for number in range(200)]
    for path in paths:
        save(path, 255 - box(3, 2, 9, 8))
    inverted, notes = describe_values(paths, may_be_inverted=True)
    assert inverted and notes[0].startswith("200 of 200 masks")
    assert describe_values(paths, may_be_inverted=False) == (False, [])
    save(paths[101], box(3, 2, 9, 8))
    inverted, notes = describe_values(paths, may_be_inverted=True)
    assert not inverted and notes[0].startswith("199 of 200 masks")


def test_few_of_many_masks_are_read(tmp_path, monkeypatch):
    paths = [tmp_path / f"{number:03d}.png" for number in range(500)]
    for path in paths:
        save(path, box(3, 2, 9, 8))
    opened, real = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path, **kinds: opened.append(path) or real(path, **kinds))
    assert describe_values(paths, may_be_inverted=True) == (False, [])
    assert 16 <= len(opened) <= 32


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 0, 0), (255, 255, 255)])
def test_masks_in_the_alpha_channel(root, usual, colour):
    def draw(mask):
        return np.dstack([*(np.full_like(mask, value) for value in colour), mask // 2])

    write_masks(root, draw=draw)
    assert measure(root) == (usual, ["3 of 3 masks looked at are drawn in the alpha channel, which is taken"])


def test_colours_come_before_the_alpha_channel(tmp_path):
    mask = box(3, 2, 9, 8)
    save(tmp_path / "both.png", np.dstack([mask, mask, mask, box(0, 0, 20, 20)]))
    save(tmp_path / "opaque.png", np.dstack([mask, mask, mask, np.full_like(mask, 255)]))
    save(tmp_path / "empty.png", np.dstack([0 * mask] * 3 + [np.full_like(mask, 255)]))
    assert (read_mask(tmp_path / "both.png") == mask).all() and (read_mask(tmp_path / "opaque.png") == mask).all()
    assert not read_mask(tmp_path / "empty.png").any()


def test_what_is_transparent_marks_nothing_whatever_its_colour(root, usual):
    """Red on a transparent background that happens to be white."""

    def draw(mask):
        return np.dstack([np.full_like(mask, 255), 255 - mask, 255 - mask, mask])

    write_masks(root, draw=draw)
    assert measure(root)[0] == usual


def test_masks_that_the_data_set_names(tmp_path):
    """VisA's have the labels of kinds of defects as values."""
    save(tmp_path / "split" / "image.png", np.zeros((*SIZE[::-1], 3), np.uint8))
    save(tmp_path / "elsewhere" / "mask.png", box(3, 2, 9, 8) // 255 * 3)
    sample = Sample(tmp_path / "split" / "image.png", "anomaly", "image.png", tmp_path / "elsewhere" / "mask.png")
    masks, notes = find_masks(Dataset("visa/candle", tmp_path, tmp_path / "1cls.csv"), [sample])
    assert (masks.values(sample)[0] == box(3, 2, 9, 8) // 255 * 3).all() and notes == []
