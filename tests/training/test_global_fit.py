"""Fitting the global score: distances of images that are left out, and what a training makes of them."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from sklearn.covariance import ledoit_wolf

from commands import evaluate, train
from conftest import make_dataset
from efficientad.benchmarking import reference
from efficientad.data.transforms import to_unit_range
from efficientad.data.views import View
from efficientad.detector.checkpoint import load_model
from efficientad.detector.global_score import SIZE, VIEWS, join_global
from efficientad.detector.model import EfficientAD
from efficientad.evaluation.image_metrics import image_auroc
from efficientad.training.cache import TeacherFeatures
from efficientad.training.fitting import fit_map_quantiles, fit_teacher_statistics, map_held_out
from efficientad.training.global_fit import PEAK, fit_global_score, mahalanobis, principal_components
from efficientad.training.left_out import score_left_out
from efficientad.training.memory import fit_memory
from efficientad.training.options import choose_global_weight
from stubs import HeldImages
from trainings import assert_same_model, folder_of

CPU = torch.device("cpu")
NOTE = "Note: no global score: the images are too few, 20 different ones at least, or do not vary\n"


def some_rows(count, seed=0):
    """Values of which some depend on each other."""
    rng = np.random.default_rng(seed)
    return 3 + rng.normal(size=(count, 40)) @ rng.normal(size=(40, SIZE)) + 0.3 * rng.normal(size=(count, SIZE))


def distance_without(rows, index):
    """The squared distance of one row from the others, whose covariance has the shrinkage of all."""
    _, shrinkage = ledoit_wolf(rows)
    target = np.trace(np.cov(rows.T, bias=True)) / SIZE
    others = np.delete(rows, index, axis=0)
    covariance = (1 - shrinkage) * np.cov(others.T, bias=True) + shrinkage * target * np.eye(SIZE)
    deviation = rows[index] - others.mean(axis=0)
    return deviation @ np.linalg.solve(covariance, deviation)


@pytest.mark.parametrize("count", [20, 100, 255, 256, 257, 600])
def test_distances_are_those_to_the_other_images(count):
    rows = some_rows(count)
    mean, whitening, within, left_out = mahalanobis(rows)
    covariance, shrinkage = ledoit_wolf(rows)
    assert 0 < shrinkage < 1
    np.testing.assert_allclose(mean, rows.mean(axis=0))
    np.testing.assert_allclose(whitening @ covariance @ whitening, np.eye(SIZE), atol=1e-5)
    for index in (0, 7, count - 1):
        deviation = rows[index] - mean
        assert within[index] == pytest.approx(deviation @ np.linalg.solve(covariance, deviation), rel=1e-6)
        assert left_out[index] == pytest.approx(distance_without(rows, index), rel=1e-4)
    assert (left_out > within).all()


def test_images_that_are_nearly_copies_have_distances_too():
    """Two kinds of images, whose own variance is tiny; and values that never change."""
    rng = np.random.default_rng(0)
    for noise in (1e-2, 1e-4, 1e-6):
        rows = np.where(np.arange(30)[:, None] % 2, 5.0, -5.0) + noise * rng.normal(size=(30, SIZE))
        *_, within, left_out = mahalanobis(rows)
        assert (within > 0).all() and (within < left_out).all() and np.isfinite(left_out).all()
    _, whitening, within, left_out = mahalanobis(np.full((30, SIZE), 7.0))
    assert np.isfinite(whitening).all() and not within.any() and not left_out.any()


def test_components_are_those_of_the_channels_at_all_fields():
    averages = torch.randn(21, 384, 8, 8, generator=torch.Generator().manual_seed(0))
    averages[:, :40] *= torch.linspace(8, 2, 40).view(-1, 1, 1)
    averages += torch.linspace(0, 5, 384).view(-1, 1, 1)
    found = principal_components(averages).double().numpy()
    values = averages.double().permute(0, 2, 3, 1).flatten(0, 2).numpy()
    _, _, expected = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(found @ found.T, np.eye(32), atol=1e-5)
    np.testing.assert_allclose(np.abs((found * expected[:32]).sum(axis=1)), 1, atol=1e-3)


def random_pixels(count, size=64, seed=0):
    """Coloured noise of some squares of different brightness."""
    rng = np.random.default_rng(seed)
    squares = rng.integers(40, 216, (count, 3, 8, 8)).repeat(size // 8, axis=2).repeat(size // 8, axis=3)
    return torch.from_numpy((squares + rng.integers(-30, 30, squares.shape)).astype(np.uint8))


@pytest.fixture
def tiny(tiny_networks):
    torch.manual_seed(0)
    return EfficientAD(view=View(64, 64), border="mirror", has_student=False).eval()


def fit(model, images, learnt, weight=1.0):
    """The factors."""
    features = TeacherFeatures(model, 1e9, CPU, "fp32")
    fit_teacher_statistics(model, images, learnt, features)
    return fit_global_score(model, images, learnt, features, weight)


@torch.inference_mode()
def described(model, images):
    """Rows and columns of all images: n x 2 x 256, float64."""
    features = model.teacher_features(model.normalize(model.cut(to_unit_range(images.pixels))))
    if images.inspected is not None:
        features = torch.where(model.counted(images.inspected), features, 0)
    score = model.global_score
    return score.describe(score.average(features)).double().numpy()


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_levels_are_those_of_images_that_are_left_out(tiny, weight):
    images = HeldImages(random_pixels(34))
    factors = fit(tiny, images, range(30), weight)
    assert factors.shape == (30, VIEWS) and factors.dtype == torch.float32
    score, rows = tiny.global_score, described(tiny, images)[:30]
    distances = np.array([[distance_without(rows[:, view], i) for view in range(VIEWS)] for i in range(30)])
    levels = np.quantile(distances, (0.5, 0.95), axis=0).T
    np.testing.assert_allclose(score.levels[:VIEWS].numpy(), levels, rtol=2e-2)
    larger = ((distances - levels[:, 0]) / (levels[:, 1] - levels[:, 0])).max(axis=1)
    np.testing.assert_allclose(score.levels[VIEWS].numpy(), np.quantile(larger, (0.5, 0.95)), rtol=5e-2)
    assert score.peak.item() == pytest.approx(weight * PEAK)
    for view in range(VIEWS):
        deviations = (rows[:, view] - rows[:, view].mean(axis=0)) @ score.whitening[view].double().numpy()
        within = (deviations**2).sum(axis=1)
        np.testing.assert_allclose(factors[:, view].numpy() * within, distances[:, view], rtol=2e-2)
    with torch.inference_mode():
        features = tiny.teacher_features(tiny.normalize(tiny.cut(to_unit_range(images.pixels[:30]))))
        heights = score(score.average(features), factors).amax(dim=(1, 2, 3)).numpy()
    assert (heights == 0).sum() == 15  # the median
    assert (heights > weight * PEAK).sum() == 2  # of 30 above the 0.95 quantile


def test_copies_count_once_and_have_the_same_factors(tiny):
    pixels = random_pixels(25)
    pixels[3], pixels[24] = pixels[1], pixels[1]
    factors = fit(tiny, HeldImages(pixels), range(25))
    assert torch.equal(factors[3], factors[1]) and torch.equal(factors[24], factors[1])
    assert len(factors.unique(dim=0)) == 23
    found = tiny.global_score
    once = [index for index in range(25) if index not in (3, 24)]
    features = TeacherFeatures(tiny, 1e9, CPU, "fp32")
    other = fit_global_score(tiny, HeldImages(pixels[once]), range(23), features, 1.0)  # with the same statistics
    torch.testing.assert_close(other, factors[once], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(tiny.global_score.levels, found.levels, rtol=1e-3, atol=1e-3)


def test_too_few_images_have_no_global_score(tiny):
    pixels = random_pixels(30)
    assert fit(tiny, HeldImages(pixels), range(19)) is None and tiny.global_score is None
    assert fit(tiny, HeldImages(pixels), range(20)) is not None and tiny.global_score is not None
    tiny.global_score = None
    pixels[10:] = pixels[:1]
    assert fit(tiny, HeldImages(pixels), range(30)) is None and tiny.global_score is None


def test_images_that_do_not_vary_have_none(tiny):
    """They differ, but not to the teacher."""
    for parameter in tiny.teacher.parameters():
        parameter.zero_()
    assert fit(tiny, HeldImages(random_pixels(25)), range(25)) is None and tiny.global_score is None


def test_images_of_one_colour_each_do_not_crash_it(tiny):
    pixels = torch.arange(25, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 64, 64) * 10
    factors = fit(tiny, HeldImages(pixels), range(25))
    assert factors is not None and factors.isfinite().all()
    with torch.inference_mode():
        maps = tiny.raw_maps(torch.rand(2, 3, 64, 64)).global_map
    assert maps.isfinite().all() and maps.max() > 0


def test_tiles_and_what_is_not_inspected(tiny):
    pixels = random_pixels(25)
    inspected = torch.ones(25, 64, 64, dtype=torch.bool)
    inspected[:, 48:] = False
    images = HeldImages(pixels, inspected)
    factors = fit(tiny, images, range(25))
    whole = tiny.global_score
    rows = described(tiny, images)
    np.testing.assert_allclose(whole.mean.numpy(), rows.mean(axis=0), atol=1e-3)
    tiny.most_pixels = 40 * 40
    assert len(tiny.tiles()) > 1
    torch.testing.assert_close(fit(tiny, images, range(25)), factors, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(tiny.global_score.levels, whole.levels, rtol=1e-2, atol=1e-2)


def test_a_score_left_out_is_that_of_a_detector_without_the_image(tiny):
    pixels = random_pixels(26)
    pixels[4] = pixels[2]
    images, learnt = HeldImages(pixels), range(24)
    features = TeacherFeatures(tiny, 1e9, CPU, "fp32")
    fit_teacher_statistics(tiny, images, learnt, features)
    owners = fit_memory(tiny, images, learnt, features, 200, seed=0)
    factors = fit_global_score(tiny, images, learnt, features, 1.0)
    tiny.map_weights.copy_(torch.tensor((0.0, 0.0, 1.0)))
    fit_map_quantiles(tiny, map_held_out(tiny, images, range(24, 26), "fp32"))
    scores = score_left_out(tiny, images, learnt, features, owners, factors, "fp32")
    without = score_left_out(tiny, images, learnt, features, owners, None, "fp32")
    assert len(scores) == len(without) == 24 and scores[4] == scores[2]
    rows, score = described(tiny, images), tiny.global_score
    kept = [index for index in learnt if index != 4]
    memory, weights = tiny.memory, tiny.memory_weights
    above = 0
    for index in kept[::3]:
        of_others = rows[kept][:, 0], rows[kept][:, 1]
        place = kept.index(index)
        distances = torch.tensor([distance_without(of_view, place) for of_view in of_others])
        seen = torch.from_numpy(rows[index] - rows[kept].mean(axis=0)).unsqueeze(2)
        energies = (score.whitening.double() @ seen).squeeze(2).square().view(VIEWS, 32, 8).sum(dim=1)
        energies *= (distances / energies.sum(dim=1)).unsqueeze(1)
        heights = (distances - score.levels[:VIEWS, 0]) / (score.levels[:VIEWS, 1] - score.levels[:VIEWS, 0])
        shares = energies / energies.amax(dim=1, keepdim=True) * heights.clamp(min=0).unsqueeze(1)
        crossing = shares[0][:, None] + shares[1]
        larger = (heights.max() - score.levels[VIEWS, 0]) / (score.levels[VIEWS, 1] - score.levels[VIEWS, 0])
        overall = score.peak * larger.clamp(min=0) * crossing / crossing.max().clamp(min=1e-12)
        above += bool(larger > 0)
        tiny.memory, tiny.memory_weights = memory[owners != index], weights[owners != index]
        tiny.global_score = None
        with torch.inference_mode():
            local = reference.anomaly_maps(tiny, to_unit_range(pixels[index : index + 1]))[:, None]
        expected = reference.scores(join_global(local, overall[None, None].float())[:, 0]).item()
        assert scores[index] == pytest.approx(expected, rel=2e-2, abs=0.3), index
        tiny.memory, tiny.memory_weights, tiny.global_score = memory, weights, score
        assert (scores[index] > without[index]) == bool(larger > 0)
    assert 0 < above < len(kept[::3])


def draw_scene(seed, left="disc", right="square"):
    """A disc on the left and a square on the right, each moved a little, on a gray ground."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray((150 + rng.normal(0, 3, (128, 128, 3))).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for kind, middle in ((left, 32), (right, 96)):
        x, y = middle + rng.integers(-4, 5), 64 + rng.integers(-4, 5)
        box = (x - 14, y - 14, x + 14, y + 14)
        if kind == "disc":
            pen.ellipse(box, fill=(200, 60, 60))
        if kind == "square":
            pen.rectangle(box, fill=(60, 60, 200))
    return image


BAD = {"swapped": ("square", "disc"), "missing": ("disc", None), "doubled": ("disc", "disc")}


@pytest.fixture
def scenes(tmp_path):
    root = tmp_path / "scenes"
    kinds = {"train/good": (40, ()), "test/good": (15, ()), **{f"test/{name}": (5, BAD[name]) for name in BAD}}
    for number, (name, (count, drawn)) in enumerate(kinds.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            draw_scene(1000 * number + index, *drawn).save(root / name / f"{index:02}.png")
    return root


def aurocs(scenes, output, *more):
    """Of each kind of defect against the good images; of a training with `more`."""
    words = ["-d", "custom", "-c", scenes, "--device", "cpu", "-o", output]
    train(*words, "--image_size", 96, "--memory", 1000, *more)
    evaluate(*words, "-f", "none", "--no_report")
    with (output / "anomaly_maps/custom/scores.csv").open(newline="") as file:
        rows = [(row["defect_class"], float(row["y_score"])) for row in csv.DictReader(file)]
    scores = {name: [score for kind, score in rows if kind == name] for name in ("good", *BAD)}
    return {
        name: image_auroc(
            np.repeat([False, True], [len(scores["good"]), len(scores[name])]),
            np.array(scores["good"] + scores[name]),
        )
        for name in BAD
    }


def test_exchanged_missing_and_doubled_parts_are_found_with_it_alone(scenes, tiny_teacher, tmp_path, capsys):
    found = aurocs(scenes, tmp_path / "with", "-w", tiny_teacher)
    assert NOTE not in capsys.readouterr().out
    without = aurocs(scenes, tmp_path / "without", "-w", tiny_teacher, "--global_weight", 0)
    assert NOTE not in capsys.readouterr().out
    assert min(found.values()) == 1, found
    assert max(without.values()) < 0.9, without
    models = [load_model(folder_of(tmp_path / name), CPU) for name in ("with", "without")]
    assert models[0].global_score.peak == pytest.approx(0.7 * PEAK) and models[1].global_score is None
    assert [model.provenance["global_weight"] for model in models] == [0.7, 0]


def test_the_same_seed_gives_the_same_bits(scenes, tiny_teacher, tmp_path):
    words = ["-d", "custom", "-c", scenes, "--device", "cpu", "-w", tiny_teacher, "--image_size", 64]
    words += ["--memory", 100, "--global_weight", 2]
    train(*words, "-o", tmp_path / "out")
    train(*words, "-o", tmp_path / "again", "--cache_gb", 0)
    assert_same_model(tmp_path / "out", tmp_path / "again")
    assert load_model(folder_of(tmp_path / "out"), CPU).global_score.peak == 2 * PEAK


def test_the_recipe_decides(scenes, tiny_teacher, tmp_path):
    assert [choose_global_weight(None, recipe) for recipe in ("fast", "paper")] == [0.7, 0]
    assert [choose_global_weight(weight, "fast") for weight in (0.0, 2.5)] == [0, 2.5]
    words = ["-d", "custom", "-c", scenes, "--device", "cpu", "-w", tiny_teacher, "--image_size", 64]
    train(*words, "-o", tmp_path, "--recipe", "paper", "-e", 1, "-b", 16, "--global_weight", 0.5)
    model = load_model(folder_of(tmp_path), CPU)
    assert model.global_score.peak == PEAK / 2 and model.student is not None


def test_a_note_says_that_the_images_are_too_few(tmp_path, tiny_teacher, capsys):
    root = make_dataset(tmp_path / "parts", train=12, test={"good": 1})
    train("-d", "custom", "-c", root, "-w", tiny_teacher, "-o", tmp_path / "out", "--memory", 100)
    assert NOTE in capsys.readouterr().out
    assert load_model(folder_of(tmp_path / "out"), CPU).global_score is None
