"""Data sets as users have reported them, trained on and evaluated with the commands."""

import json
import re
import shutil
from pathlib import Path

import pytest

import eval as eval_script
import train as train_script
from commands import evaluate, train
from conftest import fail, fill_folder, make_dataset
from reports import Page

REPORTS = Path(__file__).resolve().parents[3] / "shared" / "cases" / "reports"


@pytest.fixture
def reports():
    if not REPORTS.is_dir():
        pytest.skip("the reported cases are not here")
    return REPORTS


@pytest.fixture
def quick(tiny_teacher, tmp_path):
    """Words of a quick training."""
    return ["-w", tiny_teacher, "--recipe", "fast", "--memory", 30, "-o", tmp_path / "out"]


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def pixels_of(folder):
    return next(value for name, value in metrics_of(folder).items() if "pixel" in name)


def copy(source, target):
    """A copy that can be written to."""
    shutil.copytree(source, target, copy_function=shutil.copyfile, dirs_exist_ok=True)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755)


def test_btad(reports, quick, tmp_path, capsys):
    for part in ("btad_train", "btad_test"):
        copy(reports / part, tmp_path / "BTech" / "01")
    words = ["-d", "mvtec_ad", "--mvtec_ad_path", tmp_path / "BTech", "-s", "01"]
    train(*words, *quick)
    assert f"Note: {tmp_path / 'BTech/01/train/ok'} is taken as good" in capsys.readouterr().out
    evaluate(*words, "-o", tmp_path / "out", "-f", "none")
    printed = capsys.readouterr().out
    assert f"Note: {tmp_path / 'BTech/01/test/ok'} is taken as good" in printed
    page = Page(tmp_path / "out/anomaly_maps/mvtec_ad/01/report.html")
    assert [(name, folder) for name, _, folder in page.data["classes"]] == [("good", "ok"), ("ko", "ko")]
    assert re.search(r"Final image auc: \d", printed) and re.search(r"ko +[\d.]+ .* 3 +3\n", printed)


def test_the_same_masks_in_another_folder(reports, quick, tmp_path, capsys):
    copy(reports / "btad_train", tmp_path / "set")
    train("-d", "custom", "-c", tmp_path / "set", *quick)
    found = {}
    for name in ("masks_right", "masks_odd"):
        capsys.readouterr()
        words = ["-w", tmp_path / "out/trainings/custom", "-f", "none", "--no_report"]
        evaluate("-d", "custom", "-c", reports / name, *words, "-o", tmp_path / name)
        found[name] = pixels_of(tmp_path / name / "anomaly_maps/custom")
    assert found["masks_right"] and found["masks_right"] == found["masks_odd"]
    assert f"Note: masks are taken from {reports / 'masks_odd/masks'}" in capsys.readouterr().out


def test_copies_only(reports, quick, monkeypatch, capsys):
    message = fail(monkeypatch, capsys, train_script, "-d", "custom", "-c", reports / "train_copies", *quick)
    assert "the 6 images in" in message and "are copies of one image" in message


def test_visa_as_downloaded(reports, quick, tmp_path, monkeypatch, capsys):
    copy(reports / "visa_original", tmp_path / "VisA")
    words = ["-d", "visa", "--visa_path", tmp_path / "VisA", "-s", "candle"]
    for script in (train_script, eval_script):
        message = fail(monkeypatch, capsys, script, *words)
        assert "prepare it with: python prepare_dataset.py --annotations none --unlabeled_dir" in message
    data = tmp_path / "VisA/candle/Data"
    normal, anomaly = (sorted((data / "Images" / name).iterdir()) for name in ("Normal", "Anomaly"))
    rows = ["object,split,label,image,mask"]
    rows += [f"candle,train,normal,candle/Data/Images/Normal/{path.name}," for path in normal[:3]]
    rows += [f"candle,test,normal,candle/Data/Images/Normal/{path.name}," for path in normal[3:]]
    for path in anomaly:
        mask = f"candle/Data/Masks/Anomaly/{path.stem}.png"
        rows.append(f"candle,test,anomaly,candle/Data/Images/Anomaly/{path.name},{mask}")
    (tmp_path / "VisA/split_csv").mkdir()
    (tmp_path / "VisA/split_csv/1cls.csv").write_text("\n".join(rows))
    train(*words, *quick)
    evaluate(*words, "-o", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "Data set visa/candle: 4 test images" in printed and "Note: masks" not in printed
    assert re.search(r"anomaly +[\d.]+ .* 3 +3\n", printed)
    results = tmp_path / "out/anomaly_maps/visa/candle"
    maps = sorted(path.name for path in (results / "test" / "anomaly").iterdir())
    assert maps == [f"{path.stem}.tiff" for path in anomaly]
    page = Page(results / "report.html")
    assert [folder for *_, folder in page.data["classes"]] == ["Normal", "Anomaly"]
    assert all((results / page.data["test_link"] / row[3]).is_file() for row in page.data["images"])


def test_what_is_left_out_or_not_used_is_told(quick, tmp_path, capsys):
    root = make_dataset(tmp_path / "set", train=6, test={"dent": 2})
    fill_folder(root / "test" / "OK", 1)
    for name in ("train/good/a.dat", "test/dent/b.dat", "test/list.csv"):
        (root / name).write_text("x")
    words = ["-d", "custom", "-c", root, "-s", "candle"]
    train(*words, *quick)
    printed = capsys.readouterr().out
    assert f"Note: 1 file is no image: {root / 'train/good/a.dat'}" in printed
    assert "Note: --subdataset candle is not used: a custom set has no categories" in printed
    evaluate(*words, "-o", tmp_path / "out", "-f", "none")
    printed = capsys.readouterr().out
    assert "Note: 2 files are no images: .csv (1), .dat (1)" in printed and "OK is taken as good" in printed
    assert "Note: --subdataset candle is not used" in printed
    evaluate("-d", "custom", "-c", root, "-o", tmp_path / "out", "-f", "none")
    assert "--subdataset" not in capsys.readouterr().out
    shutil.rmtree(root / "test" / "OK")
    evaluate("-d", "custom", "-c", root, "-o", tmp_path / "out", "-f", "none")
    printed = capsys.readouterr().out
    assert f"Note: {root / 'test'} holds no good images, so AUROC and false-positive rate are undefined" in printed
