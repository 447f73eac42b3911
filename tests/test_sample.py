"""The drawn sample: repeatable, annotated where its defects are, and not to be solved by a global statistic."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import make_sample
import prepare_dataset
from efficientad.evaluation.image_metrics import image_auroc

ROOT = Path(__file__).resolve().parents[1]


def draw(folder, *words):
    parser = make_sample.get_parser()
    make_sample.main(parser.parse_args(["--output_dir", str(folder), *map(str, words)]), parser)
    return folder


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("sample"))


def global_statistics(image):
    """Mean, contrast, colour and edge energy, each in several ways."""
    pixels = np.asarray(image).astype(np.float64)
    gray = pixels.mean(axis=2)
    brightest, darkest = pixels.max(axis=2), pixels.min(axis=2)
    saturation = (brightest - darkest) / np.maximum(brightest, 1)
    red_blue = pixels[..., 0] - pixels[..., 2]
    down, right = np.diff(gray, axis=0), np.diff(gray, axis=1)
    return {
        **{f"mean of {name}": pixels[..., channel].mean() for channel, name in enumerate("RGB")},
        "mean": gray.mean(),
        "contrast": gray.std(),
        "darkest": gray.min(),
        "brightest": gray.max(),
        "lower decile": np.quantile(gray, 0.1),
        "saturation": saturation.mean(),
        "spread of saturation": saturation.std(),
        "highest saturation": saturation.max(),
        "red - blue": red_blue.mean(),
        "spread of red - blue": red_blue.std(),
        "edges": np.abs(down).mean() + np.abs(right).mean(),
        "edge energy": np.square(down).mean() + np.square(right).mean(),
        "strongest edge": np.abs(right).max(),
    }


def test_no_global_statistic_finds_the_defects(sample):
    photos = make_sample.list_photos(140, 8)
    rows = []
    for photo in photos:
        with Image.open(sample / photo.name) as image:
            rows.append(global_statistics(image))
    y_true = np.array([bool(photo.defects) for photo in photos])
    for name in rows[0]:
        auroc = image_auroc(y_true, np.array([row[name] for row in rows]))
        assert max(auroc, 1 - auroc) <= 0.8, name


def test_sample_depends_on_its_seed_alone(tmp_path, sample):
    again = draw(tmp_path / "again")
    other = draw(tmp_path / "other", "--seed", 2, "--good", 3, "--defective", 1)
    files = sorted(path.relative_to(sample) for path in sample.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((sample / name).read_bytes() == (again / name).read_bytes() for name in files)
    name = Path("images") / "board_0001.jpg"
    assert (sample / name).read_bytes() != (other / name).read_bytes()


def test_annotations_are_where_the_defects_are():
    """A defect changes the picture within its outline, and nowhere else but for blur and compression."""
    for kind in make_sample.DEFECTS:
        board, outlines = make_sample.draw_board(np.random.default_rng(5), (kind,))
        assert board.size == (320, 320)
        assert [name for name, _ in outlines].count("led") == 16
        assert [name for name, _ in outlines].count("marked") == 1
        (outline,) = [np.array(points) for name, points in outlines if name == kind]
        assert outline.min() >= 0 and outline.max() <= 320
        largest = {"particle": 24, "big_particle": 64}.get(kind, 54)
        assert np.ptp(outline, axis=0).min() > 4 and np.ptp(outline, axis=0).max() < largest


def test_coco_file_and_list_of_wrong_labels(sample):
    coco = json.loads((sample / "annotations" / "instance.json").read_text())
    names = {category["id"]: category["name"] for category in coco["categories"]}
    assert list(names.values()) == ["led", "marked", "particle", "big_particle", "flipped", "tilted", "damaged_led"]
    kinds = {image["id"]: set() for image in coco["images"]}
    for annotation in coco["annotations"]:
        kinds[annotation["image_id"]].add(names[annotation["category_id"]])
    assert all({"led", "marked"} <= found for found in kinds.values())
    assert sum(found == {"led", "marked"} for found in kinds.values()) == 14
    assert sum(len(found) == 4 for found in kinds.values()) == 4
    with (sample / "mislabelled.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert 2 <= len(rows) <= 5
    assert all((sample / row["image"]).is_file() and row["labelled"] != row["shows"] for row in rows)
    claimed = {image["file_name"]: kinds[image["id"]] - {"led", "marked"} for image in coco["images"]}
    for row in rows:
        if row["image"].startswith("images/"):
            assert claimed[Path(row["image"]).name] == {row["labelled"]}


def test_wrong_labels_are_among_the_demos_test_images(sample, tmp_path):
    demo = (ROOT / "dataset" / "demo.sh").read_text()
    flags = demo.split("run python prepare_dataset.py ")[1].split("\n")[0]
    words = flags.replace("dataset/sample", str(sample)).replace("dataset/boards", str(tmp_path / "set")).split()
    prepare_dataset.main(prepare_dataset.get_parser().parse_args(words))
    with (sample / "mislabelled.csv").open() as file:
        expected = {Path(row["image"]).name for row in csv.DictReader(file)}
    assert expected <= {path.name for path in (tmp_path / "set" / "test").rglob("*.jpg")}


def test_folder_in_use_is_refused(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit) as raised:
        draw(tmp_path)
    assert raised.value.code == 2 and "is there already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        draw(tmp_path / "mine.txt" / "below")
    assert "below cannot be made (Not a directory); choose another --output_dir" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
