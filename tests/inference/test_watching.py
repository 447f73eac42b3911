"""A watched folder: complete files only, once each, whatever else is thrown in."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import draw_part, fill_folder
from efficientad.detector.checkpoint import save_model
from efficientad.inference.watching import FolderWatcher, LatencyLog

ROOT = Path(__file__).resolve().parents[2]


def png_bytes(seed):
    buffer = io.BytesIO()
    draw_part(seed).save(buffer, "png")
    return buffer.getvalue()


def paths(arrivals):
    return [arrival.path.name for arrival in arrivals]


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when told."""

    class Clock:
        now = 1_000_000.0

        def write(self, path, data, age=0.0):
            path.write_bytes(data)
            os.utime(path, (self.now - age,) * 2)

    clock = Clock()
    monkeypatch.setattr(time, "time", lambda: clock.now)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now - 500_000)
    return clock


def test_a_file_counts_when_it_no_longer_changes(tmp_path, clock):
    watcher = FolderWatcher(tmp_path, tmp_path / "out", {})
    clock.write(tmp_path / "grows.png", b"1")
    clock.write(tmp_path / "moved_in.png", b"1", age=60)
    clock.write(tmp_path / "notes.txt", b"1", age=60)
    clock.write(tmp_path / ".hidden.png", b"1", age=60)
    (tmp_path / "out").mkdir()
    clock.write(tmp_path / "out" / "map.jpg", b"1", age=60)
    assert paths(watcher.scan()) == ["moved_in.png"]
    for size in range(2, 5):
        clock.now += 0.4
        clock.write(tmp_path / "grows.png", b"1" * size)
        assert watcher.scan() == []
    clock.now += 0.6
    (arrival,) = watcher.scan()
    assert arrival.path.name == "grows.png" and arrival.signature[0] == 4
    assert watcher.scan() == []
    clock.write(tmp_path / "moved_in.png", b"22", age=30)  # the same name, other contents
    assert paths(watcher.scan()) == ["moved_in.png"]


def test_its_own_maps_are_no_images_whatever_leads_there(tmp_path, clock):
    (tmp_path / "real" / "maps").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    watcher = FolderWatcher(tmp_path / "link", tmp_path / "real" / "maps", {})
    clock.write(tmp_path / "real" / "a.png", b"1", age=60)
    clock.write(tmp_path / "real" / "maps" / "a.png.jpg", b"1", age=60)
    assert paths(watcher.scan()) == ["a.png"]


def test_a_folder_that_cannot_be_listed_is_told_once_and_stops_nothing(tmp_path, clock, monkeypatch):
    listed, closed = os.scandir, [str(tmp_path / "closed")]
    (tmp_path / "closed").mkdir()

    def scandir(path):
        if str(path) in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    told = []
    watcher = FolderWatcher(tmp_path, tmp_path / "out", {}, lambda error: told.append(error.filename))
    clock.write(tmp_path / "a.png", b"1", age=60)
    assert paths(watcher.scan()) == ["a.png"] and told == closed
    assert watcher.scan() == [] and told == closed
    was_closed = closed.pop()
    watcher.scan()
    closed.append(was_closed)
    watcher.scan()
    assert told == [was_closed] * 2
    closed.append(str(tmp_path))
    assert watcher.scan() == [] and told[2:] == [str(tmp_path)]


def test_a_clock_that_is_ahead_delays_a_file_but_does_not_lose_it(tmp_path, clock):
    """As on a network share; the file then has to keep still under the watcher's eyes."""
    watcher = FolderWatcher(tmp_path, tmp_path / "out", {})
    clock.write(tmp_path / "a.png", b"1", age=-3600)
    assert watcher.scan() == []
    clock.now += 0.6
    assert paths(watcher.scan()) == ["a.png"]


def test_latencies_are_told_at_intervals(clock):
    from efficientad.inference.watching import Arrival

    lines = []
    log = LatencyLog(60, lines.append)
    start = clock.now - 500_000
    for latency in range(101):
        clock.now = start + 500_000 + latency / 1000
        log.add(Arrival(Path("a.png"), (1, 1), start))
    log.report_when_due()
    assert lines == []
    clock.now += 60
    log.report_when_due()
    assert "101 images" in lines[0] and "median 50, p95 95, p99 99, max 100" in lines[0]
    clock.now += 60
    log.report_when_due()
    assert len(lines) == 1


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
        watch.wait_for(lambda: watch.names() == ["000.png"])  # what is there at the start
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
    assert "3 images are done already" in printed and "Stopped after 2 images" in printed
    assert sorted(again.names()) == ["000.png", "000.png", "000.png", "001.png", "line.png", "new.png"]


def test_only_its_own_folder_is_added_to(folder, capsys, monkeypatch):
    from conftest import fail
    from efficientad import predict

    (folder / "out").mkdir()
    (folder / "out" / "notes.txt").write_text("mine")
    words = ["-w", folder, "--watch", folder / "in", "-o", folder / "out"]
    assert "holds other files" in fail(monkeypatch, capsys, predict, *words)
