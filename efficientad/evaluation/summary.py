"""One table over several data sets, such as the categories of one, and their mean."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from efficientad.evaluation.loco import format_kind_summary, kind_columns
from efficientad.evaluation.report import Evaluation
from efficientad.system.errors import printable
from efficientad.system.files import claim_files, release_files, write_csv, write_text_atomically
from efficientad.system.tables import format_table, number

CSV_FILE = "summary.csv"
JSON_FILE = "summary.json"
_HEADERS = {
    "category": "Data set",
    "images": "Num\nSamples",
    "image_auroc": "AUROC",
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "pixel_auroc": "Pixel\nAUROC",
    "au_pro_30": "AU-PRO\n0.30",
}


def summary_rows(evaluations: Mapping[str, Evaluation]) -> list[dict]:
    """A row for each data set, and the "mean" of the defined values; ratios in [0, 1].

    The columns of MVTec LOCO are there if all data sets have its kinds of defects.
    """
    rows = [_row(name, evaluation) for name, evaluation in evaluations.items()]
    kinds = [kind_columns(evaluation) for evaluation in evaluations.values()]
    if all(kinds):
        rows = [row | columns for row, columns in zip(rows, kinds, strict=True)]
    means = {column: _mean([row[column] for row in rows]) for column in rows[0] if column != "category"}
    return [*rows, {"category": "mean", **means}]


def _row(name: str, evaluation: Evaluation) -> dict:
    overall, pixels = evaluation.overall, evaluation.pixel_metrics
    return {
        "category": name,
        "images": overall.count,
        "image_auroc": overall.auroc,
        "accuracy": overall.accuracy,
        "precision": overall.precision,
        "recall": overall.recall,
        "pixel_auroc": pixels.overall.auroc if pixels else float("nan"),
        "au_pro_30": pixels.overall.au_pro_30 if pixels else float("nan"),
    }


def _mean(values: list[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else float("nan")


def format_summary(evaluations: Mapping[str, Evaluation]) -> str:
    """The table for the terminal; of MVTec LOCO two."""
    rows = summary_rows(evaluations)
    cells = [
        [printable(row["category"]), f"{row['images']:g}", *(number(row[name]) for name in list(_HEADERS)[2:])]
        for row in rows
    ]
    table = format_table(list(_HEADERS.values()), cells, "lrrrrrrr")
    if len(rows[0]) == len(_HEADERS):
        return table
    return f"{table}\n\nAs MVTec LOCO is reported:\n{format_kind_summary(rows, evaluations)}"


def write_summary(folder: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Write summary.csv and summary.json into `folder`, replacing those of an earlier evaluation; undefined values
    are nan in the CSV and null in the JSON file.

    Raises:
        UserError: there are files of these names that no evaluation wrote.
    """
    names = [CSV_FILE, JSON_FILE]
    stale = claim_files(folder, names)
    rows = summary_rows(evaluations)
    write_csv(folder / CSV_FILE, list(rows[0]), (list(row.values()) for row in rows))
    defined = [{key: None if value != value else value for key, value in row.items()} for row in rows]
    write_text_atomically(folder / JSON_FILE, json.dumps(defined, indent=2) + "\n")
    release_files(folder, stale, names)
