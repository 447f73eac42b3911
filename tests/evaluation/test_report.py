import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from efficientad.data.datasets import Sample
from efficientad.evaluation import image_metrics
from efficientad.evaluation.pixel_metrics import PixelMetrics, PixelRow
from efficientad.evaluation.report import (
    ScoredSample,
    describe_chance,
    evaluate_scores,
    write_metrics,
    write_mismatches,
    write_scores,
)
from efficientad.evaluation.text_tables import format_metrics, format_tables, format_thresholds


def scored(*rows):
    return [
        ScoredSample(Sample(Path("set/test", name, image), name, image), digest or f"{name}/{image}", score)
        for name, image, score, digest in rows
    ]


SCORED = scored(
    ("defect_type_2", "a.png", 90.0, None),
    ("defect_type_2", "b.png", 3.0, None),
    ("defect_type_10", "c.png", 30.0, None),
    ("good", "d.png", 24.5, None),
    ("good", "e.png", 300.25, None),
    ("good", "f.png", 10.0, None),
)

TABLES = """\
Class           Accuracy  Precision  Recall  Num Samples   AUROC
--------------  --------  ---------  ------  -----------  ------
defect_type_10    1.0000     1.0000  1.0000            1  0.6667
defect_type_2     0.5000     1.0000  0.5000            2  0.3333
good              0.6667     0.0000       -            3       -

Class    Accuracy  Precision  Recall  Num Samples
-------  --------  ---------  ------  -----------
Overall    0.6667     0.6667  0.6667            6
Final image auc: 44.4444"""


def test_tables():
    assert format_tables(evaluate_scores(SCORED, 25.0)) == TABLES


METRICS = """\
Images against all good ones, each distinct image once, whatever the threshold:
                               95 %                     at  Recall  Recall
Class            AUROC     interval      AP  F1-max  score  1 % FP  5 % FP
--------------  ------  -----------  ------  ------  -----  ------  ------
defect_type_10  0.6667            -  0.5000  0.6667  27.25  0.0000  0.0000
defect_type_2   0.3333  0.000-1.000  0.4500  0.5714   3.00  0.0000  0.0000
Overall         0.4444  0.000-1.000  0.5556  0.6667  27.25  0.0000  0.0000"""

PIXELS = PixelMetrics(
    classes=[PixelRow("defect_type_2", 1, 3, 0.9, 0.51234, 31.257, 0.3, 0.7, 1e-5)],
    overall=PixelRow("Overall", 1, 3, float("nan"), 0.5, 31.257, 0.3, 0.7, 1e-5),
    saturated=False,
    defective=3,
    left_out=2,
)

PIXEL_TABLE = """

Pixels of defects against all other pixels:
                                  at  AU-PRO  AU-PRO
Class           AUROC  F1-max  score    0.05    0.30  Masks  Defects
-------------  ------  ------  -----  ------  ------  -----  -------
defect_type_2  0.9000  0.5123  31.26  0.3000  0.7000      1        3
Overall             -  0.5000  31.26  0.3000  0.7000      1        3
2 of the 3 defective images have no mask, or an empty one;
the pixel metrics leave them out"""


def test_tables_without_a_threshold():
    assert format_metrics(evaluate_scores(SCORED, 25.0)) == METRICS
    assert format_metrics(evaluate_scores(SCORED, 25.0, pixel_metrics=PIXELS)) == METRICS + PIXEL_TABLE


def test_defects_where_nothing_is_inspected_are_told():
    def line(hidden, hiding):
        metrics = replace(PIXELS, left_out=0, hidden=hidden, hiding=hiding)
        return format_metrics(evaluate_scores(SCORED, 25.0, pixel_metrics=metrics))

    assert "3 defects on 2 images lie wholly where nothing is inspected;\nthe pixel metrics leave" in line(3, 2)
    assert "\n1 defect on 1 image lies wholly where" in line(1, 1)
    assert "inspected" not in line(0, 0)


def test_loco_pixels_are_saturated():
    saturated = replace(PIXELS, saturated=True, left_out=0)
    text = format_metrics(evaluate_scores(SCORED, 25.0, pixel_metrics=saturated))
    assert "AU-sPRO  AU-sPRO\n" in text and "AU-PRO" not in text and "leave" not in text


def test_every_line_fits_80_columns():
    names = ["manipulated_front", "structural_anomalies", "a class with a name of many words", "d" * 70]
    rows = [(name, f"{index}.png", 1000.0 / (index + 1), None) for name in names for index in range(3)]
    evaluation = evaluate_scores(scored(*rows, *(("good", f"{n}.png", n + 0.123, None) for n in range(9))), 1097.66)
    texts = [format_tables(evaluation), format_metrics(evaluation), format_thresholds(evaluation)]
    lines = "\n".join(texts).splitlines()
    assert max(map(len, lines)) <= 80
    assert {"d" * 70, "a class with a name of many words"} <= set(lines)  # on a line of their own, whole
    assert any(line.startswith("manipulated_front  ") for line in lines)


def test_chance_is_reported_with_advice():
    rng = np.random.default_rng(0)
    rows = [(kind, f"{n}.png", rng.random(), None) for kind in ("good", "dent") for n in range(40)]
    text = describe_chance(evaluate_scores(scored(*rows), 0.5), (256, 384))
    assert text.startswith("No better than chance on these images: the 95 % interval of the AUROC, 0.")
    assert "--train_steps" in text and "256 x 384 pixels" in text and "same view" in text
    better = [(kind, name, score + (kind == "dent"), None) for kind, name, score, _ in rows]
    assert describe_chance(evaluate_scores(scored(*better), 0.5), (256, 256)) == ""
    assert describe_chance(evaluate_scores(scored(*rows[:40]), 0.5), (256, 256)) == ""  # undefined is not chance


def test_names_of_classes_are_printed_as_they_are_but_for_what_a_terminal_obeys():
    text = format_tables(
        evaluate_scores(scored(("007", "a.png", 9.0, None), ("1e3\n\x1b[2J", "b.png", 9.0, None)), 1.0)
    )
    first_words = [line.split()[0] for line in text.splitlines() if line]
    assert "007" in first_words and "1e3\\n\\x1b[2J" in first_words


def test_loco_prints_the_auc_of_each_kind():
    lines = format_tables(evaluate_scores(SCORED, 25.0), auc_by_class=True).splitlines()
    assert lines[-2:] == ["Image auc of defect_type_10: 66.6667", "Image auc of defect_type_2: 33.3333"]


@pytest.mark.parametrize(("kept", "missing"), [("good", "defective"), ("defect", "good")])
def test_auc_of_one_kind_of_image_is_undefined(kept, missing):
    only = [item for item in SCORED if item.sample.class_name.startswith(kept)]
    text = format_tables(evaluate_scores(only, 25.0))
    assert text.endswith(f"AUC undefined: the test set has no {missing} images")
    assert "Overall" in text


def test_images_in_several_classes_are_counted_once_in_a_further_line():
    copies = [*SCORED, *scored(("defect_type_10", "a.png", 90.0, "defect_type_2/a.png"))]
    evaluation = evaluate_scores(copies, 25.0)
    assert evaluation.overall.count == 7
    assert evaluation.distinct.count == 6
    assert evaluation.distinct.auroc == evaluate_scores(SCORED, 25.0).overall.auroc
    assert evaluation.overall.auroc != evaluation.distinct.auroc
    assert format_tables(evaluation).splitlines()[-2:] == [
        "Over the 6 distinct images (some are in several folders):",
        "accuracy 0.6667, precision 0.6667, recall 0.6667, image auc 44.4444",
    ]


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_mismatches_are_sorted_by_suspicion(tmp_path):
    assert write_mismatches(tmp_path / "m.csv", SCORED, 25.0) == 2
    assert (tmp_path / "m.csv").read_text().splitlines()[
        0
    ] == "defect_class,image_name,y_score,path,threshold,margin"
    rows = read_csv(tmp_path / "m.csv")
    assert [(row["defect_class"], row["image_name"]) for row in rows] == [
        ("good", "e.png"),
        ("defect_type_2", "b.png"),
    ]
    assert [float(row["margin"]) for row in rows] == [275.25, -22.0]
    assert Path(rows[0]["path"]) == Path("set/test/good/e.png")


def test_scores_keep_every_float32_apart(tmp_path):
    close = scored(("good", "a.png", 25.000001907348633, None), ("good", "b,\n.png", 25.0, None))
    write_scores(tmp_path / "s.csv", close, 25.0)
    rows = read_csv(tmp_path / "s.csv")
    assert [float(row["y_score"]) for row in rows] == pytest.approx([25.0000019, 25.0], abs=1e-7)
    assert [(row["y_true"], row["y_pred"]) for row in rows] == [("0", "1"), ("0", "0")]
    assert rows[1]["image_name"] == "b,\n.png"


def test_metrics_file_is_valid_json(tmp_path):
    write_metrics(tmp_path / "m.json", evaluate_scores(SCORED, 25.0, pixel_metrics=PIXELS), {"dataset": "custom"})
    contents = json.loads((tmp_path / "m.json").read_text(), parse_constant=pytest.fail)
    assert contents["dataset"] == "custom" and contents["threshold"] == 25.0
    assert contents["overall"]["auroc"] == pytest.approx(4 / 9)
    good = contents["classes"][-1]
    assert good["name"] == "good" and good["recall"] is None and good["auroc"] is None
    ten = contents["image_metrics"]["classes"][0]
    assert ten["auroc"] == {"value": pytest.approx(2 / 3), "low": None, "high": None}
    assert contents["pixel_metrics"]["overall"]["auroc"] is None
    assert contents["pixel_metrics"]["classes"][0]["au_pro_30"] == 0.7


def test_many_further_thresholds_are_quick(monkeypatch):
    """What no threshold changes is computed once: with it, 2,000 took 20 minutes."""
    rng = np.random.default_rng(0)
    rows = [
        (f"class_{number % 14}" if number % 2 else "good", f"{number}.png", float(score), None)
        for number, score in enumerate(rng.gamma(3, 20, 2000))
    ]
    auroc, calls = image_metrics.image_auroc, []
    monkeypatch.setattr(image_metrics, "image_auroc", lambda *columns: calls.append(1) or auroc(*columns))
    evaluation = evaluate_scores(scored(*rows), 50.0, np.linspace(0, 200, 400).tolist())
    assert len(calls) == 9  # the good images, seven classes, all
    for other in (evaluation.others[0], evaluation.others[150]):
        alone = evaluate_scores(scored(*rows), other.threshold)
        assert repr((other.classes, other.overall, other.sweep)) == repr(
            (alone.classes, alone.overall, alone.sweep)
        )
