"""Test images that the detector may have learned from are named."""

import shutil

import pytest

from conftest import draw_part
from efficientad.data.datasets import Dataset, find_test_samples
from efficientad.evaluation import run


@pytest.fixture
def root(tmp_path):
    for seed, name in enumerate(["train/good/a.png", "train/good/b.png", "test/good/c.png", "test/hole/d.png"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_part(seed).save(path)
    return tmp_path


def notes(root):
    dataset = Dataset("custom", root)
    return run._describe_seen(dataset, find_test_samples(dataset).samples)


def test_copies_of_training_images_are_named(root):
    assert notes(root) == []
    shutil.copy(root / "train/good/b.png", root / "test/good/e.png")
    (line,) = notes(root)
    assert line.startswith("1 test image is a copy of a good training image, for example ")
    assert "test/good/e.png of " in line and "train/good/b.png;" in line
    shutil.copy(root / "test/hole/d.png", root / "train/good/z.png")
    assert notes(root)[0].startswith("2 test images are copies of good training images")


def test_a_set_to_test_with_alone_is_no_error(root):
    shutil.rmtree(root / "train")
    assert notes(root) == []
