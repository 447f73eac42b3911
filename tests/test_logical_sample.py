"""The logical sample: its rules, its masks, and that neither a global statistic nor a local detector solves it."""

import io
import itertools
import json

import numpy as np
import pytest
import torch

import logical_sample
from drawn_boards import JPEG_QUALITY
from efficientad.data.datasets import find_test_samples, find_training_images, open_dataset
from efficientad.data.transforms import to_unit_range
from efficientad.detector.anomaly_maps import anomaly_score
from efficientad.detector.checkpoint import load_teacher_weights
from efficientad.detector.model import MIRROR, EfficientAD
from efficientad.evaluation.image_metrics import image_auroc
from efficientad.evaluation.masks import find_masks, read_defects
from efficientad.training.cache import TeacherFeatures
from efficientad.training.fitting import fit_map_quantiles, fit_teacher_statistics, map_held_out
from efficientad.training.memory import fit_memory
from logical_sample import LOGICAL_DEFECTS, break_rules, draw_logical_board, good_layout
from stubs import HeldImages
from test_sample import draw, global_statistics

LED_AREA = 38 * 26


def follows_the_rules(layout):
    """What rules.json says, without the tables that the drawing uses."""
    main, other = {"square": ("dark", "amber"), "ring": ("amber", "dark")}[layout.symbol]
    expected = [sorted([main, main, other, ""]), sorted([main, other, "", ""])] * 2
    return [sorted(kind or "" for kind in row) for row in layout.rows] == expected


def layouts(defect, count=200):
    for seed in range(count):
        rng = np.random.default_rng(seed)
        layout = good_layout(rng)
        if defect:
            break_rules(layout, defect, rng)
        yield layout


def neighbours(layout):
    """Pairs of what is side by side, and of what is one above the other."""
    rows = layout.rows
    beside = {("beside", pair) for row in rows for pair in itertools.pairwise(row)}
    below = {
        ("below", pair) for upper, lower in itertools.pairwise(rows) for pair in zip(upper, lower, strict=True)
    }
    return beside | below


def test_good_boards_follow_the_rules_and_others_break_them():
    assert all(follows_the_rules(layout) for layout in layouts(None))
    for defect in LOGICAL_DEFECTS:
        assert not any(follows_the_rules(layout) for layout in layouts(defect)), defect


def test_defective_boards_have_no_neighbours_that_good_ones_lack():
    good = set().union(*map(neighbours, layouts(None)))
    for defect in LOGICAL_DEFECTS:
        assert set().union(*map(neighbours, layouts(defect))) <= good, defect


def test_counts_of_the_whole_board_do_not_change_where_leds_change_places():
    for defect in ("swapped", "misplaced", "other_lot_mark"):
        for good, bad in zip(layouts(None), layouts(defect), strict=True):
            counts = [sorted(kind or "" for row in layout.rows for kind in row) for layout in (good, bad)]
            assert counts[0] == counts[1]


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logical")
    draw(folder, "--kind", "logical", "--good", 20, "--defective", 2)
    return folder


def test_sample_is_read_as_mvtec_loco(sample):
    dataset = open_dataset("mvtec_loco", sample, "led_board")
    split = find_training_images(dataset, seed=0)
    assert (len(split.train), len(split.validation)) == (14, 2)
    samples = find_test_samples(dataset).samples
    counts = {name: sum(found.class_name == name for found in samples) for name in ("good", "logical_anomalies")}
    assert counts == {"good": 4, "logical_anomalies": 12} and len(samples) == 4 + 12 + 5
    assert {"rules.json", "defects_config.json"} <= {path.name for path in (sample / "led_board").iterdir()}
    masks, notes = find_masks(dataset, samples)
    assert not notes
    for found in samples:
        if found.class_name == "good":
            continue
        defect = found.path.stem.rsplit("_", 1)[0]
        regions, _ = read_defects(masks.samples[found].own, masks.saturations, found.path, (320, 320))
        assert len(regions) == (2 if defect in ("swapped", "misplaced") else 1)
        for region in regions:
            whole = defect not in LOGICAL_DEFECTS or defect == "other_lot_mark"
            assert region.saturation == (len(region.pixels) if whole else LED_AREA)
            if not whole:  # one to three places, each a little larger than the LED by its outline
                assert 0.95 * LED_AREA <= len(region.pixels) <= 3.3 * LED_AREA


def test_masks_mark_what_breaks_the_rule():
    """Drawn with and without the defect from the same numbers, a board differs where the mask is, blur apart."""
    _, regions, layout = draw_logical_board(np.random.default_rng(4), "misplaced")
    missing, surplus = layout.suspects
    assert len(regions[0]) == len(missing) and len(regions[1]) == len(surplus)
    assert all(layout.rows[row][column] is None for row, column in missing)
    assert len({layout.rows[row][column] for row, column in surplus}) == 1
    centres = [np.mean(outline, axis=0) for outline in (*regions[0], *regions[1])]
    first = np.array(centres[0]) - np.array(missing[0])[::-1] * 62
    for centre, (row, column) in zip(centres, (*missing, *surplus), strict=True):
        assert np.allclose(centre, first + np.array((column, row)) * 62)


def test_saturations_name_every_kind(sample):
    entries = json.loads((sample / "led_board" / "defects_config.json").read_text())
    assert [entry["defect_name"] for entry in entries] == [*LOGICAL_DEFECTS, *logical_sample.DEFECTS]
    assert len({entry["pixel_value"] for entry in entries}) == len(entries)


def boards(defects, seed):
    return [
        draw_logical_board(np.random.default_rng([seed, number]), defect)[0]
        for number, defect in enumerate(defects)
    ]


def test_no_global_statistic_finds_the_defects():
    good, bad = boards([None] * 40, 1), boards(LOGICAL_DEFECTS * 7, 2)
    rows = [statistics(image) for image in (*good, *bad)]
    y_true = np.array([False] * len(good) + [True] * len(bad))
    for name in rows[0]:
        auroc = image_auroc(y_true, np.array([row[name] for row in rows]))
        assert max(auroc, 1 - auroc) <= 0.8, name


def statistics(image):
    """global_statistics, the size of the file, and the number of pixels by their value in each channel."""
    pixels = np.asarray(image)
    file = io.BytesIO()
    image.save(file, "jpeg", quality=JPEG_QUALITY)
    bins = {
        f"{name} {number}": count
        for name, channel in zip("RGB", np.moveaxis(pixels, 2, 0), strict=True)
        for number, count in enumerate(np.histogram(channel, bins=8, range=(0, 256))[0])
    }
    return {**global_statistics(image), **bins, "bytes": len(file.getvalue())}


def test_nearest_patches_do_not_find_the_defects():
    """The default detector, which compares patch by patch, with fewer images and patches."""
    model = EfficientAD(border=MIRROR, has_student=False)
    load_teacher_weights(model, None)
    train, held_out, good = 12, 2, 10
    pictures = boards([None] * (train + held_out + good), 3) + boards(LOGICAL_DEFECTS * 2, 4)
    pixels = torch.stack([torch.from_numpy(np.array(image.resize((256, 256)))) for image in pictures])
    images = HeldImages(pixels.permute(0, 3, 1, 2))
    features = TeacherFeatures(model, 1e9, torch.device("cpu"), "fp32")
    fit_teacher_statistics(model, images, range(train), features)
    fit_memory(model, images, range(train), features, 1000, seed=0)
    model.map_weights.copy_(torch.tensor((0.0, 0.0, 1.0)))
    fit_map_quantiles(model, map_held_out(model, images, range(train, train + held_out), "fp32"))
    tested = images.pixels[train + held_out :]
    with torch.inference_mode():
        scores = torch.cat([anomaly_score(model(to_unit_range(some))) for some in tested.split(4)])
    assert image_auroc(np.arange(len(scores)) >= good, scores.numpy()) <= 0.75
