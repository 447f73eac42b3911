"""An evaluation that is interrupted goes on without computing anything twice."""

import csv

import numpy as np
import pytest
from PIL import Image

import eval as eval_script
from conftest import fail
from efficientad import inference, scoring
from efficientad.detector.checkpoint import save_model
from efficientad.map_spool import MapSpool, detector_digest
from efficientad.runtimes import TorchDetector
from efficientad.system.errors import UserError

DETECTOR, OTHER, A, B = (letter * 64 for letter in "0fab")


def test_maps_come_back_exactly_and_torn_ones_do_not(tmp_path):
    spool = MapSpool(tmp_path, DETECTOR, 4, resume=False)
    maps = np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32)
    spool.add(A, maps[0])
    spool.add(B, maps[1])
    again = MapSpool(tmp_path, DETECTOR, 4, resume=True)
    assert len(again) == 2
    assert np.array_equal(again.get(A), maps[0]) and np.array_equal(again.get(B), maps[1])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-30])  # killed while it wrote
    torn = MapSpool(tmp_path, DETECTOR, 4, resume=True)
    assert np.array_equal(torn.get(A), maps[0]) and torn.get(B) is None
    torn.add(B, maps[1])
    assert np.array_equal(MapSpool(tmp_path, DETECTOR, 4, resume=True).get(B), maps[1])
    (tmp_path / ".unfinished_maps.9-0").touch()  # the disk was full before anything was written
    assert np.array_equal(MapSpool(tmp_path, DETECTOR, 4, resume=True).get(A), maps[0])
    with pytest.raises(UserError, match="with another model, --device or --precision; leave out --resume"):
        MapSpool(tmp_path, OTHER, 4, resume=True)
    assert MapSpool(tmp_path, OTHER, 4, resume=False).get(A) is None
    assert not list(tmp_path.iterdir())


def test_a_detector_is_told_from_another_by_its_weights_too(tmp_path):
    """An OpenVINO detector keeps them in a second file."""
    (tmp_path / "detector.xml").write_text("the graph")
    digests = set()
    for weights in (b"old", b"new"):
        (tmp_path / "detector.bin").write_bytes(weights)
        digests.add(detector_digest(tmp_path / "detector.xml", "cpu fp32"))
    assert len(digests) == 2


@pytest.fixture
def words(tmp_path, dataset_folder, tiny_model, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(tiny_model, folder / "model.pt", {})
    monkeypatch.setattr(inference, "_WORTH_KEEPING", 0.0)
    return ["-d", "custom", "-c", dataset_folder, "-w", folder, "-T", 5, "-b", 2, "--num_workers", 0]


def evaluate(*words):
    eval_script.main(eval_script.get_parser().parse_args([str(word) for word in words]))


def test_nothing_is_computed_twice(words, tmp_path, monkeypatch, capsys):
    """Seven images in batches of two, interrupted while the fifth map is written."""
    evaluate(*words, "-o", tmp_path / "whole")
    written = []

    def write_or_stop(path, anomaly_map, write=scoring.write_tiff):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(path)
        write(path, anomaly_map)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "write_tiff", write_or_stop)
        with pytest.raises(KeyboardInterrupt, match="continue with --resume"):
            evaluate(*words, "-o", tmp_path / "out")
    computed = []

    def count(self, pixels, call=TorchDetector.__call__):
        computed.append(len(pixels))
        return call(self, pixels)

    monkeypatch.setattr(TorchDetector, "__call__", count)
    capsys.readouterr()
    evaluate(*words, "-o", tmp_path / "out", "--resume")
    assert "Resuming with 5 maps that are computed already" in capsys.readouterr().out
    assert sum(computed) == 2
    whole, resumed = (tmp_path / name / "anomaly_maps/custom/test" for name in ("whole", "out"))
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(resumed) for path in resumed.rglob("*") if path.is_file())
    # The batches are other ones, so the last digits may differ.
    for name in names:
        if name.suffix == ".tiff":
            maps = [np.asarray(Image.open(folder / name)) for folder in (whole, resumed)]
            np.testing.assert_allclose(*maps, rtol=1e-4, atol=1e-3)
    rows = [list(csv.DictReader((folder / "scores.csv").open())) for folder in (whole, resumed)]
    scores = [[float(row.pop("y_score")) for row in of_folder] for of_folder in rows]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4) and rows[0] == rows[1]


def test_a_folder_in_use_is_one_line(words, tmp_path, monkeypatch, capsys):
    from efficientad.system.runs import lock_folder

    with lock_folder(tmp_path / "out/anomaly_maps/custom/test"):
        error = fail(monkeypatch, capsys, eval_script, *words, "-o", tmp_path / "out")
    assert "test is in use by another run (process " in error
