"""eval.py with a detector that sees a part of the image, at a size of its own."""

import json

import numpy as np
import pytest
from PIL import Image

from commands import evaluate
from conftest import make_dataset
from efficientad.data.views import View
from efficientad.detector.checkpoint import save_model
from efficientad.detector.model import EfficientAD
from efficientad.evaluation.thumbnails import MAP_LEVELS
from reports import Page

ROI = (6.0, 4.0, 24.0, 30.0)  # of images of 60 x 40 pixels


@pytest.fixture
def parts(tmp_path):
    """Two defective images with masks: one defect within the region and one beside it; one beside it alone."""
    root = make_dataset(tmp_path / "parts", train=1, test={"good": 2, "dent": 2})
    masks = root / "ground_truth" / "dent"
    masks.mkdir(parents=True)
    for number in range(2):
        mask = np.zeros((40, 60), dtype=np.uint8)
        mask[10:20, 40:50] = 255
        if number == 0:
            mask[5:15, 20:35] = 255  # a third of it beside the region
        Image.fromarray(mask).save(masks / f"00{number}_mask.png")
    return root


@pytest.mark.parametrize("resize", ["stretch", "fit"])
def test_an_evaluation_of_a_region(tiny_networks, parts, tmp_path, capsys, resize):
    (tmp_path / "trained").mkdir()
    save_model(EfficientAD(view=View(96, 160, resize, ROI), border="mirror"), tmp_path / "trained" / "model.pt", {})
    evaluate("-d", "custom", "-c", parts, "-w", tmp_path / "trained", "-o", tmp_path / "out")
    printed = capsys.readouterr().out
    flag = "--resize fit, " if resize == "fit" else ""
    assert f"Input 96 x 160 pixels (height x width), {flag}--roi 6 4 24 30\n" in printed
    assert "2 defects on 2 images lie wholly where nothing is inspected" in printed
    assert "have no mask" not in printed
    folder = tmp_path / "out" / "anomaly_maps" / "custom"
    metrics = json.loads((folder / "metrics.json").read_text())["pixel_metrics"]
    assert (metrics["hidden"], metrics["hiding"], metrics["left_out"]) == (2, 2, 0)
    assert (metrics["overall"]["images"], metrics["overall"]["regions"]) == (1, 1)
    with Image.open(folder / "test/good/000.tiff") as opened:
        anomaly_map = np.asarray(opened)
    inspected = np.zeros((40, 60), dtype=bool)
    inspected[4:34, 6:30] = True
    assert (anomaly_map[~inspected] == 0).all() and (anomaly_map[inspected] != 0).mean() > 0.9
    for row in Page(folder / "report.html").data["images"]:
        levels = np.array([MAP_LEVELS.index(letter) for letter in row[8]]).reshape(64, 64)
        assert (levels[:, :5] == 0).all() and (levels[:, 33:] == 0).all() and levels[8:50, 8:30].any()
    assert "roi 6 4 24 30" in (folder / "report.html").read_text()
