"""Detectors that see a part of the image, or see it at a size of their own."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from conftest import draw_part, fail, fill_folder
from efficientad import predict as predict_script
from efficientad.data.datasets import Sample
from efficientad.data.images import UnreadableImageError, read_image
from efficientad.data.views import View
from efficientad.detector.checkpoint import save_model
from efficientad.detector.model import EfficientAD
from efficientad.inference.detectors import TorchDetector
from efficientad.inference.inspection import Inspector
from efficientad.inference.prediction import limit_workers, predict
from efficientad.inference.results import find_regions
from efficientad.system.errors import UserError

CPU = torch.device("cpu")
SIZE = (60, 40)  # width and height of the parts
ROI = (6.0, 4.0, 48.0, 30.0)


def ignored_corner(width=30, height=10):
    """A mask, the upper left corner of which is not inspected."""
    mask = np.zeros(SIZE[::-1], dtype=bool)
    mask[:height, :width] = True
    data = io.BytesIO()
    Image.fromarray(mask).save(data, "PNG")
    return data.getvalue()


def inspected_part():
    """What of a part is inspected with ROI and ignored_corner()."""
    inspected = np.zeros(SIZE[::-1], dtype=bool)
    inspected[4:34, 6:54] = True
    inspected[:10, :30] = False
    return inspected


VIEWS = [
    View(96, 160),
    View(160, 96, "fit"),
    View(96, 160, roi=ROI),
    View(96, 160, ignored=ignored_corner()),
    View(128, 128, "fit", ROI, ignored_corner()),
]


def build(view, border="mirror"):
    torch.manual_seed(0)
    model = EfficientAD("small", view, border).eval()
    model.quantiles.copy_(torch.tensor([[0.1, 0.9], [0.2, 1.1], [0.0, 0.1]]))
    return model


def samples_in(folder, count=5):
    fill_folder(folder, count)
    return [Sample(path, "", path.name) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("view", VIEWS)
def test_predictions_follow_the_view(tiny_networks, tmp_path, view):
    model, samples = build(view), samples_in(tmp_path / "in")
    for one in predict(TorchDetector(model, CPU, "fp32"), samples, 2, 1):
        image = read_image(one.sample.path)
        inspected = view.inspected(image.size)
        with torch.inference_mode():
            pixels = view.pixels(image)[None] / 255
            expected = model(pixels, None if inspected is None else inspected[None])[0, 0].numpy()
        np.testing.assert_allclose(one.anomaly_map, expected, rtol=1e-4, atol=1e-3)
        assert one.anomaly_map.shape == view.size and one.full_map().shape == (40, 60)
        np.testing.assert_array_equal(one.full_map(), view.to_image(one.anomaly_map, image.size))
        found = Inspector(TorchDetector(model, CPU, "fp32"))(image)
        np.testing.assert_allclose(found.anomaly_map, one.full_map(), rtol=1e-4, atol=1e-3)
        assert found.score == pytest.approx(one.score, rel=1e-4)
        if (unseen := view.inspected_in_image(image.size)) is not None:
            assert (one.full_map()[~unseen] == 0).all() and (one.full_map()[unseen] != 0).any()


def test_images_of_different_shapes_in_a_batch(tiny_networks, tmp_path):
    """Each is fitted into the input in its own way."""
    view, folder = View(128, 128, "fit"), tmp_path / "in"
    folder.mkdir()
    for number, size in enumerate(((60, 40), (40, 60), (90, 30))):
        draw_part(number, size=size).save(folder / f"{number}.png")
    samples = [Sample(path, "", path.name) for path in sorted(folder.iterdir())]
    detector = TorchDetector(build(view), CPU, "fp32")
    together = list(predict(detector, samples, 3, 0))
    for one, alone in zip(together, predict(detector, samples, 1, 0), strict=True):
        np.testing.assert_allclose(one.anomaly_map, alone.anomaly_map, rtol=1e-4, atol=1e-3)
    assert (together[0].anomaly_map[:20] == 0).all() and (together[1].anomaly_map[:, :20] == 0).all()
    assert (together[1].anomaly_map[:20] != 0).any()


def test_large_inputs_come_one_by_one(tiny_networks, tmp_path):
    """Whatever the batch size, and with the same results."""
    samples, counts = samples_in(tmp_path / "in"), []
    model = build(View(128, 128))

    class Counting(TorchDetector):
        def __call__(self, pixels, inspected=None):
            counts.append(len(pixels))
            return super().__call__(pixels, inspected)

    scores = []
    for most in (2**20, 2 * 128 * 128, 128 * 128):
        model.most_pixels = most
        scores.append([one.score for one in predict(Counting(model, CPU, "fp32"), samples, 16, 0)])
    assert counts == [5, *[2, 2, 1], *[1] * 5]
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-4)
    np.testing.assert_allclose(scores[2], scores[0], rtol=1e-4)


def test_fewer_threads_hold_large_inputs():
    assert limit_workers(8, View()) == limit_workers(8, View(1024, 1024)) == 8
    assert limit_workers(8, View(2048, 2048)) == 4 and limit_workers(8, View(8192, 8192)) == 1
    assert limit_workers(0, View(4096, 4096)) == 0


def test_an_image_that_the_view_does_not_fit_is_as_one_that_is_unreadable(tiny_networks, tmp_path):
    samples, problems = samples_in(tmp_path / "in"), []
    draw_part(0, size=(50, 40)).save(samples[1].path)
    detector = TorchDetector(build(View(96, 96, roi=ROI)), CPU, "fp32")
    with pytest.raises(UserError, match=rf"cannot read 1 image(.|\n)*{samples[1].path.name}: 50x40 pixels"):
        list(predict(detector, samples, 2, 1))
    found = list(predict(detector, samples, 2, 1, on_unreadable=problems.append))
    assert [one.sample for one in found] == [samples[0], *samples[2:]]
    assert len(problems) == 1 and "--roi of train.py" in str(problems[0])
    with pytest.raises(UnreadableImageError, match=samples[1].path.name):
        Inspector(detector)(samples[1].path)


def test_regions_have_only_pixels_that_are_inspected():
    anomaly_map = np.zeros((30, 50), dtype=np.float32)
    inspected = np.ones((30, 50), dtype=bool)
    inspected[:, 20:] = False
    anomaly_map[2:5, 10:20] = 100
    anomaly_map[20:22, 30:33] = 300
    (one,) = find_regions(anomaly_map, 90, inspected)
    assert (one.score, one.box) == (100, (10, 2, 10, 3))
    (everything,) = find_regions(anomaly_map, -5, inspected)
    assert (coco_mask.decode(everything.run_lengths) == inspected).all()
    (peak,) = find_regions(anomaly_map, 1000, inspected)
    assert peak == one
    assert find_regions(anomaly_map, -5, np.zeros((30, 50), dtype=bool)) == []


@pytest.fixture
def weights(tmp_path, tiny_networks):
    """A detector that inspects a part of the parts."""
    (tmp_path / "trained").mkdir()
    view = View(96, 160, roi=ROI, ignored=ignored_corner())
    save_model(build(view), tmp_path / "trained" / "model.pt", {})
    return tmp_path / "trained"


def run(*words):
    return predict_script.main(predict_script.get_parser().parse_args([str(word) for word in words]))


def test_files_of_predict(weights, tmp_path, capsys):
    """Maps are 0 where nothing is inspected, and even a threshold below that gives no regions there."""
    samples, out = samples_in(tmp_path / "in", 2), tmp_path / "out"
    run("-w", weights, "-i", tmp_path / "in", "-o", out, "-f", "tiff", "--save_regions", "-T", -1e6)
    assert "Input 96 x 160 pixels (height x width), --roi 6 4 48 30, --ignore\n" in capsys.readouterr().out
    coco = COCO(out / "regions.json")
    for number, sample in enumerate(samples, start=1):
        with Image.open(out / "maps" / f"{sample.image_name}.tiff") as opened:
            anomaly_map = np.asarray(opened)
        assert (anomaly_map[~inspected_part()] == 0).all() and (anomaly_map[inspected_part()] != 0).all()
        masks = [coco.annToMask(one) for one in coco.loadAnns(coco.getAnnIds(number))]
        assert (np.sum(masks, axis=0) == inspected_part()).all()


@pytest.mark.parametrize("map_format", ["jpg", "overlay"])
def test_pictures_show_the_image_where_nothing_is_inspected(weights, tmp_path, map_format):
    (sample,), out = samples_in(tmp_path / "in", 1), tmp_path / "out"
    run("-w", weights, "-i", tmp_path / "in", "-o", out, "-f", map_format, "-T", -1e6)  # everything would be red
    with Image.open(out / "maps" / f"{sample.image_name}.jpg") as opened:
        shown = np.asarray(opened).astype(int)[:, -60:]
    image = np.asarray(read_image(sample.path)).astype(int)
    away = np.abs(shown - image).max(axis=2)
    unseen = ~inspected_part()
    assert np.median(away[unseen]) < 15 and np.median(away[~unseen]) > 60  # a JPG, so not exactly


def test_an_image_that_does_not_fit_is_named(weights, tmp_path, monkeypatch, capsys):
    samples = samples_in(tmp_path / "in", 2)
    draw_part(0, size=(60, 60)).save(samples[0].path)
    words = ["-w", weights, "-i", tmp_path / "in", "-o", tmp_path / "out", "--save_regions"]
    message = fail(monkeypatch, capsys, predict_script, *words)
    assert "cannot read 1 of 2 images" in message and "60x60 pixels" in message and "see --ignore" in message
    assert len(json.loads((tmp_path / "out" / "regions.json").read_text())["images"]) == 1


def test_views_in_words():
    assert View().describe() == ""
    assert View(384, 640).describe() == "384 x 640 pixels (height x width)"
    assert View(roi=(0.1, 0.0, 0.5, 1.0)).describe() == "256 x 256 pixels (height x width), --roi 0.1 0 0.5 1"
    assert View(64, 64, "fit", None, b"").describe() == "64 x 64 pixels (height x width), --resize fit, --ignore"
