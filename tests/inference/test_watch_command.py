"""predict --watch, as a process of its own."""

import csv
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import draw_part, fail, fill_folder, png_bytes
from efficientad import predict
from efficientad.detector.checkpoint import save_model

ROOT = Path(__file__).resolve().parents[2]


class Watch:
    """The command at work on tmp/in, writing to tmp/out."""

    def __init__(self, folder, *words):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, ROOT / "tests/predict_worker.py", "-w", folder, "--watch", folder / "in"]
        command += ["-o", folder / "out", "-T", "0", "--num_workers", "1", "--device", "cpu", *words]
        self.scores_file = folder / "out" / "scores.csv"
        self.log = folder / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def wait_for(self, condition):
        end = time.monotonic() + 60
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def names(self):
        if not self.scores_file.exists():
            return []
        with self.scores_file.open(newline="") as file:
            return [Path(row["path"]).name for row in csv.DictReader(file)]

    def stop(self, number=signal.SIGINT):
        self.process.send_signal(number)
        assert self.process.wait(30) == 0, self.log.read_text()
        return self.log.read_text()


@pytest.fixture
def folder(tmp_path, tiny_model):
    save_model(tiny_model, tmp_path / "model.pt", {})
    fill_folder(tmp_path / "in" / "early", 1)
    return tmp_path


def test_watch_a_folder(folder):
    watch = Watch(folder, "--save_regions", "-f", "tiff")
    try:
        watch.wait_for(lambda: watch.names() == ["000.png"])  # there at the start
        data = png_bytes(1)
        (folder / "moved.part").write_bytes(data)
        os.replace(folder / "moved.part", folder / "in" / "moved.png")
        (folder / "in" / "corrupt.png").write_bytes(b"not an image")
        with (folder / "in" / "grows.png").open("wb") as file:
            for start in range(0, len(data), 1 + len(data) // 10):
                file.write(data[start : start + 1 + len(data) // 10])
                file.flush()
                time.sleep(0.1)
        watch.wait_for(lambda: {"moved.png", "grows.png"} <= set(watch.names()))
        watch.wait_for(lambda: "corrupt.png" in watch.log.read_text())
        (folder / "in" / "corrupt.png").write_bytes(data)  # repaired
        watch.wait_for(lambda: "corrupt.png" in watch.names())
        watch.wait_for(lambda: "ms from complete to result: median" in watch.log.read_text())
        printed = watch.stop()
    finally:
        watch.process.kill()
    assert sorted(watch.names()) == ["000.png", "corrupt.png", "grows.png", "moved.png"]
    assert "Skipped until it changes" in printed and "Stopped after 4 images" in printed
    assert "Traceback" not in printed
    assert (folder / "out/maps/early/000.png.tiff").is_file()
    assert json.loads((folder / "out/regions/grows.png.json").read_text())["annotations"]
    assert len(list((folder / "in").rglob("*.png"))) == 4  # nothing is moved


def test_a_restart_goes_on(folder):
    fill_folder(folder / "in" / "more", 2, seed=5)
    watch = Watch(folder)
    try:
        watch.wait_for(lambda: len(watch.names()) == 3)
        watch.process.kill()
        watch.process.wait()
        with watch.scores_file.open("a") as file:
            file.write("/torn/line.png,12")
        (folder / "in" / "more" / "000.png").write_bytes(png_bytes(77))
        again = Watch(folder)
        draw_part(8).save(folder / "in" / "new.png")
        again.wait_for(lambda: len(again.names()) == 6)
        printed = again.stop(signal.SIGTERM)
    finally:
        watch.process.kill()
        again.process.kill()
    assert "3 images scored before" in printed and "Stopped after 2 images" in printed
    assert sorted(again.names()) == ["000.png", "000.png", "000.png", "001.png", "line.png", "new.png"]


def has_begun(watch):
    return len(watch.names()) == 1 and "Ctrl-C stops" in watch.log.read_text()


def test_maps_below_the_watched_folder_are_not_scored(folder, monkeypatch, capsys):
    (folder / "in" / "notes.txt").write_text("mine")
    watch = Watch(folder, "-f", "jpg", "-o", folder / "in" / "out")
    watch.scores_file = folder / "in" / "out" / "scores.csv"
    try:
        watch.wait_for(lambda: watch.names() == ["000.png"])
        draw_part(8).save(folder / "in" / "new.png")
        watch.wait_for(lambda: len(watch.names()) == 2)
        printed = watch.stop()
    finally:
        watch.process.kill()
    assert watch.names() == ["000.png", "new.png"]
    assert printed.count("Not taken, as it is no image") == 1 and "notes.txt (said once for .txt)" in printed
    words = ["-w", folder, "-i", folder / "in", "-o", folder / "given"]
    predict.main(predict.get_parser().parse_args(list(map(str, words))))
    assert "2 images" in capsys.readouterr().out  # the maps of --watch are no images
    words[-1] = folder / "in" / "out"
    assert "holds the results of --watch" in fail(monkeypatch, capsys, predict, *words)


def test_results_of_another_threshold_are_named(folder):
    """A line says which threshold decided, so nothing is wrong; but a user should know."""
    note = "the earlier images were decided with another threshold"
    for threshold, noted in ((5, False), (5, False), (6, True)):
        watch = Watch(folder, "-T", threshold)
        try:
            watch.wait_for(functools.partial(has_begun, watch))
            assert (note in watch.stop(signal.SIGTERM)) == noted
        finally:
            watch.process.kill()


def test_only_its_own_folder_is_added_to(folder, capsys, monkeypatch):
    (folder / "out").mkdir()
    (folder / "out" / "notes.txt").write_text("mine")
    words = ["-w", folder, "--watch", folder / "in", "-o", folder / "out"]
    assert "holds other files" in fail(monkeypatch, capsys, predict, *words)


def test_watched_and_given_images_have_a_folder_each(folder, capsys, monkeypatch):
    """A next --input replaces the results of the last one, but never those of --watch."""
    words = ["-w", folder, "-i", folder / "in", "-o", folder / "given"]
    predict.main(predict.get_parser().parse_args(list(map(str, words))))
    words = ["-w", folder, "--watch", folder / "in", "-o", folder / "given"]
    message = fail(monkeypatch, capsys, predict, *words)
    assert "given holds the results of an --input; choose another --output_dir for --watch" in message
    watch = Watch(folder)
    try:
        watch.wait_for(lambda: watch.names() == ["000.png"])
        watch.stop()
    finally:
        watch.process.kill()
    written = watch.scores_file.read_bytes()
    message = fail(monkeypatch, capsys, predict, "-w", folder, "-i", folder / "in", "-o", folder / "out")
    assert "out holds the results of --watch; choose another --output_dir for --input" in message
    assert watch.scores_file.read_bytes() == written


def test_what_is_odd_about_images_is_said_once(folder):
    clear = draw_part(1).copy()
    clear.putalpha(0)
    watch = Watch(folder)
    watch.wait_for(lambda: len(watch.names()) == 1)
    for number in range(2):
        clear.save(folder / "in" / f"clear_{number}.png")
        watch.wait_for(lambda number=number: len(watch.names()) == number + 2)
        watch.wait_for(lambda: "Note: 1 image with transparent parts" in watch.log.read_text())
    assert watch.stop().count("transparent") == 1
