"""Scoring new images: inputs, files written, exit status."""

import csv
import json
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from conftest import draw_part, fail, fill_folder
from efficientad import predict
from efficientad.detector.calibration import calibrate
from efficientad.detector.checkpoint import save_model
from efficientad.inference.results import find_regions
from efficientad.inference.run import find_inputs
from efficientad.system.errors import run_command
from efficientad.system.runs import lock_folder


@pytest.fixture
def weights(tmp_path, tiny_model):
    """A training's folder; good parts score below 30 and defective ones above."""
    (tmp_path / "trained").mkdir()
    tiny_model.calibration = calibrate([10.0, 11.0, 12.0, 13.0, 14.0], 0.5)
    save_model(tiny_model, tmp_path / "trained" / "model.pt", {})
    return tmp_path / "trained"


def run(*words):
    return predict.main(predict.get_parser().parse_args([str(word) for word in words]))


def read_scores(folder):
    with (folder / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def parts(tmp_path):
    fill_folder(tmp_path / "parts" / "a", 3)
    fill_folder(tmp_path / "parts" / "b", 2, seed=9, defective=True, suffix=".jpg")
    return tmp_path / "parts"


def test_scores_are_those_of_eval(weights, parts, tmp_path, tiny_model):
    from efficientad.inference.detectors import TorchDetector
    from efficientad.inference.prediction import predict as predict_samples

    run("-w", weights, "-i", parts, "-o", tmp_path / "out", "-T", 20, "--precision", "fp32")
    rows = read_scores(tmp_path / "out")
    assert list(rows[0])[:5] == ["path", "score", "threshold", "anomalous", "milliseconds"]
    samples = find_inputs([str(parts)], [])
    expected = {
        str(one.sample.path): one.score
        for one in predict_samples(TorchDetector(tiny_model, predict_device(), "fp32"), samples, 16, 0)
    }
    assert len(rows) == 5 and {row["path"]: np.float32(row["score"]) for row in rows} == pytest.approx(expected)
    for row in rows:
        assert row["anomalous"] == str(int(float(row["score"]) > 20)) and row["threshold"] == "20"
        assert float(row["milliseconds"]) > 0


def predict_device():
    import torch

    return torch.device("cpu")


def test_exit_status(weights, parts, tmp_path, monkeypatch, capsys):
    words = ["-w", weights, "-i", parts, "-o", tmp_path / "out"]
    assert run(*words, "-T", 1e9) == 0
    assert "0 of 5 images are anomalous" in capsys.readouterr().out
    assert run(*words, "-T", 0) == 1
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, words), "-T", "0"])
    with pytest.raises(SystemExit) as raised:
        run_command(predict.main, predict.get_parser())
    assert raised.value.code == 1
    (parts / "a" / "001.png").write_text("text")
    assert "cannot read 1 of 5 images" in fail(monkeypatch, capsys, predict, *words, "-T", 0)
    assert len(read_scores(tmp_path / "out")) == 4  # the others have their scores all the same


def test_a_bug_does_not_look_like_a_result(monkeypatch, capsys):
    def broken(args):
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["predict", "-w", "x", "-i", "y"])
    with pytest.raises(SystemExit) as raised:
        run_command(broken, predict.get_parser())
    assert raised.value.code == 2 and "ZeroDivisionError" in capsys.readouterr().err


def test_folders_files_and_patterns(parts, tmp_path, monkeypatch):
    def names(*words):
        return [sample.image_name for sample in find_inputs([str(word) for word in words], [])]

    everything = ["a/000.png", "a/001.png", "a/002.png", "b/000.jpg", "b/001.jpg"]
    assert names(parts) == names(parts, parts / "b") == names(f"{parts}/**/*.*") == everything
    assert names(parts / "b") == names(f"{parts}/b/*.jpg") == ["000.jpg", "001.jpg"]
    assert names(parts / "a" / "001.png") == ["001.png"]
    assert names(parts / "b" / "001.jpg", parts / "a") == ["b/001.jpg", *everything[:3]]
    monkeypatch.chdir(parts / "a")
    assert names("../b", ".", parts / "b") == [*everything[3:], *everything[:3]]
    (parts / "a" / "[1].png").write_bytes((parts / "a" / "001.png").read_bytes())
    assert names("[1].png") == ["[1].png"]


def test_results_and_other_files_among_the_images_are_left_out_and_said(weights, parts, monkeypatch, capsys):
    monkeypatch.chdir(parts)
    (parts / "a" / "notes.txt").write_text("mine")
    run("-w", weights, "-i", parts, "-o", "one", "-f", "jpg", "-T", 0)
    printed = capsys.readouterr().out
    assert "5 of 5 images" in printed and f"Note: 1 file is no image: {parts / 'a' / 'notes.txt'}" in printed
    assert "no input" not in printed
    for words in (["-i", parts], ["-i", "**/*.*"]):
        run("-w", weights, *words, "-o", "two", "-f", "jpg", "-T", 0)
        printed = capsys.readouterr().out
        assert "5 of 5 images" in printed and f"The results of earlier runs in {parts / 'one'}" in printed
    run("-w", weights, "-i", ".", "-o", ".", "-f", "jpg", "-T", 0)
    run("-w", weights, "-i", ".", "-o", ".", "-f", "jpg", "-T", 0)
    assert "5 of 5 images" in capsys.readouterr().out


def test_wrong_inputs_are_reported(weights, parts, tmp_path, monkeypatch, capsys):
    def error(*words):
        return fail(monkeypatch, capsys, predict, "-w", weights, "-o", tmp_path / "out", *words)

    assert "no such file or folder" in error("-i", parts, tmp_path / "nowhere")
    assert "no such file or folder" in error("-i", f"{parts}/*.bmp")
    (tmp_path / "empty").mkdir()
    assert "holds no images" in error("-i", tmp_path / "empty")
    assert "one of the arguments -i/--input --watch is required" in error()
    assert "not allowed with" in error("-i", parts, "--watch", parts)
    assert "there is no such folder" in error("--watch", tmp_path / "nowhere")
    assert "expects a number or auto" in error("-i", parts, "-T", "nan")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scores.csv").write_text("defect_class,image_name\n")
    assert "was not written by predict" in error("-i", parts)
    assert (tmp_path / "out" / "scores.csv").read_text() == "defect_class,image_name\n"


def test_threshold_of_the_model(weights, parts, tmp_path, tiny_model, capsys):
    words = ["-w", weights, "-i", parts, "-o", tmp_path / "out"]
    run(*words)
    assert "Threshold 12 (calibrated for 50 % false positives)" in capsys.readouterr().out
    assert read_scores(tmp_path / "out")[0]["threshold"] == "12"
    tiny_model.calibration = None
    save_model(tiny_model, weights / "model.pt", {})
    run(*words, "-T", "auto")
    assert "Threshold 80 (default: this model has no calibration)" in capsys.readouterr().out


def test_maps_and_running_again(weights, parts, tmp_path):
    out = tmp_path / "out"
    run("-w", weights, "-i", parts, "-o", out, "-f", "tiff")
    with Image.open(out / "maps" / "a" / "000.png.tiff") as image:
        assert (image.mode, image.size) == ("F", (60, 40))
    run("-w", weights, "-i", parts / "b", "-o", out, "-f", "jpg")
    with Image.open(out / "maps" / "000.jpg.jpg") as image:
        assert image.size == (120, 40)
    assert not list(out.rglob("*.tiff"))
    (out / "maps" / "mine.txt").write_text("mine")
    run("-w", weights, "-i", parts / "b", "-o", out, "-f", "overlay")
    with Image.open(out / "maps" / "000.jpg.jpg") as image:
        assert image.size == (60, 40)
    run("-w", weights, "-i", tmp_path, "-o", out)  # the output folder is in the input folder
    assert len(read_scores(out)) == 5 and (out / "maps" / "mine.txt").exists()


def test_overlay_shows_the_image_where_nothing_is(tmp_path):
    from efficientad.inference.maps import write_overlay

    anomaly_map = np.full((40, 60), -1e6, dtype=np.float32)
    anomaly_map[:, 30:] = 1e6
    write_overlay(tmp_path / "o.jpg", Image.new("RGB", (60, 40), (90, 120, 60)), anomaly_map, 80.0)
    pixels = np.asarray(Image.open(tmp_path / "o.jpg")).astype(int)
    assert abs(pixels[:, :20] - (90, 120, 60)).max() < 6
    assert (pixels[:, 40:, 0] > 100).all() and (pixels[:, 40:, 1:] < 30).all()  # jet's far end, a dark red


def test_regions_open_with_pycocotools(weights, parts, tmp_path):
    out = tmp_path / "out"
    run("-w", weights, "-i", parts, "-o", out, "-f", "tiff", "--save_regions", "-T", 20)
    coco = COCO(out / "regions.json")
    rows = read_scores(out)
    assert len(coco.getImgIds()) == len(rows) == 5
    for row, image in zip(rows, coco.loadImgs(sorted(coco.getImgIds())), strict=True):
        assert (image["width"], image["height"]) == (60, 40) and row["path"].endswith(image["file_name"])
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert bool(annotations) == (row["anomalous"] == "1")
        with Image.open(out / "maps" / f"{image['file_name']}.tiff") as opened:
            above = np.asarray(opened) > 20
        if annotations:  # a good image may have a few pixels above it, but no region
            union = np.sum([coco.annToMask(annotation) for annotation in annotations], axis=0)
            assert (union == above).all()
        for annotation in annotations:
            mask = coco.annToMask(annotation)
            assert mask.sum() == annotation["area"]
            assert list(coco_mask.toBbox(annotation["segmentation"])) == annotation["bbox"]
            assert annotation["score"] > 20
    assert any(row["anomalous"] == "1" for row in rows)


def test_regions_of_a_map():
    anomaly_map = np.zeros((30, 50), dtype=np.float32)
    anomaly_map[2:5, 10:20] = 100
    anomaly_map[5, 20] = 130  # touches at a corner
    anomaly_map[20:22, 0:3] = 300
    first, second = find_regions(anomaly_map, 90)
    assert (first.score, first.box, first.area) == (300, (0, 20, 3, 2), 6)
    assert (second.score, second.box, second.area) == (130, (10, 2, 11, 4), 31)
    assert coco_mask.decode(second.run_lengths)[3, 12] == 1
    (peak,) = find_regions(anomaly_map, 1000)
    assert peak.box == first.box


def test_regions_can_be_prepared_as_annotations(weights, tmp_path):
    """The file is what prepare_dataset.py takes, too."""
    from efficientad.preparation.coco import read_coco
    from efficientad.preparation.shapes import draw_mask

    draw_part(3, defective=True).save(tmp_path / "part.png")
    run("-w", weights, "-i", tmp_path / "part.png", "-o", tmp_path / "out", "--save_regions", "-T", 5)
    (image,) = read_coco(tmp_path / "out" / "regions.json").images
    area = sum(annotation["area"] for annotation in image.annotations)
    assert (draw_mask(image.annotations, *image.size) > 0).sum() == area > 0
    assert json.loads((tmp_path / "out" / "regions.json").read_text())["info"]["threshold"] == 5


def test_print(weights, parts, tmp_path, capsys):
    run("-w", weights, "-i", parts, "-o", tmp_path / "out", "--print", "-T", 20)
    printed = capsys.readouterr()
    lines = [line.split() for line in printed.out.splitlines() if line.startswith(("good ", "anomalous "))]
    assert len(lines) == 5 and {line[-1] for line in lines} == {
        row["path"] for row in read_scores(tmp_path / "out")
    }
    assert "Scoring" not in printed.err


def test_a_folder_in_use_keeps_the_results_of_one_run(weights, parts, tmp_path, monkeypatch, capsys):
    words = ["-w", weights, "-o", tmp_path / "out"]
    with lock_folder(tmp_path / "out"):
        for source in ("-i", "--watch"):
            message = fail(monkeypatch, capsys, predict, *words, source, parts)
            assert f"{tmp_path / 'out'} is in use by another run (process " in message
    run(*words, "-i", parts)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scores.csv", "written_files.json"]


def test_a_run_that_cannot_begin_leaves_no_folder(weights, parts, tmp_path, monkeypatch, capsys):
    (weights / "model.pt").write_text("text")
    words = ["-w", weights, "-o", tmp_path / "a" / "out"]
    for source in ("-i", "--watch"):
        fail(monkeypatch, capsys, predict, *words, source, parts)
    assert not (tmp_path / "a").exists()
