"""What goes wrong with the files of one image stays its own: the others are scored and written."""

import csv
import os
import signal

import pytest
import torch

from conftest import draw_part, fail, fill_folder
from efficientad import predict
from efficientad.data.datasets import Sample
from efficientad.data.images import UnreadableImageError
from efficientad.detector.checkpoint import save_model
from efficientad.inference import results
from efficientad.inference.detectors import TorchDetector
from efficientad.inference.prediction import predict as predict_samples
from efficientad.inference.watching import FolderWatcher
from efficientad.system.errors import UserError
from efficientad.system.files import FILE_LIST
from watched import Watch

LONGEST = "x" * 251 + ".png"  # 255 bytes, the most of a name


@pytest.fixture
def folder(tmp_path, tiny_model):
    """A model, and two images in tmp/in."""
    save_model(tiny_model, tmp_path / "model.pt", {})
    fill_folder(tmp_path / "in", 2)
    return tmp_path


def words(folder, *more):
    return ["-w", folder, "-i", folder / "in", "-o", folder / "out", "-T", 0, *more]


def run(*words):
    return predict.main(predict.get_parser().parse_args([str(word) for word in words]))


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def maps(folder):
    return sorted(path.name for path in (folder / "out" / "maps").rglob("*") if path.is_file())


@pytest.mark.parametrize("map_format", ["tiff", "overlay"])
def test_the_longest_name_has_a_map_with_a_shorter_one(folder, map_format):
    for name in (LONGEST, LONGEST.replace("xx.png", "xy.png")):
        draw_part(5).save(folder / "in" / name)
    assert run(*words(folder, "-f", map_format, "--save_regions")) == 3
    assert len(maps(folder)) == 4 and len(read_csv(folder / "out" / "scores.csv")) == 4
    assert run(*words(folder)) == 3
    assert maps(folder) == []  # the next run knows them as its own


def test_files_that_cannot_be_written_are_listed_and_the_rest_goes_on(folder, monkeypatch, capsys):
    run(*words(folder, "-f", "tiff"))
    write = results.write_tiff

    def refuse_one(path, anomaly_map):
        if path.name == "001.png.tiff":
            raise OSError(13, "Permission denied", str(path))
        write(path, anomaly_map)

    monkeypatch.setattr(results, "write_tiff", refuse_one)
    (folder / "in" / "text.png").write_text("text")
    message = fail(monkeypatch, capsys, predict, *words(folder, "-f", "tiff", "--save_regions"))
    listed = folder / "out" / "skipped_files.csv"
    lines = message.splitlines()
    assert lines.pop(1).startswith(f"  {folder / 'in' / 'text.png'}: not an image")
    assert lines == [
        f"error: cannot read 1 of 3 images, see {listed}:",
        f"cannot write all files of 1 of 3 images, see {listed}:",
        f"  {folder / 'in' / '001.png'}: Permission denied: {folder / 'out' / 'maps' / '001.png.tiff'}",
    ]
    assert [row["path"] for row in read_csv(listed)] == [
        str(folder / "in" / name) for name in ("text.png", "001.png")
    ]
    assert len(read_csv(folder / "out" / "scores.csv")) == 2  # its score is there all the same
    assert maps(folder) == ["000.png.tiff"]  # and no map of an earlier run
    (folder / "in" / "text.png").unlink()
    monkeypatch.setattr(results, "write_tiff", write)
    run(*words(folder, "-f", "tiff"))
    assert not listed.exists() and len(maps(folder)) == 2


def test_a_full_disk_ends_the_run(folder, monkeypatch, capsys):
    def fill(path, anomaly_map):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(results, "write_tiff", fill)
    assert "error: No space left on device: " in fail(monkeypatch, capsys, predict, *words(folder, "-f", "tiff"))


def test_an_image_that_goes_away_while_it_is_scored_stops_nothing(folder, monkeypatch):
    write_there = results.ResultWriter.write

    def write(self, prediction, signature):
        prediction.sample.path.unlink()
        return write_there(self, prediction, signature)

    monkeypatch.setattr(results.ResultWriter, "write", write)
    assert run(*words(folder)) == 3
    assert all(int(row["bytes"]) > 0 for row in read_csv(folder / "out" / "scores.csv"))


def test_the_first_of_many_bad_files_are_named(folder, monkeypatch, capsys):
    for number in range(30):
        (folder / "in" / f"bad{number:02d}.png").write_text("text")
    lines = fail(monkeypatch, capsys, predict, *words(folder)).splitlines()
    listed = folder / "out" / "skipped_files.csv"
    assert lines[0] == f"error: cannot read 30 of 32 images, see {listed}:"
    assert len(lines) == 12 and "bad09.png" in lines[10] and lines[11] == "  ... and 20 more"
    assert len(read_csv(listed)) == 30


def test_a_score_that_is_not_finite_is_that_images_own(tiny_model, folder):
    tiny_model.quantiles.fill_(float("nan"))
    samples = [Sample(path, "", path.name) for path in sorted((folder / "in").iterdir())]
    problems = []
    detector = TorchDetector(tiny_model, torch.device("cpu"), "fp32")
    assert not list(predict_samples(detector, samples, 1, 0, on_unreadable=problems.append))
    assert [(type(one), one.name) for one in problems] == [(UnreadableImageError, str(one.path)) for one in samples]


def test_scores_are_never_written_into_another_name_of_the_file(folder):
    """Backups are made by hard links."""
    run(*words(folder))
    os.link(folder / "out" / "scores.csv", folder / "backup.csv")
    before = (folder / "backup.csv").read_text()
    run(*words(folder, "-T", 1))
    assert (folder / "backup.csv").read_text() == before


@pytest.mark.parametrize("link", ["maps", "regions", "scores.csv", FILE_LIST])
def test_links_in_the_output_folder_are_refused_before_anything_is_scored(folder, link, monkeypatch, capsys):
    (folder / "mine").mkdir()
    (folder / "out").mkdir()
    (folder / "out" / link).symlink_to(folder / "mine" / "new" if "." in link else folder / "mine")
    for source in ("-i", "--watch"):
        command = ["-w", folder, source, folder / "in", "-o", folder / "out", "-f", "jpg"]
        message = fail(monkeypatch, capsys, predict, *command)
        assert f"{folder / 'out' / link} is a link" in message and message.count("\n") == 1
    assert not list((folder / "mine").iterdir())


def test_a_watcher_survives_the_longest_name_and_what_is_in_the_way(folder):
    for name in ("000.png", "001.png"):
        (folder / "in" / name).unlink()
    (folder / "in" / "early").mkdir()
    draw_part(1).save(folder / "in" / "early" / "000.png")
    watch = Watch(folder, "-f", "overlay")
    try:
        watch.wait_for(lambda: watch.names() == ["000.png"])
        (folder / "out" / "maps" / "late").write_text("mine")  # in the way of a folder
        (folder / "in" / "late").mkdir()
        for name in (LONGEST, "late/002.png", "003.png"):
            draw_part(8).save(folder / "in" / name)
            watch.wait_for(lambda name=name: name.rpartition("/")[2] in watch.names())
        (folder / "in" / FILE_LIST).write_text('["../x"]')
        draw_part(9).save(folder / "in" / "004.png")
        watch.wait_for(lambda: "004.png" in watch.names())
        printed = watch.stop(signal.SIGTERM)
    finally:
        watch.process.kill()
    assert "Stopped after 5 images" in printed and "Traceback" not in printed
    assert printed.count("Scored, but not all of its files are written: ") == 1 and "late/002.png: " in printed
    assert printed.count("written_files.json is damaged") == 1
    assert len(maps(folder)) == 5 and (folder / "out" / "maps" / "late").read_text() == "mine"


def test_a_damaged_list_is_said_once_and_hides_nothing(folder):
    (folder / "in" / FILE_LIST).write_text('["../x"]')
    warnings = []
    watcher = FolderWatcher(folder / "in", {}, warnings.append)
    for path in (folder / "in").glob("*.png"):
        os.utime(path, (0, 0))
    assert len(watcher.scan()) == 2
    watcher._full_scan_due = 0
    watcher.scan()
    assert [type(one) for one in warnings] == [UserError]
