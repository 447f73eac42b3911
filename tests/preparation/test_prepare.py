"""prepare_dataset.py, called as a user calls it: what it makes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import prepare_dataset
from conftest import fail
from efficientad.data.datasets import find_test_samples, find_training_images, open_dataset
from efficientad.preparation.plan import distinct_names
from efficientad.preparation.sources import find_normal_categories, name_class_folders
from originals import BOX, prepare, read_csv, tree

ROOT = Path(__file__).resolve().parents[2]


def test_images_go_to_a_folder_for_each_kind_of_defect(originals, capsys):
    prepare(*originals.flags())
    output = originals.root / "set"
    names = tree(output)
    assert [name for name in names if "good" not in name] == [
        "ground_truth/defect_type_12/b_mask.png",
        "ground_truth/defect_type_3/a_mask.png",
        "ground_truth/defect_type_3/b_mask.png",
        "image_counts.csv",
        "manifest.csv",
        "test/defect_type_12/b.png",
        "test/defect_type_3/a.png",
        "test/defect_type_3/b.png",
    ]
    assert sum(name.startswith("train/good/") for name in names) == 9  # 0.8 of ten and the annotated good one
    assert sum(name.startswith("test/good/") for name in names) == 2
    assert {"c.png", "x.PNG"} <= {Path(name).name for name in names if "good" in name}
    printed = capsys.readouterr().out
    assert "Categories that count as normal, not as defects: LED (1)" in printed
    assert "test/defect_type_12      1  bent" in printed
    assert f"--custom_dataset_path {output}" in printed
    counts = {row["directory"]: int(row["count"]) for row in read_csv(output / "image_counts.csv")}
    assert counts == {"train/good": 9, "test/good": 2, "test/defect_type_3": 2, "test/defect_type_12": 1}
    dataset = open_dataset("custom", output, "")
    assert len(find_training_images(dataset, 0).train) == 8
    assert len(find_test_samples(dataset).samples) == 5


def test_manifest_says_where_everything_comes_from(originals):
    prepare(*originals.flags())
    output = originals.root / "set"
    rows = read_csv(output / "manifest.csv")
    assert {row["destination"] for row in rows} == {name for name in tree(output) if name[:4] in ("trai", "test")}
    for row in rows:
        data = (output / row["destination"]).read_bytes()
        assert Path(row["source"]).read_bytes() == data
        assert row["sha256"] == hashlib.sha256(data).hexdigest()


def test_split_depends_on_seed_and_names_alone(originals, monkeypatch):
    for name in ("p.png", "q.png", "r.png"):
        originals.annotated(name, 1)
    prepare(*originals.flags("one"))
    walk = os.walk

    def reversed_walk(top, **options):
        for parent, folders, names in walk(top, **options):
            yield parent, folders, sorted(names, reverse=True)

    monkeypatch.setattr(os, "walk", reversed_walk)
    originals.coco["images"].reverse()
    moved = originals.root.with_name("moved")
    originals.root.rename(moved)
    originals.root = moved
    prepare(*originals.flags("two"))
    prepare(*originals.flags("three"), "--seed", 7)
    one, two, three = (tree(moved / name) for name in ("one", "two", "three"))
    assert one == two != three


@pytest.mark.parametrize(("ratio", "train"), [(1, 11), (0.99, 10), (0.5, 6), (0.01, 1)])
def test_train_ratio(originals, ratio, train):
    prepare(*originals.flags(), "--train_ratio", ratio)
    assert len(list((originals.root / "set" / "train" / "good").iterdir())) == train


def test_copies_stay_on_one_side(originals, capsys):
    for number in range(5):
        (originals.root / "normal" / f"copy_{number}.png").write_bytes(
            (originals.root / "normal" / "lot" / "3.png").read_bytes()
        )
    for seed in range(4):
        prepare(*originals.flags(f"set{seed}"), "--train_ratio", 0.5, "--seed", seed)
        rows = read_csv(originals.root / f"set{seed}" / "manifest.csv")
        assert len(rows) == 16 + 3
        sides = {
            side: {row["sha256"] for row in rows if row["destination"].startswith(side)}
            for side in ("train", "test")
        }
        assert sides["train"] and sides["test"] and not sides["train"] & sides["test"]
    assert "5 good images are byte-identical copies" in capsys.readouterr().out


def test_good_and_defective_at_once_is_reported_and_not_learnt_from(originals, capsys):
    bad = originals.root / "images" / "a.png"
    (originals.root / "normal" / "secretly.png").write_bytes(bad.read_bytes())
    prepare(*originals.flags())
    assert "Good images that are byte-identical to defective ones: 1;" in (printed := capsys.readouterr().out)
    assert f"secretly.png is {bad}" in printed
    assert not any("secretly" in name for name in tree(originals.root / "set"))


def test_file_that_is_annotated_good_and_lies_among_the_good_ones_comes_once(originals):
    flags = originals.flags()
    flags[5] = originals.root / "images"  # the good ones are in the same folder
    prepare(*flags)
    good = [name for name in tree(originals.root / "set") if "/good/" in name]
    assert [Path(name).name for name in good] == ["c.png"]


def test_two_images_of_one_name_both_arrive(originals):
    originals.good("other/3.png", "other/3.jpg")
    originals.annotated("other/a.png", 3)
    prepare(*originals.flags(), "--train_ratio", 1)
    names = tree(originals.root / "set")
    assert {f"train/good/{name}" for name in ("3.png", "3_2.jpg", "3_3.png")} <= set(names)
    assert {f"test/defect_type_3/{name}" for name in ("a.png", "a_2.png")} <= set(names)
    assert {f"ground_truth/defect_type_3/{name}" for name in ("a_mask.png", "a_2_mask.png")} <= set(names)
    assert len([name for name in names if name.startswith("train/good/")]) == 13


def test_distinct_names_leave_wanted_names_alone():
    assert distinct_names(["x.png"] * 3) == ["x.png", "x_2.png", "x_3.png"]
    assert distinct_names(["a.png", "A.jpg", "a_2.png", "b.1.png", "b.2.png"]) == [
        "a.png",
        "A_3.jpg",
        "a_2.png",
        "b.1.png",
        "b.2.png",
    ]


def test_normal_categories():
    categories = {1: "LED", 2: "Marked", 3: "dust", 4: "OK", 5: "good as new"}
    assert find_normal_categories(categories, None) == {1, 2, 4}
    assert find_normal_categories(categories, ["DUST", "5"]) == {3, 5}
    assert find_normal_categories(categories, []) == set()


def test_chosen_normal_categories(originals, monkeypatch, capsys):
    prepare(*originals.flags(), "--normal_categories", "dust", "1")
    assert {name.split("/")[1] for name in tree(originals.root / "set") if name.startswith("test/")} == {
        "good",
        "defect_type_12",
    }
    message = fail(monkeypatch, capsys, prepare_dataset, *originals.flags("other"), "--normal_categories", "sun")
    assert "no such category; choose from LED (1), dust (3), bent (12)" in message


def test_category_on_nearly_every_image_is_suspected(originals, capsys):
    for number in range(12):
        originals.annotated(f"{number}.png", 3)
    prepare(*originals.flags())
    printed = capsys.readouterr().out
    assert (
        "14 of the 15 annotated images have the category dust (3)" in printed and "--normal_categories" in printed
    )
    assert "have the category bent" not in printed


@pytest.mark.parametrize(("choice", "good"), [("skip", 11), ("good", 12)])
def test_images_without_annotations(originals, choice, good, capsys):
    originals.annotated("bare.png")
    prepare(*originals.flags(), "--unannotated", choice)
    assert len([name for name in tree(originals.root / "set") if "/good/" in name]) == good
    assert "1 image has no annotations: " in capsys.readouterr().out


def test_folder_names():
    categories = {
        1: "dust",
        2: "a/b: c",
        3: "../..",
        4: "Dust",
        5: "good",
        6: "__MACOSX",
        7: "",
        8: ".",
        9: "бит",
        10: "x" * 999,
    }
    assert name_class_folders(categories, use_names=False)[3] == "defect_type_3"
    folders = name_class_folders(categories, use_names=True)
    assert folders[2] == "a_b_ c" and folders[5] == "good_5" and folders[9] == "бит"
    assert len({name.casefold() for name in folders.values()}) == len(categories)
    assert name_class_folders({3: "a", 4: "a", 5: "a_3", 6: "CON"}, use_names=True) == {
        3: "defect_type_3",
        4: "a_4",
        5: "defect_type_5",
        6: "CON_6",
    }
    for name in folders.values():
        assert 0 < len(name) < 70 and "/" not in name and name[0] != "." and name.casefold() != "good"


def test_folders_by_name(originals):
    prepare(*originals.flags(), "--folder_names", "name")
    assert {name.split("/")[1] for name in tree(originals.root / "set") if name.startswith("test/")} == {
        "good",
        "dust",
        "bent",
    }


def test_links(originals):
    prepare(*originals.flags(), "--link")
    for row in read_csv(originals.root / "set" / "manifest.csv"):
        assert (originals.root / "set" / row["destination"]).samefile(row["source"])


def test_without_coco(originals, capsys):
    defects = originals.root / "defects"
    for name in ("dent/1.png", "dent/deep/1.png", "dust/1.JPG", "loose.png"):
        originals.image(defects / name, len(name))
    flags = ["--annotations", "none", "--unlabeled_dir", originals.root / "normal"]
    prepare(*flags, "--defect_dir", defects, "--output_dir", originals.root / "set")
    names = tree(originals.root / "set")
    assert [name for name in names if "/good/" not in name] == [
        "image_counts.csv",
        "manifest.csv",
        "test/defect/loose.png",
        "test/dent/1.png",
        "test/dent/1_2.png",
        "test/dust/1.JPG",
    ]
    assert sum("/good/" in name for name in names) == 10


def test_good_images_from_the_coco_file_alone(originals):
    flags = originals.flags()
    flags[5] = "none"
    prepare(*flags)
    assert [name for name in tree(originals.root / "set") if "/good/" in name] == ["train/good/c.png"]


def test_entries_of_one_file_are_taken_together(originals):
    entry = dict(originals.coco["images"][0], id=50)
    originals.coco["images"].append(entry)
    originals.coco["annotations"].append({"id": 90, "image_id": 50, "category_id": 12, "bbox": BOX})
    prepare(*originals.flags())
    assert {"test/defect_type_3/a.png", "test/defect_type_12/a.png"} <= set(tree(originals.root / "set"))


def test_paths_annotated_on_windows(originals):
    originals.coco["images"][1]["file_name"] = "sub\\b.png"
    prepare(*originals.flags())
    assert "test/defect_type_12/b.png" in tree(originals.root / "set")


def test_works_from_any_folder_without_torch(originals, tmp_path):
    """And hash, split and names survive a run with other threads."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import prepare_dataset as p\n"
        "p.main(p.get_parser().parse_args())\n"
        "assert not {'torch', 'sklearn'} & set(sys.modules), 'heavy import'\n"
    )
    words = [*map(str, originals.flags("one")), "--num_workers", "0"]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    prepare(*originals.flags("two"), "--num_workers", 3)
    assert tree(originals.root / "one") == tree(originals.root / "two")


def test_deeppcb(shared_data, tmp_path, capsys):
    data = shared_data / "deeppcb"
    flags = ["--annotations", data / "annotations/instance.json", "--labeled_dir", data / "images"]
    prepare(*flags, "--unlabeled_dir", data / "normal" / "B", "--output_dir", tmp_path / "set")
    counts = {row["directory"]: int(row["count"]) for row in read_csv(tmp_path / "set" / "image_counts.csv")}
    assert (counts["train/good"], counts["test/good"], counts["test/defect_type_1"]) == (180, 45, 86)
    with Image.open(tmp_path / "set/ground_truth/defect_type_3/20085000_test_mask.png") as mask:
        assert mask.size == (640, 640) and mask.crop((409, 394, 435, 422)).getextrema() == (255, 255)
