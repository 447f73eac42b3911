"""MVTec LOCO as it is reported: logical and structural defects, each against the good images, and their mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from efficientad.evaluation.report import Evaluation
from efficientad.system.errors import printable
from efficientad.system.tables import format_table, number

_CLASSES = {"logical": "logical_anomalies", "structural": "structural_anomalies"}


@dataclass(frozen=True)
class KindRow:
    """The metrics of one kind of defect, or their mean. Ratios are in [0, 1], nan where undefined."""

    name: str
    auroc: float  # of images
    au_pro_05: float  # AU-sPRO with the data set's saturations, which MVTec LOCO has
    au_pro_30: float


def kind_rows(evaluation: Evaluation) -> list[KindRow]:
    """The rows "logical", "structural" and "mean"; none for a data set without these two classes."""
    images = {row.name: row for row in evaluation.classes}
    if not images.keys() >= set(_CLASSES.values()):
        return []
    pixels = {row.name: row for row in evaluation.pixel_metrics.classes} if evaluation.pixel_metrics else {}
    rows = [
        KindRow(
            name,
            images[folder].auroc,
            pixels[folder].au_pro_05 if folder in pixels else math.nan,
            pixels[folder].au_pro_30 if folder in pixels else math.nan,
        )
        for name, folder in _CLASSES.items()
    ]
    means = (
        sum(values) / len(rows)
        for values in zip(*((row.auroc, row.au_pro_05, row.au_pro_30) for row in rows), strict=True)
    )
    return [*rows, KindRow("mean", *means)]


def format_kinds(evaluation: Evaluation) -> str:
    """The table of one data set; empty without rows."""
    rows = [
        [row.name, number(row.auroc), number(row.au_pro_05), number(row.au_pro_30)] for row in kind_rows(evaluation)
    ]
    if not rows:
        return ""
    area = _area(evaluation)
    table = format_table(["Kind", "AUROC", f"{area}\n0.05", f"{area}\n0.30"], rows, "lrrr")
    return f"As MVTec LOCO is reported, each kind of defect against the good images:\n{table}"


def kind_columns(evaluation: Evaluation) -> dict[str, float]:
    """The rows as columns of a summary, as in "logical_auroc"; empty without rows."""
    return {
        f"{row.name}_{metric}": getattr(row, metric)
        for metric in ("auroc", "au_pro_05", "au_pro_30")
        for row in kind_rows(evaluation)
    }


def format_kind_summary(rows: list[dict], evaluations: Mapping[str, Evaluation]) -> str:
    """The table of several data sets.

    Args:
        rows: of the summary, with kind_columns.
    """
    area = _area(next(iter(evaluations.values())))
    headers = {
        "category": "Data set",
        "logical_auroc": "AUROC\nlogical",
        "structural_auroc": "AUROC\nstruct.",
        "mean_auroc": "AUROC\nmean",
        "logical_au_pro_05": f"{area}\n0.05\nlogical",
        "structural_au_pro_05": f"{area}\n0.05\nstruct.",
        "mean_au_pro_05": f"{area}\n0.05\nmean",
        "mean_au_pro_30": f"{area}\n0.30\nmean",
    }
    cells = [[printable(row["category"]), *(number(row[name]) for name in list(headers)[1:])] for row in rows]
    return format_table(list(headers.values()), cells, "lrrrrrrr")


def _area(evaluation: Evaluation) -> str:
    return "AU-sPRO" if evaluation.pixel_metrics and evaluation.pixel_metrics.saturated else "AU-PRO"
