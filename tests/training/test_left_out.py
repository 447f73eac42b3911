"""Training images scored as new ones, and the threshold that they set."""

import csv
from pathlib import Path

import pytest
import torch

from commands import train
from conftest import fill_folder, make_dataset
from efficientad.benchmarking import reference
from efficientad.data.transforms import to_unit_range
from efficientad.data.views import View
from efficientad.detector.checkpoint import load_model
from efficientad.detector.model import EfficientAD
from efficientad.training.cache import TeacherFeatures
from efficientad.training.fitting import fit_map_quantiles, fit_teacher_statistics, map_held_out
from efficientad.training.left_out import GoodScore, describe_outliers, find_outliers, score_left_out, write_scores
from efficientad.training.memory import fit_memory
from stubs import HeldImages
from trainings import folder_of

CPU = torch.device("cpu")


def random_pixels(count, size=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return pixels // torch.arange(1, count + 1, dtype=torch.uint8).view(-1, 1, 1, 1)


def fit(model, images, learnt, patches=40):
    """The scores of the learnt images, the first ones, and the owners of the patches."""
    features = TeacherFeatures(model, 1e9, CPU, "fp32")
    fit_teacher_statistics(model, images, learnt, features)
    owners = fit_memory(model, images, learnt, features, patches, seed=0)
    model.map_weights.copy_(torch.tensor((0.0, 0.0, 1.0)))
    fit_map_quantiles(model, map_held_out(model, images, range(learnt.stop, len(images)), "fp32"))
    return score_left_out(model, images, learnt, features, owners, None, "fp32"), owners


@pytest.fixture
def tiny(tiny_networks):
    torch.manual_seed(0)
    return EfficientAD(view=View(64, 64), border="mirror", has_student=False).eval()


def plain_scores(model, pixels, owners, images_of):
    """By the plain version, with a memory without the patches of some images: {index: those images}."""
    memory, weights = model.memory, model.memory_weights
    scores = {}
    for index, own in images_of.items():
        others = torch.tensor([owner not in own for owner in owners.tolist()])
        model.memory, model.memory_weights = memory[others], weights[others]
        with torch.inference_mode():
            scores[index] = reference.scores(reference.anomaly_maps(model, pixels[index : index + 1] / 255)).item()
    model.memory, model.memory_weights = memory, weights
    return scores


def test_a_training_image_scores_as_if_it_had_not_been_there(tiny):
    pixels = random_pixels(7)
    scores, owners = fit(tiny, HeldImages(pixels), range(5))
    assert owners.shape == (40,) and set(owners.tolist()) <= set(range(5))
    expected = plain_scores(tiny, pixels, owners, {index: {index} for index in range(5)})
    assert dict(enumerate(scores)) == pytest.approx(expected, rel=5e-3, abs=0.1)
    known = plain_scores(tiny, pixels, owners, {index: set() for index in range(5)})
    assert all(scores[index] > known[index] + 1 for index in set(owners.tolist()))


def test_the_owners_are_those_of_the_patches(tiny):
    pixels = random_pixels(7)
    _, owners = fit(tiny, HeldImages(pixels), range(5), patches=1000)
    with torch.no_grad():
        features = tiny.teacher_features(tiny.normalize(tiny.cut(to_unit_range(pixels[:5]))))
    pooled = torch.nn.functional.avg_pool2d(features, 2).flatten(2).transpose(1, 2)
    assert torch.equal(torch.cdist(tiny.memory[None], pooled).amin(dim=2).argmin(dim=0), owners)


def test_copies_are_left_out_together(tiny):
    pixels = random_pixels(7)
    pixels[3] = pixels[1]
    scores, owners = fit(tiny, HeldImages(pixels), range(5))
    assert 3 not in owners
    expected = plain_scores(tiny, pixels, owners, {1: {1}, 3: {1}})
    assert scores[1] == pytest.approx(expected[1], rel=5e-3, abs=0.1)
    assert scores[1] == scores[3]


def test_of_one_image_nothing_is_left(tiny):
    pixels = random_pixels(4)
    pixels[1] = pixels[0]
    assert fit(tiny, HeldImages(pixels), range(2))[0] == []


def test_tiles_give_the_same_scores(tiny):
    pixels = random_pixels(5)
    whole, _ = fit(tiny, HeldImages(pixels), range(3))
    tiny.most_pixels = 40 * 40
    assert len(tiny.tiles()) > 1
    tiled, _ = fit(tiny, HeldImages(pixels), range(3))
    assert tiled == pytest.approx(whole, rel=1e-2, abs=0.1)


def test_what_is_not_inspected_does_not_count(tiny):
    pixels = random_pixels(7)
    inspected = torch.ones(7, 64, 64, dtype=torch.bool)
    inspected[:, :, 40:] = False
    scores, owners = fit(tiny, HeldImages(pixels, inspected), range(5))
    memory, weights = tiny.memory, tiny.memory_weights
    for index, score in enumerate(scores):
        tiny.memory, tiny.memory_weights = memory[owners != index], weights[owners != index]
        with torch.inference_mode():
            one = slice(index, index + 1)
            expected = reference.scores(reference.anomaly_maps(tiny, pixels[one] / 255, inspected[one]))
        assert score == pytest.approx(expected.item(), rel=5e-3, abs=0.1)


def test_an_image_without_a_patch_in_the_memory_scores_as_ever(tiny):
    """Its score with the whole memory, and in the order of the images."""
    pixels = random_pixels(12)
    scores, owners = fit(tiny, HeldImages(pixels), range(10), patches=4)
    others = sorted(set(range(10)) - set(owners.tolist()))
    assert len(scores) == 10 and len(others) >= 6
    known = plain_scores(tiny, pixels, owners, {index: set() for index in others})
    assert {index: scores[index] for index in others} == pytest.approx(known, rel=5e-3, abs=0.1)


def scores_file(output):
    with (folder_of(output) / "training_scores.csv").open(newline="", encoding="utf-8") as file:
        return [(row["image"], float(row["score"]), row["how"]) for row in csv.DictReader(file)]


def test_all_good_images_set_the_threshold(tmp_path, tiny_teacher, capsys):
    root = make_dataset(tmp_path / "parts", train=12, test={"good": 1})
    train("-d", "custom", "-c", root, "-w", tiny_teacher, "-o", tmp_path / "out", "--memory", 500)
    printed = capsys.readouterr().out
    assert "from 11 good images, each compared with the others alone, and 1 more held out;" in printed
    found = load_model(folder_of(tmp_path / "out"), CPU).calibration
    rows = scores_file(tmp_path / "out")
    assert [row[1] for row in rows] == sorted((row[1] for row in rows), reverse=True)
    assert sorted(how for _, _, how in rows) == ["held out"] + ["left out"] * 11
    assert sorted(name for name, _, _ in rows) == [f"train/good/{index:03}.png" for index in range(12)]
    assert sorted(score for _, score, _ in rows) == pytest.approx(found.scores, rel=1e-6)
    assert found.left_out == 11


def test_a_validation_folder_sets_it_alone(tmp_path, tiny_teacher, capsys):
    root = make_dataset(tmp_path / "parts", train=12, test={"good": 1})
    (root / "validation/good").mkdir(parents=True)
    for index in range(5):
        (root / f"train/good/{index:03}.png").rename(root / f"validation/good/{index:03}.png")
    train("-d", "custom", "-c", root, "-w", tiny_teacher, "-o", tmp_path / "out", "--memory", 500)
    assert "from 5 held-out good images;" in capsys.readouterr().out
    found = load_model(folder_of(tmp_path / "out"), CPU).calibration
    rows = scores_file(tmp_path / "out")
    assert found.left_out == 0 and len(found.scores) == 5
    held_out = sorted(score for _, score, how in rows if how == "held out")
    assert held_out == pytest.approx(found.scores, rel=1e-6) and len(rows) == 12


def test_what_stands_out_is_named_and_does_not_count(tmp_path, tiny_teacher, capsys):
    root = make_dataset(tmp_path / "parts", train=30, test={"good": 1})
    fill_folder(root / "train/good/wrong", 2, seed=77, defective=True)
    train("-d", "custom", "-c", root, "-w", tiny_teacher, "-o", tmp_path / "out", "--memory", 500)
    printed = capsys.readouterr().out
    assert "Note: 2 good images look unlike all others, so they do not count for the threshold:\n" in printed
    assert "  train/good/wrong/000.png (" in printed and "  train/good/wrong/001.png (" in printed
    rows = scores_file(tmp_path / "out")
    assert {name for name, _, _ in rows[:2]} == {f"train/good/wrong/00{index}.png" for index in range(2)}
    found = load_model(folder_of(tmp_path / "out"), CPU).calibration
    assert len(found.scores) == 30 and max(found.scores) < rows[1][1] / 2
    assert found.threshold < rows[1][1]


def test_a_given_validation_folder_has_outliers_too(tmp_path, tiny_teacher, capsys):
    """The training images are not even compared with it, however unusual one is."""
    root = make_dataset(tmp_path / "parts", train=6, test={"good": 1})
    fill_folder(root / "train/good/wrong", 1, seed=77, defective=True)
    fill_folder(root / "validation/good", 24, seed=500)
    fill_folder(root / "validation/good/wrong", 1, seed=78, defective=True)
    train("-d", "custom", "-c", root, "-w", tiny_teacher, "-o", tmp_path / "out", "--memory", 500)
    printed = capsys.readouterr().out
    assert "Note: 1 good image looks unlike all others" in printed
    assert "validation/good/wrong/000.png (" in printed and "train/good/wrong/000.png (" not in printed
    assert "from 24 held-out good images;" in printed
    found = load_model(folder_of(tmp_path / "out"), CPU).calibration
    rows = scores_file(tmp_path / "out")
    assert len(found.scores) == 24 and found.left_out == 0 and len(rows) == 32
    assert {name for name, _, _ in rows[:2]} == {f"{part}/good/wrong/000.png" for part in ("train", "validation")}


def test_a_student_leaves_nothing_out(output):
    """It has learnt from all of them: only those held out have scores."""
    rows = scores_file(output)
    assert len(rows) == 1 and rows[0][2] == "held out"
    assert load_model(folder_of(output), CPU).calibration is None


def test_the_file_has_the_most_unusual_first(tmp_path):
    rows = [
        GoodScore("a.png", 1.5, False),
        GoodScore('b,"\u00fc.png', 123456.78, True),
        GoodScore("c.png", -2.0, True),
    ]
    write_scores(tmp_path / "scores.csv", rows)
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["image", "score", "how"],
            ['b,"\u00fc.png', "123456.78", "held out"],
            ["a.png", "1.5", "left out"],
            ["c.png", "-2", "held out"],
        ]


def test_outliers_are_those_above_the_level_the_highest_first():
    scores = [GoodScore(f"{number}.png", 20.0 + number % 7, number % 2 == 0) for number in range(40)]
    wrong = [GoodScore("worse.png", 500.0, False), GoodScore("bad.png", 100.0, True)]
    assert find_outliers(scores) == []
    assert find_outliers([wrong[1], *scores, wrong[0]]) == wrong
    many = [GoodScore(f"{number}.png", 9.0, False) for number in range(30)]
    text = describe_outliers(many, Path("some/training_scores.csv"))
    assert text.startswith("Note: 30 good images look unlike all others, so they do not count for the threshold:\n")
    assert text.count("\n") < 20 and text.endswith("all scores are in some/training_scores.csv")


def test_few_images_have_no_outliers():
    scores = [GoodScore("good", float(score), False) for score in range(18)]
    assert find_outliers([*scores, GoodScore("other", 1e6, False)]) == []
    assert len(find_outliers([*scores, GoodScore("good", 9.5, True), GoodScore("other", 1e6, False)])) == 1
    assert "1 good image looks unlike all others, so it does not count" in describe_outliers(
        scores[:1], Path("file")
    )
