"""A watched folder: complete files only, once each."""

import csv
import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import draw_part, fail, fill_folder
from efficientad import predict
from efficientad.detector.checkpoint import save_model
from efficientad.inference.watching import FULL_SCAN_COSTS, FULL_SCAN_SECONDS, FolderWatcher, LatencyLog

ROOT = Path(__file__).resolve().parents[2]


def png_bytes(seed):
    buffer = io.BytesIO()
    draw_part(seed).save(buffer, "png")
    return buffer.getvalue()


def paths(arrivals):
    return [arrival.path.name for arrival in arrivals]


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only by hand."""

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
    clock.now += FULL_SCAN_SECONDS
    assert paths(watcher.scan()) == ["moved_in.png"]


def test_its_own_maps_are_no_images_whatever_leads_there(tmp_path, clock):
    (tmp_path / "real" / "maps").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    watcher = FolderWatcher(tmp_path / "link", tmp_path / "real" / "maps", {})
    clock.write(tmp_path / "real" / "a.png", b"1", age=60)
    clock.write(tmp_path / "real" / "maps" / "a.png.jpg", b"1", age=60)
    assert paths(watcher.scan()) == ["a.png"]


@pytest.fixture
def calls(monkeypatch):
    """The paths that were listed, and those that were looked at."""

    class Calls:
        def __init__(self):
            self.clear()

        def clear(self):
            self.listed, self.looked_at = [], []

    calls, scandir, stat = Calls(), os.scandir, os.stat
    monkeypatch.setattr(os, "scandir", lambda path: calls.listed.append(Path(path).name) or scandir(path))
    monkeypatch.setattr(os, "stat", lambda path, **o: calls.looked_at.append(Path(path).name) or stat(path, **o))
    return calls


@pytest.fixture
def lots(tmp_path, clock):
    """20 folders of 30 files each, already scanned by a watcher."""
    for number in range(20):
        (tmp_path / "in" / f"lot{number}").mkdir(parents=True)
        for name in range(30):
            clock.write(tmp_path / "in" / f"lot{number}" / f"{name}.png", b"1", age=60)
    watcher = FolderWatcher(tmp_path / "in", tmp_path / "out", {})
    assert len(watcher.scan()) == 600 and watcher.scan() == []
    return watcher


def test_a_scan_of_quiet_folders_looks_at_no_file(lots, calls):
    for _ in range(5):
        assert lots.scan() == []
    assert calls.listed == [] and len(calls.looked_at) <= 5 * 21


def test_a_new_file_costs_a_look_at_its_folder_alone(tmp_path, clock, lots, calls):
    clock.write(tmp_path / "in" / "lot7" / "new.png", b"1", age=60)
    (tmp_path / "in" / "lot9" / "deeper").mkdir()
    clock.write(tmp_path / "in" / "lot9" / "deeper" / "newer.png", b"1", age=50)
    calls.clear()
    assert paths(lots.scan()) == ["new.png", "newer.png"]
    assert sorted(calls.listed) == ["deeper", "lot7", "lot9"]
    assert {name for name in calls.looked_at if name.endswith(".png")} == {"new.png", "newer.png"}
    lots.scan()  # once more: another file may have come within the same tick of the file system's clock
    calls.clear()
    assert lots.scan() == [] and calls.listed == []


def test_a_file_that_settles_is_looked_at_alone(tmp_path, clock, lots, calls):
    clock.write(tmp_path / "in" / "lot7" / "grows.png", b"1")
    lots.scan(), lots.scan()
    calls.clear()
    clock.now += 0.4
    assert lots.scan() == [] and calls.listed == []
    assert [name for name in calls.looked_at if name.endswith(".png")] == ["grows.png"]
    clock.now += 0.4
    assert paths(lots.scan()) == ["grows.png"]


def test_a_file_that_takes_the_place_of_another_is_seen_at_once(tmp_path, clock, lots):
    clock.write(tmp_path / "part", b"22", age=60)
    os.replace(tmp_path / "part", tmp_path / "in" / "lot3" / "5.png")
    assert paths(lots.scan()) == ["5.png"]


def test_a_file_rewritten_in_place_is_seen_by_the_next_full_scan(tmp_path, clock, lots, calls, monkeypatch):
    clock.write(tmp_path / "in" / "lot3" / "5.png", b"22", age=60)
    clock.now += FULL_SCAN_SECONDS - 0.1
    assert lots.scan() == []
    clock.now += 0.1
    assert paths(lots.scan()) == ["5.png"]
    looked_at = os.stat  # a share so slow that a full scan takes a minute

    def slow_stat(path, **options):
        clock.now += 0.1 * str(path).endswith(".png")
        return looked_at(path, **options)

    monkeypatch.setattr(os, "stat", slow_stat)
    clock.now += FULL_SCAN_SECONDS
    lots.scan()
    calls.clear()
    clock.now += FULL_SCAN_COSTS * 60 - 1
    assert lots.scan() == [] and calls.listed == []
    clock.now += 2
    assert lots.scan() == [] and len(calls.listed) == 21


def test_folders_that_come_and_go(tmp_path, clock, lots):
    (tmp_path / "in" / "lot1").rename(tmp_path / "in" / "moved")
    assert len(lots.scan()) == 30  # other paths
    (tmp_path / "elsewhere").mkdir()
    clock.write(tmp_path / "elsewhere" / "a.png", b"1", age=60)
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "above").symlink_to(tmp_path)
    assert [str(arrival.path.relative_to(tmp_path)) for arrival in lots.scan()] == ["in/again/a.png"]
    clock.write(tmp_path / "elsewhere" / "b.png", b"1", age=60)
    assert paths(lots.scan()) == ["b.png"]
    assert lots.scan() == []


def test_a_folder_that_cannot_be_listed_is_reported_once_and_stops_nothing(tmp_path, clock, monkeypatch):
    listed, closed = os.scandir, [str(tmp_path / "closed")]
    (tmp_path / "closed").mkdir()

    def scandir(path):
        if str(path) in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    warned = []
    watcher = FolderWatcher(tmp_path, tmp_path / "out", {}, lambda error: warned.append(error.filename))
    clock.write(tmp_path / "a.png", b"1", age=60)
    assert paths(watcher.scan()) == ["a.png"] and warned == closed
    assert watcher.scan() == [] and warned == closed
    was_closed = closed.pop()
    watcher.scan()
    closed.append(was_closed)
    watcher.scan()
    assert warned == [was_closed] * 2
    closed.append(str(tmp_path))
    clock.now += FULL_SCAN_SECONDS
    assert watcher.scan() == [] and warned[2:] == [str(tmp_path)]


def test_a_clock_that_is_ahead_delays_a_file_but_does_not_lose_it(tmp_path, clock):
    """As on a network share; the file then has to stay the same between scans."""
    watcher = FolderWatcher(tmp_path, tmp_path / "out", {})
    clock.write(tmp_path / "a.png", b"1", age=-3600)
    assert watcher.scan() == []
    clock.now += 0.6
    assert paths(watcher.scan()) == ["a.png"]


def test_latencies_are_reported_at_intervals(clock):
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
