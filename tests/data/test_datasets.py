import os
from collections import Counter

import pytest

from conftest import fill_folder, make_dataset
from efficientad.data.datasets import find_test_samples, find_training_images, open_dataset, split_validation
from efficientad.system.errors import UserError


def custom(folder):
    return open_dataset("custom", folder, "bottle")


def test_custom_set(dataset_folder):
    split = find_training_images(custom(dataset_folder), seed=42)
    assert (len(split.train), len(split.validation)) == (9, 1)
    samples = find_test_samples(custom(dataset_folder)).samples
    assert [sample.class_name for sample in samples] == ["defect_type_1"] * 2 + ["defect_type_2"] * 2 + ["good"] * 3
    assert [sample.is_anomalous for sample in samples] == [True] * 4 + [False] * 3


def test_validation_images_come_from_the_training_images_alone(dataset_folder):
    split = find_training_images(custom(dataset_folder), seed=42)
    good = set((dataset_folder / "train" / "good").iterdir())
    assert set(split.train) | set(split.validation) == good
    assert not set(split.train) & set(split.validation)


def test_split_depends_on_the_seed_and_on_nothing_else(dataset_folder, monkeypatch):
    expected = find_training_images(custom(dataset_folder), seed=42)
    walk = os.walk

    def reversed_walk(top, **options):
        for parent, folders, names in walk(top, **options):
            yield parent, folders, sorted(names, reverse=True)

    monkeypatch.setattr(os, "walk", reversed_walk)
    assert find_training_images(custom(dataset_folder), seed=42) == expected
    splits = [find_training_images(custom(dataset_folder), seed).validation for seed in range(10)]
    assert len({tuple(split) for split in splits}) > 1


def test_a_tenth_is_held_out_and_at_least_one(tmp_path):
    paths = [tmp_path / str(index) for index in range(711)]
    assert len(split_validation(paths, 0).validation) == 71
    assert len(split_validation(paths[:2], 0).validation) == 1


def test_own_validation_folder(tmp_path):
    root = make_dataset(tmp_path / "set", train=4)
    fill_folder(root / "validation" / "good", 2)
    split = find_training_images(custom(root), seed=42)
    assert (len(split.train), len(split.validation)) == (4, 2)
    assert split.validation[0].parent == root / "validation" / "good"


def test_images_directly_in_train(tmp_path):
    fill_folder(tmp_path / "set" / "train", 5)
    assert len(find_training_images(custom(tmp_path / "set"), 42).train) == 4


def test_plain_folder_of_good_images(tmp_path):
    fill_folder(tmp_path / "goods", 5)
    assert len(find_training_images(custom(tmp_path / "goods"), 42).train) == 4


@pytest.mark.parametrize("layout", ["mvtec_ad", "mvtec_loco", "visa"])
def test_layouts_with_categories(tmp_path, layout):
    defects = {"mvtec_loco": {"good": 1, "logical_anomalies": 1, "structural_anomalies": 1}}.get(
        layout, {"good": 1, "bad": 1}
    )
    root = make_dataset(tmp_path / "capsules", train=3, test=defects)
    if layout == "mvtec_loco":
        fill_folder(root / "validation" / "good", 2)
    dataset = open_dataset(layout, tmp_path, "capsules")
    assert dataset.name == f"{layout}/capsules"
    split = find_training_images(dataset, 42)
    assert (len(split.train), len(split.validation)) == ((3, 2) if layout == "mvtec_loco" else (2, 1))
    assert {sample.class_name for sample in find_test_samples(dataset).samples} == set(defects)


def test_category_that_is_not_there_lists_those_that_are(tmp_path):
    make_dataset(tmp_path / "capsules")
    with pytest.raises(UserError, match="no category 'bottle' .*choose from capsules"):
        open_dataset("mvtec_ad", tmp_path, "bottle")


def test_missing_folder_names_its_flag(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist.*--custom_dataset_path"):
        custom(tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere does not exist.*--visa_path"):
        open_dataset("visa", tmp_path / "nowhere", "bottle")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({}, "no train folder"),
        ({"train/good": 1}, "only one image; training needs at least two"),
        ({"train/good": 0}, "holds no images; training needs at least two"),
        ({"train/good": 4, "train/scratch": 2}, "images in scratch; training takes good images only"),
        ({"train/scratch": 2}, "images in scratch; training takes good images only"),
        ({"train": 2, "train/good": 2}, "holds images beside the folder good"),
        ({"": 3, "test/scratch": 2}, "images in test; training takes good images only"),
        ({"train/good": 4, "validation/good": 0}, "validation.good holds no images"),
        ({"train/good": 4, "validation": 3}, "validation.good holds no images"),
    ],
)
def test_training_folders_that_are_refused(tmp_path, folders, message):
    root = tmp_path / "set"
    for name, count in sorted(folders.items(), reverse=True):
        if name == "" or (root / name).exists():
            for index in range(count):
                fill_folder(tmp_path / "spare" / str(index), 1)
                (tmp_path / "spare" / str(index) / "000.png").rename(root / name / f"{index}.png")
        else:
            fill_folder(root / name, count)
    root.mkdir(exist_ok=True)
    with pytest.raises(UserError, match=message):
        find_training_images(custom(root), 42)


def test_test_folders_that_are_refused(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    with pytest.raises(UserError, match="no test folder"):
        find_test_samples(custom(root))
    (root / "test" / "good").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no images"):
        find_test_samples(custom(root))
    fill_folder(tmp_path / "loose", 1)
    (tmp_path / "loose" / "000.png").rename(root / "test" / "000.png")
    with pytest.raises(UserError, match="outside class folders"):
        find_test_samples(custom(root))


def test_magnetic_tiles(shared_data):
    dataset = custom(shared_data / "magnetic_tile")
    split = find_training_images(dataset, 42)
    assert (len(split.train), len(split.validation)) == (640, 71)
    classes = Counter(sample.class_name for sample in find_test_samples(dataset).samples)
    assert classes == {"good": 241, "blowhole": 115, "break": 85, "crack": 57, "fray": 32, "uneven": 103}


@pytest.mark.parametrize("name", ["val", "Valid"])
def test_a_folder_that_might_be_meant_as_validation_is_told(tmp_path, name):
    fill_folder(tmp_path / "train" / "good", 4)
    fill_folder(tmp_path / name / "good", 2, seed=10)
    split = find_training_images(custom(tmp_path), 42)
    expected = f"{tmp_path / name} is not used; images to hold out belong into {tmp_path / 'validation' / 'good'}"
    assert split.notes == [expected] and len(split.train) == 3
