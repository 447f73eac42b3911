"""Masks as the data sets lay them out, and what of an image counts where."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientad.data.datasets import Dataset, Sample, find_test_samples
from efficientad.evaluation.localization import Localization
from efficientad.evaluation.masks import Saturation, connected_regions, find_masks, read_defects
from efficientad.evaluation.pixel_metrics import Defect, PixelHistograms, count_pixels
from efficientad.system.errors import UserError

SIZE = (12, 10)  # width, height


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def box(left, top, right, bottom, value=255, size=SIZE):
    mask = np.zeros(size[::-1], dtype=np.uint8)
    mask[top:bottom, left:right] = value
    return mask


class Parts:
    """A data set that is put together image by image."""

    def __init__(self, root):
        self.root = root
        self.dataset = Dataset("custom", root)

    def image(self, name, seed=None, size=SIZE):
        seed = sum(name.encode()) if seed is None else seed
        save(self.root / "test" / name, np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8))

    def mask(self, name, array):
        save(self.root / "ground_truth" / name, array)

    def samples(self):
        return {f"{s.class_name}/{s.image_name}": s for s in find_test_samples(self.dataset).samples}

    def masks(self):
        return find_masks(self.dataset, list(self.samples().values()))[0]


@pytest.fixture
def parts(tmp_path):
    made = Parts(tmp_path)
    for name in ("good/g.png", "dent/a.png", "dent/b.png"):
        made.image(name)
    return made


def regions_of(masks, sample):
    files = masks.samples[sample].own
    found, _ = read_defects(files, masks.saturations, sample.path, SIZE) if files else ([], 0)
    return [(sorted(region.pixels.tolist()), region.saturation) for region in found]


def pixels(*box_corners):
    return np.flatnonzero(box(*box_corners)).tolist()


def test_masks_beside_the_test_folder(parts):
    parts.image("dent/lot 1/c.1.jpg")
    parts.image("scratch/a.png", seed=5)
    parts.mask("dent/a_mask.png", box(0, 0, 3, 2))  # MVTec AD
    parts.mask("dent/b.png", box(5, 5, 6, 6))  # VisA
    parts.mask("dent/lot 1/c.1_mask.bmp", box(1, 1, 2, 3))
    masks, samples = parts.masks(), parts.samples()
    assert regions_of(masks, samples["dent/a.png"]) == [(pixels(0, 0, 3, 2), 6)]
    assert regions_of(masks, samples["dent/b.png"]) == [(pixels(5, 5, 6, 6), 1)]
    assert regions_of(masks, samples["dent/lot 1/c.1.jpg"]) == [(pixels(1, 1, 2, 3), 2)]
    assert regions_of(masks, samples["scratch/a.png"]) == regions_of(masks, samples["good/g.png"]) == []


def test_a_set_without_masks(parts):
    assert parts.masks() is None
    parts.mask("dent/unknown_mask.png", box(0, 0, 1, 1))
    parts.mask("good/g_mask.png", box(0, 0, 1, 1))
    assert parts.masks() is None


def test_areas_that_touch_at_a_corner_are_one_defect():
    mask = box(0, 0, 2, 2) | box(2, 2, 4, 3) | box(8, 0, 9, 10) | box(5, 5, 6, 6)
    found = sorted(sorted(region.tolist()) for region in connected_regions(mask > 0))
    together = sorted(pixels(0, 0, 2, 2) + pixels(2, 2, 4, 3))
    assert found == sorted([together, pixels(8, 0, 9, 10), pixels(5, 5, 6, 6)])
    assert connected_regions(np.zeros((3, 4), dtype=bool)) == []


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16", "jpg"])
def test_whatever_is_not_zero_is_a_defect(parts, mode):
    """Masks may have labels of 0 and 1, palettes, an opaque alpha channel; JPEG leaves noise around the edges."""
    mask = box(4, 4, 12, 10, value=1 if mode in ("L", "P", "I;16") else 255)
    path = parts.root / "ground_truth" / "dent" / ("a_mask.jpg" if mode == "jpg" else "a_mask.png")
    path.parent.mkdir(parents=True)
    if mode == "I;16":
        Image.fromarray(mask.astype(np.uint16)).save(path)
    elif mode == "P":
        image = Image.fromarray(mask).convert("P")
        image.putpalette([0, 0, 0, 128, 0, 0])
        image.save(path)
    else:
        Image.fromarray(mask).convert("L" if mode == "jpg" else mode).save(path)
    assert regions_of(parts.masks(), parts.samples()["dent/a.png"]) == [(pixels(4, 4, 12, 10), 48)]


def loco(parts, config):
    parts.mask("dent/a/000.png", box(0, 0, 4, 2, value=200) | box(8, 8, 10, 10, value=200))  # one defect, two areas
    parts.mask("dent/a/001.png", box(3, 0, 5, 5, value=201))  # overlaps the other
    (parts.root / "defects_config.json").write_text(json.dumps(config))


LOCO_CONFIG = [
    {"defect_name": "missing", "pixel_value": 200, "saturation_threshold": 5, "relative_saturation": False},
    {"defect_name": "torn", "pixel_value": 201, "saturation_threshold": 0.75, "relative_saturation": True},
]


def test_numbered_masks_with_saturation(parts):
    loco(parts, LOCO_CONFIG)
    masks = parts.masks()
    assert masks.saturations == {200: Saturation(5, False), 201: Saturation(0.75, True)}
    assert regions_of(masks, parts.samples()["dent/a.png"]) == [
        (sorted(pixels(0, 0, 4, 2) + pixels(8, 8, 10, 10)), 5),
        (pixels(3, 0, 5, 5), 7),
    ]


def test_saturation_is_within_the_area():
    assert Saturation(100, False).pixels(30) == 30
    assert Saturation(0.01, True).pixels(30) == 1
    assert Saturation(1, True).pixels(30) == 30


def test_numbered_masks_without_saturation(parts):
    loco(parts, [])
    (parts.root / "defects_config.json").unlink()
    found = regions_of(parts.masks(), parts.samples()["dent/a.png"])
    assert [saturation for _, saturation in found] == [12, 10]


def test_wrong_masks_are_named(parts):
    parts.mask("dent/a_mask.png", box(0, 0, 3, 2))
    parts.mask("dent/b_mask.png", box(0, 0, 3, 2, size=(11, 10)))
    with pytest.raises(UserError) as raised:
        parts.masks()
    assert f"{Path('dent/b_mask.png')} is 11 x 10, its image" in str(raised.value)
    assert f"{Path('test/dent/b.png')} is 12 x 10" in str(raised.value) and "a_mask" not in str(raised.value)
    (parts.root / "ground_truth/dent/b_mask.png").write_text("text")
    with pytest.raises(UserError, match="b_mask.png: not an image, or damaged"):
        parts.masks()


def test_a_mask_that_lies_on_its_side_or_is_damaged_in_the_middle_is_named_when_read(parts):
    parts.mask("dent/a_mask.png", box(0, 0, 3, 2, size=SIZE[::-1]))
    with pytest.raises(UserError, match="a_mask.png is 10 x 12, its image .* is 12 x 10"):
        regions_of(parts.masks(), parts.samples()["dent/a.png"])
    parts.mask("dent/a_mask.png", np.random.default_rng(0).integers(0, 255, SIZE[::-1], np.uint8))
    path = parts.root / "ground_truth/dent/a_mask.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:60] + bytes(40) + whole[100:])
    with pytest.raises(UserError, match="cannot read the mask .*a_mask.png"):
        regions_of(parts.masks(), parts.samples()["dent/a.png"])
    path.write_bytes(whole[:-40])
    with pytest.raises(UserError, match="a_mask.png: image file is truncated"):
        parts.masks()


@pytest.mark.parametrize("text", ["{", "[1]", '[{"pixel_value": 255}]', "5"])
def test_damaged_saturations(parts, text):
    loco(parts, LOCO_CONFIG)
    (parts.root / "defects_config.json").write_text(text)
    with pytest.raises(UserError, match="defects_config.json is damaged"):
        parts.masks()


def test_a_pixel_value_without_saturation(parts):
    loco(parts, LOCO_CONFIG[:1])
    with pytest.raises(UserError, match="001.png has the pixel value 201, which is not in defects_config.json"):
        regions_of(parts.masks(), parts.samples()["dent/a.png"])


def locate(parts, maps, inspected=None):
    localization = Localization(parts.masks())
    for name, sample in parts.samples().items():
        localization.add(sample, localization.count(sample, maps[name], inspected))
    return localization.metrics()


def draw_maps(parts):
    """The same map for the same image."""
    seeds = {name: sample.path.read_bytes()[-30:] for name, sample in parts.samples().items()}
    return {
        name: np.random.default_rng(list(seed)).normal(size=SIZE[::-1]).astype(np.float32)
        for name, seed in seeds.items()
    }


def expected(name, *counted):
    """The row of (map, boxes of its regions, boxes of ignored pixels)."""
    total = PixelHistograms()
    for anomaly_map, inside, ignored in counted:
        regions = [Defect(np.array(pixels(*corners)), len(pixels(*corners))) for corners in inside]
        skipped = sum((box(*corners) for corners in ignored), np.zeros(SIZE[::-1], np.uint8)) > 0
        total.add(count_pixels(anomaly_map, regions, skipped))
    return total.row(name)


def test_rows_of_classes_and_of_the_set(parts):
    parts.image("scratch/c.png")
    parts.mask("dent/a_mask.png", box(0, 0, 3, 2))
    parts.mask("dent/b_mask.png", box(5, 5, 8, 8))
    parts.mask("scratch/c_mask.png", box(1, 8, 12, 9))
    maps = draw_maps(parts)
    good = (maps["good/g.png"], [], [])
    dents = [(maps["dent/a.png"], [(0, 0, 3, 2)], []), (maps["dent/b.png"], [(5, 5, 8, 8)], [])]
    scratch = (maps["scratch/c.png"], [(1, 8, 12, 9)], [])
    metrics = locate(parts, maps)
    assert metrics.classes == [expected("dent", good, *dents), expected("scratch", good, scratch)]
    assert metrics.overall == expected("Overall", good, *dents, scratch)
    assert (metrics.defective, metrics.left_out, metrics.saturated) == (3, 0, False)


def test_defective_images_without_a_mask_or_with_an_empty_one_are_left_out(parts):
    parts.image("dent/c.png")
    parts.mask("dent/a_mask.png", box(0, 0, 3, 2))
    parts.mask("dent/c_mask.png", box(0, 0, 0, 0))
    maps = draw_maps(parts)
    counted = [(maps["good/g.png"], [], []), (maps["dent/a.png"], [(0, 0, 3, 2)], [])]
    metrics = locate(parts, maps)
    assert metrics.classes == [expected("dent", *counted)]
    assert metrics.overall == expected("Overall", *counted)
    assert (metrics.defective, metrics.left_out) == (3, 2)


def test_an_image_with_two_kinds_of_defect(parts):
    """It is in two class folders, each with the mask of its kind."""
    parts.image("dent/both.png", seed=9)
    parts.image("scratch/copy.png", seed=9)
    parts.mask("dent/both_mask.png", box(0, 0, 4, 4))
    parts.mask("scratch/copy_mask.png", box(3, 3, 9, 5))  # overlaps: one connected area
    parts.mask("dent/a_mask.png", box(0, 0, 3, 2))
    parts.mask("dent/b_mask.png", box(0, 0, 3, 2))
    maps = draw_maps(parts)
    both = maps["dent/both.png"]
    assert (both == maps["scratch/copy.png"]).all()
    good = (maps["good/g.png"], [], [])
    dents = [(maps[f"dent/{name}.png"], [(0, 0, 3, 2)], []) for name in "ab"]
    metrics = locate(parts, maps)
    assert metrics.classes == [
        expected("dent", good, *dents, (both, [(0, 0, 4, 4)], [(3, 3, 9, 5)])),
        expected("scratch", good, (both, [(3, 3, 9, 5)], [(0, 0, 4, 4)])),
    ]
    union = np.flatnonzero(box(0, 0, 4, 4) | box(3, 3, 9, 5))
    total = PixelHistograms()
    for anomaly_map, regions in (
        (maps["dent/a.png"], [Defect(np.array(pixels(0, 0, 3, 2)), 6)]),
        (maps["dent/b.png"], [Defect(np.array(pixels(0, 0, 3, 2)), 6)]),
        (both, [Defect(union, len(union))]),
        (maps["good/g.png"], []),
    ):
        total.add(count_pixels(anomaly_map, regions))
    assert metrics.overall == total.row("Overall")
    assert (metrics.defective, metrics.left_out) == (4, 0)


def test_copies_with_the_same_mask_and_a_copy_that_is_called_good(parts):
    for name in ("dent/c.png", "scratch/c.png", "good/c.png"):
        parts.image(name, seed=9)
    parts.mask("dent/c_mask.png", box(0, 0, 4, 4))
    parts.mask("scratch/c_mask.png", box(0, 0, 4, 4))
    maps = draw_maps(parts)
    metrics = locate(parts, maps)
    image = maps["dent/c.png"]
    good = [(maps["good/g.png"], [], []), (image, [], [(0, 0, 4, 4)])]
    assert metrics.classes[1] == expected("scratch", *good, (image, [(0, 0, 4, 4)], []))
    assert metrics.overall == expected("Overall", (maps["good/g.png"], [], []), (image, [(0, 0, 4, 4)], []))
    assert metrics.left_out == 2  # a and b of the class dent


def test_saturated_rows(parts):
    loco(parts, LOCO_CONFIG)
    metrics = locate(parts, draw_maps(parts))
    assert metrics.saturated and metrics.overall.regions == 2 and metrics.left_out == 1


def test_samples_that_vanish_are_left_to_the_evaluation(parts):
    parts.mask("dent/a_mask.png", box(0, 0, 3, 2))
    samples = [*parts.samples().values(), Sample(parts.root / "test/dent/gone.png", "dent", "gone.png")]
    assert len(find_masks(parts.dataset, samples)[0].samples) == 4


def test_what_is_not_inspected_counts_nowhere(parts):
    """A defect loses its pixels there; one that has no others is left out and told."""
    parts.image("scratch/c.png")
    parts.image("scratch/d.png")
    parts.mask("dent/a_mask.png", box(0, 0, 3, 2) | box(7, 7, 9, 9))
    parts.mask("dent/b_mask.png", box(4, 1, 8, 8))
    parts.mask("scratch/c_mask.png", box(10, 0, 12, 1) | box(9, 8, 12, 9))
    maps, inspected = draw_maps(parts), box(0, 0, 6, 10) > 0
    unseen = [(6, 0, 12, 10)]
    good = (maps["good/g.png"], [], unseen)
    dents = [(maps["dent/a.png"], [(0, 0, 3, 2)], unseen), (maps["dent/b.png"], [(4, 1, 6, 8)], unseen)]
    metrics = locate(parts, maps, inspected)
    dent, scratch = metrics.classes
    assert dent == expected("dent", good, *dents) and (scratch.images, scratch.regions) == (0, 0)
    assert metrics.overall == expected("Overall", good, *dents)
    assert (metrics.defective, metrics.left_out, metrics.hidden, metrics.hiding) == (4, 1, 3, 2)
    other = Localization(parts.masks())
    for name, sample in parts.samples().items():
        shares = [Localization(parts.masks()) for _ in range(2)]
        shares[1].add(sample, shares[1].count(sample, maps[name], inspected))
        shares[0].merge(shares[1])
        other.merge(shares[0])
    merged = other.metrics()
    assert (merged.overall, merged.left_out, merged.hidden, merged.hiding) == (metrics.overall, 1, 3, 2)


def test_copies_of_an_image_that_is_inspected_in_part(parts):
    parts.image("dent/both.png", seed=9)
    parts.image("scratch/copy.png", seed=9)
    parts.mask("dent/both_mask.png", box(0, 0, 4, 4))
    parts.mask("scratch/copy_mask.png", box(3, 3, 9, 5))
    maps, unseen = draw_maps(parts), (6, 0, 12, 10)
    both, good = maps["dent/both.png"], (maps["good/g.png"], [], [unseen])
    metrics = locate(parts, maps, box(0, 0, 6, 10) > 0)
    assert metrics.classes == [
        expected("dent", good, (both, [(0, 0, 4, 4)], [(3, 3, 9, 5), unseen])),
        expected("scratch", good, (both, [(3, 3, 6, 5)], [(0, 0, 4, 4), unseen])),
    ]
    assert metrics.hidden == 0


def test_a_defect_saturates_at_its_visible_part(parts):
    loco(parts, LOCO_CONFIG)
    masks, sample = parts.masks(), parts.samples()["dent/a.png"]
    inspected = box(0, 0, 12, 3) > 0
    found, hidden = read_defects(masks.samples[sample].own, masks.saturations, sample.path, SIZE, inspected)
    assert [(sorted(one.pixels.tolist()), one.saturation) for one in found] == [
        (pixels(0, 0, 4, 2), 5),
        (pixels(3, 0, 5, 3), 4),  # 0.75 of 6
    ]
    assert hidden == 0
    inspected = box(0, 5, 12, 10) > 0
    found, hidden = read_defects(masks.samples[sample].own, masks.saturations, sample.path, SIZE, inspected)
    assert [(len(one.pixels), one.saturation) for one in found] == [(4, 4)] and hidden == 1
