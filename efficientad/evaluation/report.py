"""The results of an evaluation: the text tables, scores.csv, mismatch_samples.csv and metrics.json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from efficientad.data.datasets import Sample
from efficientad.evaluation.image_metrics import (
    INTERVAL,
    ImageMetrics,
    ImageRow,
    Row,
    SweepRow,
    class_groups,
    image_metrics,
    merge_copies,
    overall_group,
    sweep_thresholds,
)
from efficientad.evaluation.pixel_metrics import PixelMetrics
from efficientad.evaluation.thumbnails import Picture
from efficientad.system.errors import count_of, printable
from efficientad.system.files import write_csv, write_text_atomically
from efficientad.system.tables import format_table, number

SCORES_FILE = "scores.csv"
MISMATCH_FILE = "mismatch_samples.csv"
METRICS_FILE = "metrics.json"


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
    """The metrics of the decisions at one threshold."""

    threshold: float
    classes: list[Row]
    overall: Row
    distinct: Row | None  # over distinct images, if some are in several classes
    sweep: list[SweepRow]  # at this and other informative thresholds


@dataclass(frozen=True)
class Evaluation(Decisions):
    """Every number of one evaluation."""

    others: list[Decisions]  # at the further thresholds of --thresholds
    image_metrics: ImageMetrics
    pixel_metrics: PixelMetrics | None  # if the data set has masks

    @property
    def is_chance(self) -> bool:
        """Whether the interval of the AUROC reaches down to 0.5."""
        return self.image_metrics.overall.auroc.low <= 0.5


def evaluate_scores(
    scored: Sequence[ScoredSample],
    threshold: float,
    other_thresholds: Sequence[float] = (),
    pixel_metrics: PixelMetrics | None = None,
) -> Evaluation:
    """All metrics of the scored images (at least one); the pixel metrics are included as they are."""
    y_true, y_score, digests, names = _columns(scored)
    groups, overall, distinct = class_groups(names, y_true, y_score), overall_group(y_true, y_score), None
    if len(set(digests)) < len(digests):
        distinct = overall_group(*merge_copies(digests, y_true, y_score), "Distinct images")

    def decide(threshold: float) -> Decisions:
        return Decisions(
            threshold,
            classes=[group.row(threshold) for group in groups],
            overall=overall.row(threshold),
            distinct=distinct and distinct.row(threshold),
            sweep=sweep_thresholds(y_true, y_score, threshold),
        )

    return Evaluation(
        **vars(decide(threshold)),
        others=list(map(decide, other_thresholds)),
        image_metrics=image_metrics(names, digests, y_true, y_score),
        pixel_metrics=pixel_metrics,
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
    classes = [[*_cells(row), number(row.auroc)] for row in evaluation.classes]
    lines = [
        format_table([*headers, "AUROC"], classes, "lrrrrr"),
        "",
        format_table(headers, [_cells(evaluation.overall)], "lrrrr"),
        _auc_line(evaluation),
    ]
    if auc_by_class:
        anomalous = [row for row in evaluation.classes if not math.isnan(row.auroc)]
        lines += [f"Image auc of {printable(row.name)}: {100 * row.auroc:.4f}" for row in anomalous]
    if evaluation.distinct:
        row = evaluation.distinct
        lines.append(
            f"Over the {row.count} distinct images (some are in several folders):\n"
            f"accuracy {number(row.accuracy)}, precision {number(row.precision)}, recall {number(row.recall)}, "
            f"image auc {number(100 * row.auroc)}"
        )
    return "\n".join(lines)


def format_thresholds(evaluation: Evaluation) -> str:
    """The tables at the further thresholds of --thresholds, then a short sweep over others."""
    parts = [f"Threshold {other.threshold:g}:\n{format_tables(other)}\n" for other in evaluation.others]
    headers = ["Threshold", "Accuracy", "Precision", "Recall", "F1", "FP rate", "Why it is listed"]
    rows = [
        [
            _digits(row.threshold, row.notes),
            *map(number, (row.accuracy, row.precision, row.recall, row.f1, row.false_positive_rate)),
            "; ".join(row.notes),
        ]
        for row in evaluation.sweep
    ]
    title = "Other thresholds on these images; all but the one in use have seen the labels:"
    return "\n".join([*parts, title, format_table(headers, rows, "rrrrrrl")])


def _digits(threshold: float, notes: Sequence[str]) -> str:
    """The digits that --threshold needs to decide the same; the one in use is printed as it was given."""
    return f"{threshold:g}" if "in use" in notes else repr(threshold).removesuffix(".0")


def _cells(row: Row) -> list[str]:
    return [printable(row.name), *map(number, (row.accuracy, row.precision, row.recall)), str(row.count)]


def _auc_line(evaluation: Decisions) -> str:
    if not math.isnan(evaluation.overall.auroc):
        return f"Final image auc: {100 * evaluation.overall.auroc:.4f}"
    missing = "defective" if math.isnan(evaluation.overall.recall) else "good"
    return f"AUC undefined: the test set has no {missing} images"


def describe_chance(evaluation: Evaluation, input_size: tuple[int, int]) -> str:
    """A warning with advice where the detector is no better than chance, else empty.

    Args:
        input_size: height and width of what the networks see.
    """
    if not evaluation.is_chance:
        return ""
    auroc, (height, width) = evaluation.image_metrics.overall.auroc, input_size
    return (
        f"No better than chance on these images: the {100 * INTERVAL:g} % interval of the AUROC, {auroc.low:.3f} "
        f"to {auroc.high:.3f}, includes 0.5. Try more training steps (train.py --recipe paper --train_steps N), "
        f"images cropped to the part (the networks see {height} x {width} pixels), and the same view and "
        "light for every part."
    )


def format_metrics(evaluation: Evaluation) -> str:
    """The tables of the metrics that need no threshold: images, and pixels where there are masks."""
    headers = ["Class", "AUROC", "95 %\ninterval", "AP", "F1-max", "at\nscore", "Recall\n1 % FP", "Recall\n5 % FP"]
    metrics = evaluation.image_metrics
    if math.isnan(metrics.overall.auroc.value):
        return "Without both good and defective test images there is nothing to compare them by."
    rows = [_image_cells(row) for row in (*metrics.classes, metrics.overall)]
    lines = [
        "Images against all good ones, each distinct image once, whatever the threshold:",
        format_table(headers, rows, "lrrrrrrr"),
    ]
    if evaluation.pixel_metrics:
        lines += ["", _format_pixels(evaluation.pixel_metrics)]
    return "\n".join(lines)


def _image_cells(row: ImageRow) -> list[str]:
    return [
        printable(row.name),
        number(row.auroc.value),
        "-" if math.isnan(row.auroc.low) else f"{row.auroc.low:.3f}-{row.auroc.high:.3f}",
        number(row.average_precision.value),
        number(row.f1_max.value),
        number(row.f1_max_threshold, 2),
        number(row.recall_at_fpr_1.value),
        number(row.recall_at_fpr_5.value),
    ]


def _format_pixels(metrics: PixelMetrics) -> str:
    area = "AU-sPRO" if metrics.saturated else "AU-PRO"
    headers = ["Class", "AUROC", "F1-max", "at\nscore", f"{area}\n0.05", f"{area}\n0.30", "Masks", "Defects"]
    rows = [
        [
            printable(row.name),
            number(row.auroc),
            number(row.f1_max),
            number(row.f1_max_threshold, 2),
            number(row.au_pro_05),
            number(row.au_pro_30),
            str(row.images),
            str(row.regions),
        ]
        for row in (*metrics.classes, metrics.overall)
    ]
    lines = ["Pixels of defects against all other pixels:", format_table(headers, rows, "lrrrrrrr")]
    if metrics.left_out:
        have = "has" if metrics.left_out == 1 else "have"
        lines.append(
            f"{metrics.left_out} of the {metrics.defective} defective images {have} no mask, or an empty one;\nthe "
            "pixel metrics leave them out"
        )
    if metrics.hidden:
        defects = f"{count_of(metrics.hidden, 'defect')} on {count_of(metrics.hiding, 'image')}"
        verb = "lies" if metrics.hidden == 1 else "lie"
        lines.append(f"{defects} {verb} wholly where nothing is inspected;\nthe pixel metrics leave them out")
    return "\n".join(lines)


def write_scores(path: Path, scored: Iterable[ScoredSample], threshold: float) -> None:
    """Write a line for every image, in the order of the classes."""
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
    """Write the images whose label and decision disagree, farthest from the threshold first; return how many."""
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
    """Write all metrics and the run's facts as JSON; undefined values are null."""
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
