"""A watched folder: complete files only, once each."""

import os
import time
from pathlib import Path

import pytest

from efficientad.inference.watching import FULL_SCAN_COSTS, FULL_SCAN_SECONDS, FolderWatcher, LatencyLog
from efficientad.system.files import write_file_list


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
    watcher = FolderWatcher(tmp_path, {})
    clock.write(tmp_path / "grows.png", b"1")
    clock.write(tmp_path / "moved_in.png", b"1", age=60)
    clock.write(tmp_path / "notes.txt", b"1", age=60)
    clock.write(tmp_path / ".hidden.png", b"1", age=60)
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


def test_maps_are_no_images_whatever_leads_there(tmp_path, clock):
    for folder in ("watched", "given"):
        (tmp_path / "real" / folder / "maps").mkdir(parents=True)
        clock.write(tmp_path / "real" / folder / "maps" / "a.png.jpg", b"1", age=60)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    watcher = FolderWatcher(tmp_path / "link", {})
    clock.write(tmp_path / "real" / "a.png", b"1", age=60)
    write_file_list(tmp_path / "real" / "watched", ["maps"])
    write_file_list(tmp_path / "real" / "given", ["maps/a.png.jpg"])
    assert paths(watcher.scan()) == ["a.png"]
    write_file_list(tmp_path / "real" / "given", ["maps/a.png.jpg", "maps/deep/b.jpg"])  # as a run does before it
    (tmp_path / "real" / "given" / "maps" / "deep").mkdir()
    clock.write(tmp_path / "real" / "given" / "maps" / "deep" / "b.jpg", b"1", age=60)
    clock.write(tmp_path / "real" / "given" / "mine.jpg", b"1", age=60)
    assert paths(watcher.scan()) == ["mine.jpg"]


def test_what_is_no_image_is_named_once_for_each_suffix(tmp_path, clock):
    named = []
    watcher = FolderWatcher(tmp_path, {}, warn_of_kind=lambda path: named.append(Path(path).name))
    for name in ("a.txt", "b.TXT", "a.png", ".hidden", "none"):
        clock.write(tmp_path / name, b"1", age=60)
    assert paths(watcher.scan()) == ["a.png"]
    assert len(named) == 2 and "none" in named
    clock.write(tmp_path / "c.txt", b"1", age=60)
    clock.write(tmp_path / "c.heic", b"1", age=60)
    assert watcher.scan() == [] and named[2:] == ["c.heic"]


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
    watcher = FolderWatcher(tmp_path / "in", {})
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
    watcher = FolderWatcher(tmp_path, {}, lambda error: warned.append(error.filename))
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
    watcher = FolderWatcher(tmp_path, {})
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
