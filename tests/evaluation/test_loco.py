"""A tiny MVTec LOCO, trained on and evaluated, against the definitions applied to the written maps."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from commands import evaluate, train
from conftest import draw_part, fill_folder, make_dataset

SATURATIONS = [
    {"defect_name": "missing", "pixel_value": 255, "saturation_threshold": 30, "relative_saturation": False},
    {"defect_name": "scratch", "pixel_value": 254, "saturation_threshold": 0.5, "relative_saturation": True},
]
FOLDERS = {"logical": "logical_anomalies", "structural": "structural_anomalies"}


@pytest.fixture
def loco(tmp_path):
    """Two categories; each defective image has two defects, in a file each."""
    for number, name in enumerate(("box", "juice")):
        root = tmp_path / "loco" / name
        make_dataset(root, train=5, test={"good": 3, "logical_anomalies": 3, "structural_anomalies": 2})
        fill_folder(root / "validation" / "good", 2)
        draw_part(3).save(root / "test/structural_anomalies/001.png")  # nothing to be seen: an AUROC below 1
        (root / "defects_config.json").write_text(json.dumps(SATURATIONS))
        for kind, count in (("logical_anomalies", 3), ("structural_anomalies", 2)):
            for image in range(count):
                folder = root / "ground_truth" / kind / f"{image:03d}"
                folder.mkdir(parents=True)
                for place, value in enumerate((255, 254)):
                    mask = Image.new("L", (60, 40))
                    left, top = 8 + 22 * place + 3 * image, 10 + 4 * number
                    mask.paste(value, (left, top, left + 9, top + 12))
                    mask.save(folder / f"{place:03d}.png")
    return tmp_path / "loco"


def plain_area(root, maps, kind, limit):
    """AU-sPRO over the images of one kind and the good ones, at every threshold."""
    normal, defects = [], []
    for name in ("good", kind):
        for file in sorted((maps / name).glob("*.tiff")):
            values, outside = np.asarray(Image.open(file)), np.ones((40, 60), dtype=bool)
            for path in sorted((root / "ground_truth" / name / file.stem).glob("*.png")):
                mask = np.asarray(Image.open(path))
                outside &= mask == 0
                area = (mask > 0).sum()
                saturation = 30 if mask.max() == 255 else int(0.5 * area)
                defects.append((np.sort(values[mask > 0]), saturation))
            normal.append(values[outside])
    normal = np.sort(np.concatenate(normal))
    thresholds = np.unique(np.concatenate([normal, *(values for values, _ in defects)]))[::-1]

    def reached(values):
        return len(values) - np.searchsorted(values, thresholds)

    rates = np.append(0, reached(normal) / len(normal))
    covered = np.append(
        0, np.mean([np.minimum(reached(values) / saturation, 1) for values, saturation in defects], axis=0)
    )
    inside = rates < limit
    x, y = np.append(rates[inside], limit), np.append(covered[inside], np.interp(limit, rates, covered))
    return (np.diff(x) * (y[1:] + y[:-1])).sum() / 2 / limit


def test_loco_is_reported_as_the_mean_of_both_kinds(loco, tiny_teacher, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["-d", "mvtec_loco", "--mvtec_loco_path", loco, "-s", "all", "-o", out, "--num_workers", 0]
    train(*words, "-w", tiny_teacher, "--memory", 20)
    capsys.readouterr()
    evaluate(*words, "--no_report")
    printed = capsys.readouterr().out
    assert printed.count("As MVTec LOCO is reported, each kind of defect against the good images:") == 2
    kinds = {}
    for name in ("box", "juice"):
        folder = out / "anomaly_maps/mvtec_loco" / name
        metrics = json.loads((folder / "metrics.json").read_text())
        kinds[name] = {row["name"]: row for row in metrics["loco"]}
        with (folder / "scores.csv").open() as file:
            scored = [(row["defect_class"], float(row["y_score"])) for row in csv.DictReader(file)]
        for kind, of in FOLDERS.items():
            row = kinds[name][kind]
            both = [(label == of, score) for label, score in scored if label in (of, "good")]
            assert row["auroc"] == pytest.approx(roc_auc_score(*zip(*both, strict=True)))
            for limit, metric in ((0.05, "au_pro_05"), (0.3, "au_pro_30")):
                expected = plain_area(loco / name, folder / "test", of, limit)
                assert row[metric] == pytest.approx(expected, abs=2e-3), (name, kind, metric)
        for metric in ("auroc", "au_pro_05", "au_pro_30"):
            mean = (kinds[name]["logical"][metric] + kinds[name]["structural"][metric]) / 2
            assert kinds[name]["mean"][metric] == pytest.approx(mean)
    assert kinds["box"]["structural"]["auroc"] < kinds["box"]["logical"]["auroc"]
    assert 0 < kinds["box"]["logical"]["au_pro_30"] < 1  # neither of the trivial values

    summary = printed[printed.index("As MVTec LOCO is reported:") :].splitlines()
    assert "AU-sPRO" in summary[1] and summary[3].split()[-4:] == ["logical", "struct.", "mean", "mean"]
    lines = {line.split()[0]: line.split()[1:] for line in summary[5:8]}
    mean = (kinds["box"]["mean"]["auroc"] + kinds["juice"]["mean"]["auroc"]) / 2
    assert float(lines["mean"][2]) == pytest.approx(mean, abs=1e-4)
    with (out / "anomaly_maps/mvtec_loco/summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[2]["mean_auroc"]) == pytest.approx(mean)
    assert float(rows[0]["structural_au_pro_05"]) == pytest.approx(kinds["box"]["structural"]["au_pro_05"])


def test_other_data_sets_have_no_such_table(output, dataset_folder, capsys):
    evaluate("-d", "custom", "-c", dataset_folder, "-o", output, "-f", "none", "--no_report")
    assert "LOCO" not in capsys.readouterr().out
    assert "loco" not in json.loads((output / "anomaly_maps/custom/metrics.json").read_text())
