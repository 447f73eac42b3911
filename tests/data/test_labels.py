"""Good images in folders of other names than good."""

import pytest

from conftest import fill_folder, make_dataset
from efficientad.data.datasets import Dataset, find_test_samples, find_training_images
from efficientad.data.labels import is_good_name
from efficientad.system.errors import UserError


@pytest.mark.parametrize(
    "name",
    [
        *("good", "Good", "GOOD", "normal", "Normal ", "ok", "OK", "OK ", "Okay"),
        *("pass", "PASSED", "iO", "i.O.", "I.O"),
        *("no defect", "No_Defects", "defect-free", "defect_free", "Non-Defective", " good", "anomaly free"),
    ],
)
def test_names_of_good_parts(name):
    assert is_good_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "ko", "NOK", "n.i.O.", "not ok", "not_good", "bad", "defect", "scratch", "abnormal", "anomaly"),
        *("good_edge_chipped", "passivation", "normals flipped", "0", "io_port", "goods", "no"),
    ],
)
def test_names_that_may_be_those_of_defects(name):
    assert not is_good_name(name)


@pytest.mark.parametrize("name", ["OK", "normal", "pass", "iO", "Good", "no defect"])
def test_a_good_folder_of_another_name_is_taken_and_told(tmp_path, name):
    root = tmp_path / "set"
    fill_folder(root / "train" / name, 5)
    fill_folder(root / "validation" / name, 2, seed=20)
    fill_folder(root / "test" / name, 2, seed=30)
    fill_folder(root / "test" / "Zinc", 1, seed=40)
    split = find_training_images(Dataset("custom", root), 42)
    assert (len(split.train), len(split.validation)) == (5, 2)
    assert split.notes == [f"{root / part / name} is taken as good" for part in ("train", "validation")]
    found = find_test_samples(Dataset("custom", root))
    assert [(sample.class_name, sample.image_name, sample.is_anomalous) for sample in found.samples] == [
        ("Zinc", "000.png", True),
        ("good", "000.png", False),
        ("good", "001.png", False),
    ]
    assert found.notes == [f"{root / 'test' / name} is taken as good"]


def test_the_usual_names_need_no_notes(dataset_folder):
    dataset = Dataset("custom", dataset_folder)
    assert find_training_images(dataset, 42).notes == find_test_samples(dataset).notes == []


@pytest.mark.parametrize("part", ["train", "test", "validation"])
def test_two_good_folders_are_refused(tmp_path, part):
    root = make_dataset(tmp_path / "set", train=3)
    if part == "validation":
        fill_folder(root / part / "good", 1, seed=60)
    fill_folder(root / part / "OK", 2, seed=70)
    find = find_test_samples if part == "test" else lambda dataset: find_training_images(dataset, 42)
    with pytest.raises(UserError, match=f"{part} has several folders of good images, OK and good; put all good"):
        find(Dataset("custom", root))


def test_an_empty_good_folder_beside_one_of_another_name(tmp_path):
    root = make_dataset(tmp_path / "set", test={"ok": 2, "dent": 1})
    (root / "test" / "good").mkdir()
    found = find_test_samples(Dataset("custom", root))
    assert [sample.class_name for sample in found.samples] == ["dent", "good", "good"]
    assert found.notes == [f"{root / 'test' / 'ok'} is taken as good", f"{root / 'test' / 'good'} holds no images"]


def test_defects_beside_a_good_folder_of_another_name_are_refused(tmp_path):
    fill_folder(tmp_path / "train" / "OK", 3)
    fill_folder(tmp_path / "train" / "NOK", 3)
    with pytest.raises(UserError, match="also holds images in NOK; training takes good images only"):
        find_training_images(Dataset("custom", tmp_path), 42)


def test_a_test_folder_without_good_images_is_told(tmp_path):
    root = make_dataset(tmp_path / "set", test={"dent": 2, "good": 0})
    notes = find_test_samples(Dataset("custom", root)).notes
    assert notes == [
        f"{root / 'test' / 'good'} holds no images",
        f"{root / 'test'} holds no good images, so AUROC and false-positive rate are undefined",
    ]


def test_what_is_no_image_is_counted(tmp_path):
    root = make_dataset(tmp_path / "set", test={"dent": 1, "good": 1})
    fill_folder(root / "validation" / "good", 2, seed=50)
    fill_folder(root / "validation" / "dent", 1, seed=60)
    for name in ("train/good/a.dat", "train/good/.hidden", "validation/good/b.DAT", "validation/good/list.csv"):
        (root / name).write_text("x")
    assert find_training_images(Dataset("custom", root), 42).notes == [
        f"1 image in {root / 'validation'} outside good left out",
        "3 files are no images: .dat (2), .csv (1)",
    ]
    (root / "test" / "labels.csv").write_text("x")
    assert find_test_samples(Dataset("custom", root)).notes == [
        f"1 file is no image: {root / 'test' / 'labels.csv'}"
    ]
    (root / "test" / "dent" / "a.dat").write_text("x")
    assert find_test_samples(Dataset("custom", root)).notes == ["2 files are no images: .csv (1), .dat (1)"]
