"""predict --report: the page of a batch, without labels."""

import csv
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from conftest import fail, fill_folder
from efficientad import predict
from efficientad.detector.calibration import calibrate
from efficientad.detector.checkpoint import save_model
from efficientad.evaluation import batch_report, report_page
from efficientad.evaluation.thumbnails import PictureSizes
from efficientad.system.errors import run_command
from reports import Page


@pytest.fixture
def words(tmp_path, tiny_model):
    (tmp_path / "trained").mkdir()
    tiny_model.calibration = calibrate([10.0, 11.0, 12.0, 13.0, 14.0], 0.5)
    save_model(tiny_model, tmp_path / "trained" / "model.pt", {})
    fill_folder(tmp_path / "lot 7" / "a", 3)
    fill_folder(tmp_path / "lot 7" / "b", 2, seed=9, defective=True, suffix=".jpg")
    return ["-w", tmp_path / "trained", "-i", tmp_path / "lot 7", "-o", tmp_path / "out"]


def run(*words):
    return predict.main(predict.get_parser().parse_args([str(word) for word in words]))


def scores_in(folder):
    with (folder / "scores.csv").open(newline="") as file:
        return {Path(row["path"]).name: float(row["score"]) for row in csv.DictReader(file)}


def test_the_page_holds_every_image_with_its_pictures_and_no_labels(words, tmp_path, capsys):
    run(*words, "--report", "-f", "overlay")
    assert f"look at all of it: {tmp_path / 'out' / 'report.html'}\n" in capsys.readouterr().out
    page, found = Page(tmp_path / "out/report.html"), scores_in(tmp_path / "out")
    data = page.data
    assert (data["labelled"], data["classes"], data["auroc"]) == (False, [["", None, "."]], None)
    assert data["threshold"] == data["calibrated_threshold"] == 12.0
    assert {Path(row[1]).name: row[2] for row in data["images"]} == pytest.approx(found)
    for number, name, _, link, map_link, width, height, thumbnail, levels, mask, peak in data["images"]:
        assert (number, width, height, mask) == (0, 60, 40, "") and thumbnail and levels and peak > 0
        assert (tmp_path / "out" / unquote(data["test_link"]) / unquote(link)).samefile(tmp_path / "lot 7" / name)
        assert (tmp_path / "out" / unquote(map_link)).is_file()
    text = (tmp_path / "out/report.html").read_text()
    assert "python -m efficientad.predict --weights_dir" in text
    assert not any("src" in attributes for _, attributes in page.tags)
    options = [attributes["value"] for tag, attributes in page.tags if tag == "option"]
    assert options[-7:-4] == ["high", "low", "name"]  # the first one is chosen
    hidden = {attributes.get("aria-labelledby") for tag, attributes in page.tags if "hidden" in attributes}
    assert "suspects-title" in hidden


def test_pictures_of_low_scores_are_left_out_first(words, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_report, "plan_pictures", lambda count: PictureSizes(64, 10_000, 32))
    run(*words, "--report")
    whole = Page(tmp_path / "out/report.html").data["images"]
    taken = [len(row[7]) + len(row[8]) for row in sorted(whole, key=lambda row: -row[2])]
    room = report_page.PAGE_BYTES + 5 * report_page.TEXT_BYTES + sum(taken[:2]) + 10
    monkeypatch.setattr(report_page, "REPORT_BYTES", room)
    run(*words, "--report")
    rows = sorted(Page(tmp_path / "out/report.html").data["images"], key=lambda row: -row[2])
    assert [len(row) for row in rows] == [11, 11, 5, 5, 5]


def test_the_next_run_without_it_removes_the_page(words, tmp_path):
    run(*words, "--report")
    run(*words)
    assert not (tmp_path / "out/report.html").exists()
    (tmp_path / "out/report.html").write_text("mine")
    run(*words)
    assert (tmp_path / "out/report.html").read_text() == "mine"


def test_a_page_of_no_image_is_not_written_and_that_is_said(words, tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.png").write_text("no image")
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, words), "-i", str(tmp_path / "bad.png"), "--report"])
    with pytest.raises(SystemExit):
        run_command(predict.main, predict.get_parser())
    assert "Note: no report.html is written, as no image can be read\n" in capsys.readouterr().out
    assert not (tmp_path / "out/report.html").exists()


def test_unreadable_images_are_counted(words, tmp_path, monkeypatch, capsys):
    (tmp_path / "lot 7/a/000.png").write_text("text")
    assert "cannot read 1 of 5 images" in fail(monkeypatch, capsys, predict, *words, "--report")
    assert len(Page(tmp_path / "out/report.html").data["images"]) == 4
    assert "1, not in this report" in (tmp_path / "out/report.html").read_text()
    for path in (tmp_path / "lot 7").rglob("*.*"):
        path.write_text("text")
    fail(monkeypatch, capsys, predict, *words, "--report")
    assert not (tmp_path / "out/report.html").exists()


def test_not_while_watching(words, tmp_path, monkeypatch, capsys):
    words = [*words[:2], "--watch", tmp_path / "lot 7", "-o", tmp_path / "out", "--report"]
    assert "--report is a page of one batch" in fail(monkeypatch, capsys, predict, *words)
    assert not (tmp_path / "out").exists()


def test_in_a_browser(words, tmp_path, browser):
    run(*words, "--report")
    browser.open(tmp_path / "out/report.html")
    scores = sorted(scores_in(tmp_path / "out").items(), key=lambda item: -item[1])
    shown = [Path(name).name for name in browser.texts("#grid .name")]
    assert shown == [name for name, _ in scores]
    called = sum(score > 12 for _, score in scores)
    assert browser.texts(".tile-value")[:2] == [f"{called} of 5", f"{5 - called} of 5"]
    assert browser.texts("#grid .badge").count("! called defective") == called
    assert browser.run("return document.getElementById('suspects').offsetParent === null")
    browser.choose("#number", 1e6)
    assert browser.texts(".tile-value")[0] == "0 of 5"
    browser.click("#grid .open")
    assert browser.run("return document.getElementById('lightbox').open")
    assert browser.console() == []
