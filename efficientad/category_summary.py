"""One table over all categories of a data set: how well each is separated, and the mean."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from tabulate import tabulate

from efficientad import outputs
from efficientad.atomic_file import write_text_atomically
from efficientad.csv_file import write_csv
from efficientad.report import Evaluation

CSV_FILE = "summary.csv"
JSON_FILE = "summary.json"
COLUMNS = ("category", "images", "image_auroc", "threshold", "accuracy", "precision", "recall")


def summary_rows(evaluations: Mapping[str, Evaluation]) -> list[dict]:
    """A row for each category, of COLUMNS, and the "mean" of those values that are defined; ratios in [0, 1]."""
    rows = [
        {
            "category": name,
            "images": evaluation.overall.count,
            "image_auroc": evaluation.overall.auroc,
            "threshold": evaluation.threshold,
            "accuracy": evaluation.overall.accuracy,
            "precision": evaluation.overall.precision,
            "recall": evaluation.overall.recall,
        }
        for name, evaluation in evaluations.items()
    ]
    return [*rows, {"category": "mean", **{column: _mean([row[column] for row in rows]) for column in COLUMNS[1:]}}]


def _mean(values: list[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else float("nan")


def format_summary(evaluations: Mapping[str, Evaluation]) -> str:
    """The rows for the terminal."""
    headers = ["Category", "Num Samples", "AUROC", "Threshold", "Accuracy", "Precision", "Recall"]
    rows = [list(row.values()) for row in summary_rows(evaluations)]
    formats = ("", "g", ".4f", "g", ".4f", ".4f", ".4f")
    return tabulate(rows, headers=headers, floatfmt=formats)


def write_summary(folder: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """summary.csv and summary.json in `folder`, in place of those of an earlier evaluation; an undefined value
    is nan in the one and null in the other.

    Raises:
        UserError: files of these names are there that no evaluation wrote.
    """
    names = [CSV_FILE, JSON_FILE]
    stale = outputs.claim_files(folder, names)
    rows = summary_rows(evaluations)
    write_csv(folder / CSV_FILE, COLUMNS, (list(row.values()) for row in rows))
    defined = [{key: None if value != value else value for key, value in row.items()} for row in rows]
    write_text_atomically(folder / JSON_FILE, json.dumps(defined, indent=2) + "\n")
    outputs.release_files(folder, stale, names)
