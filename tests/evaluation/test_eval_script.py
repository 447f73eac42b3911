"""eval.py, called as a user calls it: its output and files, and common mistakes."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

import eval as eval_script
from commands import evaluate
from conftest import draw_part, fail, fill_folder, make_dataset, write_six_files
from efficientad.detector.checkpoint import load_teacher_weights, save_model
from efficientad.detector.model import EfficientAD
from efficientad.system.runs import lock_folder
from reports import Page


def test_further_thresholds_and_the_sweep(output, dataset_folder, capsys):
    capsys.readouterr()
    evaluate("-d", "custom", "-c", dataset_folder, "-o", output, "-f", "none", "-T", 7, "--thresholds", 1e6, -1)
    printed = capsys.readouterr().out
    assert "threshold 7 (given)" in printed
    assert printed.index("Overall") < printed.index("\nThreshold 1e+06:") < printed.index("\nThreshold -1:")
    assert printed.count("Final image auc") == 3
    sweep = printed[printed.index("Other thresholds on these images;") :].splitlines()
    assert any("in use" in line and line.split()[0] == "7" for line in sweep)
    assert any("best F1" in line for line in sweep)
    metrics = json.loads((output / "anomaly_maps/custom/metrics.json").read_text())
    assert [other["threshold"] for other in metrics["others"]] == [1e6, -1]
    assert metrics["others"][0]["overall"]["recall"] == 0
    assert metrics["others"][1]["overall"]["recall"] == 1
    assert [row for row in metrics["sweep"] if "in use" in row["notes"]][0]["threshold"] == 7


def test_tiff_maps_are_float_at_the_images_own_size(output, dataset_folder):
    """60 x 40 images give 60 x 40 maps, never rounded; the score is the maximum of the 256 x 256 map."""
    Image.new("RGB", (31, 57), (255, 0, 255)).save(dataset_folder / "test" / "defect_type_1" / "odd.1.png")
    evaluate("-d", "custom", "-c", dataset_folder, "-o", output)
    folder = output / "anomaly_maps" / "custom"
    with Image.open(folder / "test/good/000.tiff") as image:
        assert (image.mode, image.size) == ("F", (60, 40))
        values = np.asarray(image)
    assert (values != np.rint(values)).any()
    with Image.open(folder / "test/defect_type_1/odd.1.tiff") as image:
        assert image.size == (31, 57)
    with (folder / "scores.csv").open() as file:
        scores = {(row["defect_class"], row["image_name"]): float(row["y_score"]) for row in csv.DictReader(file)}
    assert len(scores) == 8
    highest = np.sort(values, axis=None)[-round(0.006 * values.size) :].mean()  # of the map at the image's own size
    assert scores["good", "000.png"] == pytest.approx(highest, rel=0.2)


def test_the_report_has_scores_pictures_facts_and_commands(output, dataset_folder):
    masks = dataset_folder / "ground_truth" / "defect_type_1"
    masks.mkdir(parents=True)
    Image.new("L", (60, 40), 255).save(masks / "000_mask.png")
    words = ["-d", "custom", "-c", dataset_folder, "-o", output, "-T", 3.5]
    evaluate(*words)
    folder = output / "anomaly_maps" / "custom"
    page = Page(folder / "report.html")
    with (folder / "scores.csv").open() as file:
        expected = {(row["defect_class"], row["image_name"]): float(row["y_score"]) for row in csv.DictReader(file)}
    rows = page.data["images"]
    kinds = [name for name, *_ in page.data["classes"]]
    assert {(kinds[row[0]], row[1]): row[2] for row in rows} == pytest.approx(expected)
    for row in rows:
        assert (folder / page.data["test_link"] / row[3]).is_file() and (folder / row[4]).is_file()
        assert row[5:7] == [60, 40] and len(row[8]) == 64**2
        assert bool(row[9]) == (row[3] == "defect_type_1/000.png")
    text = (folder / "report.html").read_text()
    for fact in ("parts", "9 good images, 1 more held out", "2 steps of batch size 5", "--threshold 3.5"):
        assert fact in text
    assert f"python train.py --dataset custom --custom_dataset_path {dataset_folder}" in text


def test_evaluating_again_replaces_its_own_files_and_no_others(output, dataset_folder, capsys):
    words = ["-d", "custom", "-c", dataset_folder, "-o", output]
    folder = output / "anomaly_maps" / "custom"
    evaluate(*words, "-f", "jpg", "-T", 1)
    with Image.open(folder / "test/good/001.jpg") as image:
        assert image.size == (120, 40)
    (folder / "test/good/notes.txt").write_text("mine")
    shutil.rmtree(dataset_folder / "test" / "defect_type_2")
    evaluate(*words, "-f", "tiff", "-T", 1e6)
    left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert left == [
        "metrics.json",
        "mismatch_samples.csv",
        "report.html",
        "scores.csv",
        "test/defect_type_1/000.tiff",
        "test/defect_type_1/001.tiff",
        "test/good/000.tiff",
        "test/good/001.tiff",
        "test/good/002.tiff",
        "test/good/notes.txt",
        "written_files.json",
    ]
    mismatches = (folder / "mismatch_samples.csv").read_text().splitlines()
    assert mismatches[0] == "defect_class,image_name,y_score,path,threshold,margin"
    assert [line.split(",")[:2] for line in mismatches[1:]].count(["defect_type_1", "000.png"]) == 1
    assert len(mismatches) == 3  # a threshold of a million misses both defects


def test_six_files_of_other_tools_give_the_same_scores(tmp_path, capsys):
    """The real small networks, with the shipped teacher."""
    root = make_dataset(tmp_path / "set", train=1, test={"good": 1, "dent": 1})
    model = EfficientAD()
    load_teacher_weights(model, None)
    model.quantiles.copy_(torch.tensor([[0.5, 2.0], [0.1, 0.7], [0.0, 0.1]]))
    (tmp_path / "own").mkdir()
    save_model(model, tmp_path / "own" / "model.pt", {})
    write_six_files(model, tmp_path / "six")
    written = []
    for name in ("own", "six"):
        evaluate("-d", "custom", "-c", root, "-w", tmp_path / name, "-o", tmp_path / name, "-m", "small")
        written.append((tmp_path / name / "anomaly_maps" / "custom" / "scores.csv").read_text())
    assert written[0] == written[1]
    assert "Final image auc: " in capsys.readouterr().out


@pytest.mark.parametrize("kept", ["good", "defect_type_1"])
def test_only_good_or_only_defective_test_images(output, dataset_folder, kept, capsys):
    for folder in list((dataset_folder / "test").iterdir()):
        if folder.name != kept:
            shutil.rmtree(folder)
    evaluate("-d", "custom", "-c", dataset_folder, "-o", output, "-f", "none")
    printed = capsys.readouterr().out
    assert "AUC undefined: the test set has no" in printed
    assert "Without both good and defective test images there is nothing to compare" in printed
    assert "whatever the threshold" not in printed  # a table of dashes


def test_an_image_in_two_classes_is_reported(output, dataset_folder, capsys):
    shutil.copy(dataset_folder / "test/defect_type_1/000.png", dataset_folder / "test/defect_type_2/copy.png")
    evaluate("-d", "custom", "-c", dataset_folder, "-o", output, "-f", "none")
    assert "Over the 7 distinct images" in capsys.readouterr().out


def draw_masks(dataset_folder, count=4):
    """For the first defective images."""
    images = sorted((dataset_folder / "test").glob("defect*/*.png"))[:count]
    for number, path in enumerate(images):
        mask = np.zeros((40, 60), dtype=np.uint8)
        mask[10 : 20 + number, 5:20] = 255
        file = dataset_folder / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(file)


def test_masks_give_pixel_metrics_whatever_the_map_format(output, dataset_folder, capsys):
    words = ["-d", "custom", "-c", dataset_folder, "-o", output]
    folder = output / "anomaly_maps" / "custom"
    evaluate(*words, "-f", "none")
    assert "Pixels" not in capsys.readouterr().out
    assert json.loads((folder / "metrics.json").read_text())["pixel_metrics"] is None
    draw_masks(dataset_folder, count=3)
    found = []
    for map_format in ("none", "jpg", "tiff"):
        evaluate(*words, "-f", map_format)
        printed = capsys.readouterr().out
        assert "interval" in printed and "AU-PRO  AU-PRO" in printed
        assert "1 of the 4 defective images has no mask, or an empty one" in printed
        found.append(json.loads((folder / "metrics.json").read_text()))
    assert found[0] == found[1] == found[2]
    metrics = found[0]["pixel_metrics"]
    assert [(row["name"], row["images"]) for row in metrics["classes"]] == [
        ("defect_type_1", 2),
        ("defect_type_2", 1),
    ]
    assert metrics["left_out"] == 1

    truth, scores = [], []
    for path in sorted((dataset_folder / "test").glob("*/*.png")):
        mask_file = dataset_folder / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        if mask_file.exists() or path.parent.name == "good":
            mask = np.asarray(Image.open(mask_file)) if mask_file.exists() else np.zeros((40, 60))
            truth.append(mask.ravel() > 0)
            scores.append(np.asarray(Image.open(folder / "test" / path.parent.name / f"{path.stem}.tiff")).ravel())
    direct = roc_auc_score(np.concatenate(truth), np.concatenate(scores))
    assert metrics["overall"]["auroc"] == pytest.approx(direct, abs=1e-3)


def test_masks_that_do_not_belong_are_reported(output, dataset_folder, monkeypatch, capsys):
    words = ["-d", "custom", "-c", dataset_folder, "-o", output, "-f", "none"]
    draw_masks(dataset_folder)
    wrong = dataset_folder / "ground_truth/defect_type_2/001_mask.png"
    Image.new("L", (40, 40)).save(wrong)
    message = fail(monkeypatch, capsys, eval_script, *words)
    assert f"{wrong} is 40 x 40, its image" in message and "is 60 x 40" in message
    assert not (output / "anomaly_maps").exists()
    (dataset_folder / "ground_truth").rename(dataset_folder / "masks")
    fill_folder(dataset_folder / "ground_truth" / "other_class", 1)
    evaluate(*words)
    assert "Note: 1 file in" in capsys.readouterr().out


def test_wrong_evaluation_commands(output, dataset_folder, monkeypatch, capsys):
    custom = ["-d", "custom", "-c", dataset_folder, "-o", output]

    def error(*words):
        return fail(monkeypatch, capsys, eval_script, *words)

    assert "holds a small model but --model_size is medium" in error(*custom, "-m", "medium")
    assert "train first" in error(*custom, "-w", output / "nowhere")
    assert "train first" in error("-d", "custom", "-c", dataset_folder, "-o", output / "other")
    assert "expects a number or auto" in error(*custom, "-T", "nan")
    assert "expects a number or auto" in error(*custom, "-T", "inf")
    assert "expects a number or auto, not 'automatic'" in error(*custom, "-T", "automatic")
    (dataset_folder / "test" / "good" / "000.png").write_text("text")
    assert "cannot read 1 image" in error(*custom)
    shutil.rmtree(dataset_folder / "test")
    assert "no test folder" in error(*custom)


def test_a_folder_in_use_is_one_line(output, dataset_folder, monkeypatch, capsys):
    words = ["-d", "custom", "-c", dataset_folder, "-o", output]
    with lock_folder(output / "anomaly_maps/custom"):
        error = fail(monkeypatch, capsys, eval_script, *words)
    assert "custom is in use by another run (process " in error


def test_a_class_named_like_a_result_is_in_nobodys_way(output, dataset_folder):
    (dataset_folder / "test" / "defect_type_1").rename(dataset_folder / "test" / "scores.csv")
    evaluate("-d", "custom", "-c", dataset_folder, "-o", output)
    folder = output / "anomaly_maps/custom"
    assert (folder / "scores.csv").is_file() and (folder / "test/scores.csv/000.tiff").is_file()


def test_results_of_an_earlier_version_are_replaced(output, dataset_folder):
    """They were all in the folder of the maps, and their list, too."""
    words = ["-d", "custom", "-c", dataset_folder, "-o", output]
    evaluate(*words, "-f", "jpg")
    folder = output / "anomaly_maps/custom"
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.rename(folder / "test" / path.name)
    names = json.loads((folder / "test/written_files.json").read_text())
    names = [name.removeprefix("test/") for name in names]
    (folder / "test/written_files.json").write_text(json.dumps(names))
    (folder / "test/notes.txt").write_text("mine")
    evaluate(*words)
    left = {path.name for path in (folder / "test").rglob("*") if path.is_file()}
    assert left == {"notes.txt", "000.tiff", "001.tiff", "002.tiff"}
    assert (folder / "report.html").is_file() and "notes" not in (folder / "written_files.json").read_text()


def test_nothing_but_maps_is_where_the_evaluators_of_mvtec_look(output, dataset_folder):
    """LOCO's takes every entry of this folder that is not hidden for a class, and MVTec AD's wants one map each."""
    Image.new("RGB", (31, 57)).save(dataset_folder / "test" / "good" / "odd.1.png")
    evaluate("-d", "custom", "-c", dataset_folder, "-o", output)
    folder = output / "anomaly_maps/custom/test"
    assert {path.name for path in folder.iterdir()} == {"good", "defect_type_1", "defect_type_2"}
    for image in (dataset_folder / "test").glob("*/*"):
        found = list((folder / image.parent.name).glob(f"{image.stem}.*"))
        assert [path.name for path in found] == [f"{image.stem}.tiff"]
        with Image.open(found[0]) as opened, Image.open(image) as original:
            assert (opened.mode, opened.size) == ("F", original.size)


def test_images_with_the_longest_names_have_maps(output, dataset_folder):
    for end in "ab":
        draw_part(5).save(dataset_folder / "test" / "good" / ("x" * 250 + f"{end}.png"))
    folder = output / "anomaly_maps" / "custom"
    evaluate("-d", "custom", "-c", dataset_folder, "-o", output)
    assert len(list((folder / "test" / "good").glob("*.tiff"))) == 5
    evaluate("-d", "custom", "-c", dataset_folder, "-o", output, "-f", "none")
    assert not (folder / "test").exists()


@pytest.mark.parametrize("link", ["anomaly_maps", "anomaly_maps/custom/test", "anomaly_maps/custom/test/good"])
def test_links_below_the_output_folder_are_refused(output, dataset_folder, link, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    (output / link).parent.mkdir(parents=True, exist_ok=True)
    (output / link).symlink_to(tmp_path / "mine")
    message = fail(monkeypatch, capsys, eval_script, "-d", "custom", "-c", dataset_folder, "-o", output)
    assert f"{output / link} is a link" in message and not list((tmp_path / "mine").iterdir())
    (output / link).unlink()
    (output / "trainings").rename(tmp_path / "trainings")
    (output / "trainings").symlink_to(tmp_path / "trainings")  # which is only read
    evaluate("-d", "custom", "-c", dataset_folder, "-o", output, "-f", "none")


def test_a_wanted_recall_chooses_the_threshold(output, dataset_folder, monkeypatch, capsys):
    words = ["-d", "custom", "-c", dataset_folder, "-o", output, "-f", "none"]
    folder = output / "anomaly_maps/custom"
    evaluate(*words, "--target_recall", 0.75)
    printed = capsys.readouterr().out
    assert "threshold to be chosen for a recall of 75 %" in printed
    chosen = re.search(r"\nThreshold (\S+): the highest that finds 75 % of these very defective images", printed)[1]
    assert "it has seen their labels; new images will do worse" in printed
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["threshold"], metrics["overall"]["recall"]) == (float(chosen), 0.75)
    assert "seen their labels" in metrics["threshold_origin"]
    assert "it has seen their labels" in (folder / "report.html").read_text()
    text = (folder / "scores.csv").read_text()
    recalls = metrics["sweep_recalls"]
    place = [row["threshold"] for row in metrics["sweep"]].index(float(chosen))
    assert recalls["defect_type_1"][place] + recalls["defect_type_2"][place] == 1.5
    table = printed[printed.index("Recall of each class at these thresholds:") :]
    assert re.search(rf"Class .*\b{float(chosen):g}\b", table) and "defect_type_2 " in table
    evaluate(*words, "-T", chosen)
    assert (folder / "scores.csv").read_text() == text

    assert "not allowed with argument" in fail(
        monkeypatch, capsys, eval_script, *words, "-T", 5, "--target_recall", 1
    )
    for name in ("defect_type_1", "defect_type_2"):
        shutil.rmtree(dataset_folder / "test" / name)
    message = fail(monkeypatch, capsys, eval_script, *words, "--target_recall", 1)
    assert "--target_recall needs defective test images, and" in message
