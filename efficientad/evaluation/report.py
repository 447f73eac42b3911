"""What an evaluation tells: the text tables, scores.csv, mismatch_samples.csv and metrics.json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

from efficientad.data.datasets import Sample
from efficientad.evaluation.image_metrics import (
    ImageMetrics,
    ImageRow,
    Row,
    SweepRow,
    class_rows,
    image_metrics,
    merge_copies,
    overall_row,
    sweep_thresholds,
)
from efficientad.evaluation.pixel_metrics import PixelMetrics
from efficientad.evaluation.thumbnails import Picture
from efficientad.system.errors import printable
from efficientad.system.files import write_csv, write_text_atomically

SCORES_FILE = "scores.csv"
MISMATCH_FILE = "mismatch_samples.csv"
METRICS_FILE = "metrics.json"
_FORMATS = ("", ".4f", "", ".4f", ".4f", ".2f", ".4f", ".4f")


@dataclass(frozen=True)
class ScoredSample:
    """A test image with its score; light enough to keep thousands."""

    sample: Sample
    digest: str
    score: float
    picture: Picture | None = None  # for report.html

    def is_mismatch(self, threshold: float) -> bool:
        """Whether label and decision disagree: a missed defect, a false alarm, or a wrong label."""
        return self.sample.is_anomalous != (self.score > threshold)


@dataclass(frozen=True)
class Decisions:
    """What the scores decide at one threshold."""

    threshold: float
    classes: list[Row]
    overall: Row
    distinct: Row | None  # over distinct images, where some stand in several classes
    sweep: list[SweepRow]  # of this and of other informative thresholds


@dataclass(frozen=True)
class Evaluation(Decisions):
    """Every number of one evaluation."""

    others: list[Decisions]  # at the further thresholds that were asked for
    image_metrics: ImageMetrics
    pixel_metrics: PixelMetrics | None  # where the data set has masks


def evaluate_scores(
    scored: Sequence[ScoredSample],
    threshold: float,
    other_thresholds: Sequence[float] = (),
    pixel_metrics: PixelMetrics | None = None,
) -> Evaluation:
    """All rows for the scored images (at least one); the pixel metrics are taken over."""
    y_true, y_score, digests, names = _columns(scored)
    return Evaluation(
        **vars(_decide(scored, threshold)),
        others=[_decide(scored, other) for other in other_thresholds],
        image_metrics=image_metrics(names, digests, y_true, y_score),
        pixel_metrics=pixel_metrics,
    )


def _decide(scored: Sequence[ScoredSample], threshold: float) -> Decisions:
    y_true, y_score, digests, names = _columns(scored)
    distinct = None
    if len(set(digests)) < len(digests):
        distinct = overall_row(*merge_copies(digests, y_true, y_score), threshold, "Distinct images")
    return Decisions(
        threshold,
        classes=class_rows(names, y_true, y_score, threshold),
        overall=overall_row(y_true, y_score, threshold),
        distinct=distinct,
        sweep=sweep_thresholds(y_true, y_score, threshold),
    )


def _columns(scored: Sequence[ScoredSample]) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Labels, scores, digests and class names."""
    return (
        np.array([item.sample.is_anomalous for item in scored]),
        np.array([item.score for item in scored]),
        [item.digest for item in scored],
        [item.sample.class_name for item in scored],
    )


def format_tables(evaluation: Decisions, auc_by_class: bool = False) -> str:
    """The tables and the AUC lines for the terminal.

    Args:
        auc_by_class: add a line of AUC for each defect class (MVTec LOCO's logical and structural ones).
    """
    headers = ["Class", "Accuracy", "Precision", "Recall", "Num Samples"]
    classes = [[*_cells(row), row.auroc] for row in evaluation.classes]
    lines = [
        tabulate(classes, headers=[*headers, "AUROC"], floatfmt=".4f", disable_numparse=[0]),
        "",
        tabulate([_cells(evaluation.overall)], headers=headers, floatfmt=".4f", disable_numparse=[0]),
        _auc_line(evaluation),
    ]
    if auc_by_class:
        anomalous = [row for row in evaluation.classes if not math.isnan(row.auroc)]
        lines += [f"Image auc of {printable(row.name)}: {100 * row.auroc:.4f}" for row in anomalous]
    if evaluation.distinct:
        row = evaluation.distinct
        lines.append(
            f"Over the {row.count} distinct images (some stand in several places): accuracy {row.accuracy:.4f}, "
            f"precision {row.precision:.4f}, recall {row.recall:.4f}, image auc {100 * row.auroc:.4f}"
        )
    return "\n".join(lines)


def format_thresholds(evaluation: Evaluation) -> str:
    """What further thresholds decide: the tables of those asked for, then a short sweep."""
    parts = [f"Threshold {other.threshold:g}:\n{format_tables(other)}\n" for other in evaluation.others]
    headers = ["Threshold", "Accuracy", "Precision", "Recall", "F1", "False positives", "What it is"]
    rows = [
        [
            _digits(row.threshold, row.notes),
            *(f"{value:.4f}" for value in (row.accuracy, row.precision, row.recall, row.f1)),
            f"{row.false_positive_rate:.4f}",
            "; ".join(row.notes),
        ]
        for row in evaluation.sweep
    ]
    align = ("decimal", *["right"] * 5, "left")
    table = tabulate(rows, headers=headers, colalign=align, disable_numparse=True)
    return "\n".join([*parts, "Other thresholds on these images:", table])


def _digits(threshold: float, notes: Sequence[str]) -> str:
    """What --threshold needs to decide the same; the one in use has been given already."""
    return f"{threshold:g}" if "in use" in notes else repr(threshold).removesuffix(".0")


def _cells(row: Row) -> list:
    return [printable(row.name), row.accuracy, row.precision, row.recall, row.count]


def _auc_line(evaluation: Decisions) -> str:
    if not math.isnan(evaluation.overall.auroc):
        return f"Final image auc: {100 * evaluation.overall.auroc:.4f}"
    missing = "defective" if math.isnan(evaluation.overall.recall) else "good"
    return f"AUC undefined: the test set has no {missing} images"


def format_metrics(evaluation: Evaluation) -> str:
    """The tables of the metrics that need no threshold: images, and pixels where there are masks."""
    headers = ["Class", "AUROC", "95 % interval", "AP", "F1-max", "Threshold", "Recall, 1 % FP", "Recall, 5 % FP"]
    metrics = evaluation.image_metrics
    lines = [
        "Images against all good ones, each distinct image once, whatever the threshold:",
        tabulate(
            [_image_cells(row) for row in (*metrics.classes, metrics.overall)], headers=headers, floatfmt=_FORMATS
        ),
    ]
    if evaluation.pixel_metrics:
        lines += ["", _format_pixels(evaluation.pixel_metrics)]
    return "\n".join(lines)


def _image_cells(row: ImageRow) -> list:
    interval = f"{row.auroc.low:.4f} - {row.auroc.high:.4f}"
    return [
        printable(row.name),
        row.auroc.value,
        "-" if math.isnan(row.auroc.low) else interval,
        row.average_precision.value,
        row.f1_max.value,
        row.f1_max_threshold,
        row.recall_at_fpr_1.value,
        row.recall_at_fpr_5.value,
    ]


def _format_pixels(metrics: PixelMetrics) -> str:
    area = "AU-sPRO" if metrics.saturated else "AU-PRO"
    headers = ["Class", "AUROC", "F1-max", "Threshold", f"{area} 0.05", f"{area} 0.30", "Masks", "Defects"]
    rows = [
        [
            printable(row.name),
            row.auroc,
            row.f1_max,
            row.f1_max_threshold,
            row.au_pro_05,
            row.au_pro_30,
            row.images,
            row.regions,
        ]
        for row in (*metrics.classes, metrics.overall)
    ]
    formats = ("", ".4f", ".4f", ".2f", ".4f", ".4f", "", "")
    lines = ["Pixels of defects against all other pixels:", tabulate(rows, headers=headers, floatfmt=formats)]
    if metrics.left_out:
        lines.append(
            f"{metrics.left_out} of the {metrics.defective} defective images have no mask, or an empty one; the "
            "pixel metrics leave them out"
        )
    return "\n".join(lines)


def write_scores(path: Path, scored: Iterable[ScoredSample], threshold: float) -> None:
    """A line for every image, in the order of the classes."""
    header = ["defect_class", "image_name", "y_score", "y_true", "y_pred", "path", "threshold", "sha256"]
    write_csv(
        path,
        header,
        (
            [
                item.sample.class_name,
                item.sample.image_name,
                _exact(item.score),
                int(item.sample.is_anomalous),
                int(item.score > threshold),
                item.sample.path,
                f"{threshold:g}",
                item.digest,
            ]
            for item in scored
        ),
    )


def write_mismatches(path: Path, scored: Iterable[ScoredSample], threshold: float) -> int:
    """The images whose label and decision disagree, farthest from the threshold first; returns their number."""
    mismatches = [item for item in scored if item.is_mismatch(threshold)]
    mismatches.sort(key=lambda item: -abs(item.score - threshold))
    rows = (
        [
            item.sample.class_name,
            item.sample.image_name,
            _exact(item.score),
            item.sample.path,
            f"{threshold:g}",
            _exact(item.score - threshold),
        ]
        for item in mismatches
    )
    write_csv(path, ["defect_class", "image_name", "y_score", "path", "threshold", "margin"], rows)
    return len(mismatches)


def write_metrics(path: Path, evaluation: Evaluation, facts: dict) -> None:
    """Everything of the tables and the run's facts as JSON; an undefined value is null."""
    contents = {**facts, **asdict(evaluation)}
    write_text_atomically(path, json.dumps(_without_nan(contents), indent=2) + "\n")


def _exact(value: float) -> str:
    return f"{value:.9g}"  # nine digits identify a float32


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
