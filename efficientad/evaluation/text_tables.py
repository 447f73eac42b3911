"""The results of an evaluation as text tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from efficientad.evaluation.image_metrics import ImageRow, Row
from efficientad.evaluation.pixel_metrics import PixelMetrics
from efficientad.evaluation.report import Decisions, Evaluation
from efficientad.system.errors import count_of, printable
from efficientad.system.tables import WIDTH, format_table, number, text_width


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
    return "\n".join([*parts, title, format_table(headers, rows, "rrrrrrl"), *_format_recalls(evaluation)])


def _format_recalls(evaluation: Decisions) -> list[str]:
    """A table of each class's recall at the thresholds of the sweep, in parts that fit; none for a single class."""
    if len(evaluation.sweep_recalls) < 2:
        return []
    thresholds = [_digits(row.threshold, row.notes) for row in evaluation.sweep]
    names = {printable(name): recalls for name, recalls in evaluation.sweep_recalls.items()}
    wide = max(8, *map(len, thresholds)) + 2
    most = max(1, (WIDTH - min(max(map(text_width, names)), WIDTH // 3)) // wide)
    lines = ["", "Recall of each class at these thresholds:"]
    for start in range(0, len(thresholds), most):
        part = slice(start, start + most)
        rows = [[name, *map(number, recalls[part])] for name, recalls in names.items()]
        lines += [format_table(["Class", *thresholds[part]], rows, "l" + "r" * len(thresholds[part])), ""]
    return lines[:-1]


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
