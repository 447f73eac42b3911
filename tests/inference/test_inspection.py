"""The call from Python: one image in, its score, decision and map out."""

import os
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import draw_part, fill_folder
from efficientad.data.datasets import Sample
from efficientad.data.images import UnreadableImageError
from efficientad.data.views import View, resize_map
from efficientad.detector.calibration import calibrate
from efficientad.detector.checkpoint import save_model
from efficientad.inference import load_detector
from efficientad.inference.detectors import TorchDetector, open_detector
from efficientad.inference.inspection import Inspector
from efficientad.inference.prediction import predict
from efficientad.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture
def trained(tiny_model, tmp_path):
    tiny_model.calibration = calibrate([10.0, 11.0, 12.0, 13.0, 14.0], 0.5)
    folder = tmp_path / "output/pills/trainings/custom"
    folder.mkdir(parents=True)
    save_model(tiny_model, folder / "model.pt", {})
    return folder


@pytest.fixture
def paths(tmp_path):
    fill_folder(tmp_path / "new_parts", 2)
    draw_part(7, defective=True).save(tmp_path / "new_parts" / "dent.png")
    return sorted((tmp_path / "new_parts").iterdir())


def test_the_call_on_the_page_runs_as_printed(trained, paths, tmp_path, monkeypatch, capsys):
    page = (ROOT / "efficientad/README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^(?:    .*)?\n)+", page, flags=re.MULTILINE)
    (block,) = [block for block in blocks if "import load_detector" in block]
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(block), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["000.png", "001.png", "dent.png"]
    pattern = r".+: (good|anomalous), score -?\d+\.\d of 12\.0, map \(40, 60\)"
    assert all(re.fullmatch(pattern, line) for line in lines)


def test_it_is_imported_from_any_folder_and_without_torch(tmp_path):
    code = "import sys; from efficientad.inference import load_detector; assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


def test_files_images_and_arrays_are_scored_as_predict_scores_the_file(trained, paths):
    detector, samples = load_detector(trained), [Sample(path, "", path.name) for path in paths]
    for one in predict(open_detector(str(trained), "cpu"), samples, 1, 0):
        with Image.open(one.sample.path) as image:
            given = [one.sample.path, str(one.sample.path), image.copy(), np.asarray(image)]
        for found in map(detector, given):
            assert (found.score, found.threshold) == (one.score, 12.0)
            assert found.is_anomalous == (one.score > 12.0)
            np.testing.assert_array_equal(found.anomaly_map, resize_map(one.anomaly_map, *one.image_size))
        assert not load_detector(trained, threshold=one.score)(one.sample.path).is_anomalous


def test_gray_arrays_views_of_arrays_and_turned_images(trained, paths):
    detector = load_detector(trained)
    gray = np.asarray(draw_part(3).convert("L"))
    assert detector(gray).score == detector(np.stack([gray] * 3, axis=2)).score
    assert detector(gray[:, ::-1]).score == detector(gray[:, ::-1].copy()).score != detector(gray).score
    with Image.open(paths[0]) as image:
        turned = image.convert("RGBA").transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be turned by 90 degrees clockwise
    found = detector(turned)
    assert found.score == detector(paths[0]).score and found.anomaly_map.shape == image.size[::-1]


@pytest.mark.parametrize(
    ("dtype", "shape"), [("float32", (40, 60, 3)), ("uint8", (40, 60, 4)), ("uint8", (60,)), ("uint8", (0, 60))]
)
def test_other_arrays_are_refused(trained, dtype, shape):
    with pytest.raises(UnreadableImageError, match=f"^the image: expects an array of uint8, .+, not {dtype} of "):
        load_detector(trained)(np.zeros(shape, dtype))


def test_what_cannot_be_scored_is_an_error(tiny_model, paths):
    inspector = Inspector(TorchDetector(tiny_model, CPU, "fp32"))
    paths[0].write_text("text")
    with pytest.raises(UnreadableImageError, match=paths[0].name):
        inspector(paths[0])
    tiny_model.quantiles.fill_(float("nan"))
    with pytest.raises(UnreadableImageError, match=f"{paths[1].name}: its score is not finite"):
        inspector(paths[1])


def test_threads_share_a_detector(trained, tmp_path):
    detector = load_detector(trained)
    arrays = [np.asarray(draw_part(seed, seed % 2 == 0)) for seed in range(12)]
    wanted = [detector(array) for array in arrays]
    assert len({found.score for found in wanted}) == len(wanted)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(detector, 4 * arrays))
    for one, right in zip(found, 4 * wanted, strict=True):
        assert one.score == right.score
        np.testing.assert_array_equal(one.anomaly_map, right.anomaly_map)


def test_a_runtime_never_gets_a_second_image_while_it_computes():
    """Where OpenVINO would end with an error."""
    running, most = [], []

    class Slow:
        view, calibration = View(), None

        def __call__(self, pixels, inspected):
            running.append(1)
            most.append(len(running))
            torch.rand(300, 300) @ torch.rand(300, 300)  # lets other threads run
            running.pop()
            return torch.zeros(1, 1, 256, 256)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(Inspector(Slow()), [draw_part(0)] * 40))
    assert max(most) == 1


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), "auto", True])
def test_a_threshold_that_is_none_is_refused(trained, threshold):
    with pytest.raises(UserError, match="threshold .* is no finite number"):
        load_detector(trained, threshold=threshold, device="cpu")


@pytest.mark.parametrize("words", [{"device": "tpu"}, {"device": None}, {"precision": "fp64"}, {"precision": None}])
def test_unknown_names_are_refused(trained, words):
    with pytest.raises(UserError, match="is none of"):
        load_detector(trained, **{"device": "cpu", **words})


def test_what_is_no_image_is_refused(trained, tmp_path):
    detector = load_detector(trained, device="cpu")
    draw_part(1).save(tmp_path / "whole.jpg")
    (tmp_path / "part.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-200])
    for image in (Image.open(tmp_path / "part.jpg"), tmp_path / "part.jpg", "a\0b"):
        with pytest.raises(UnreadableImageError):
            detector(image)
    for image in (None, b"bytes", [1, 2], 3):
        with pytest.raises(TypeError, match="expects a path, an image of Pillow or an array"):
            detector(image)
