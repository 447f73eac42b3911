"""report.html: scored images as one self-contained page, which needs neither a network nor other files."""

from __future__ import annotations

import base64
import hashlib
import math
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import efficientad
from efficientad.data.datasets import Dataset, Sample
from efficientad.data.images import UnreadableImageError
from efficientad.data.labels import GOOD
from efficientad.detector.calibration import Calibration, describe_calibration
from efficientad.evaluation.image_metrics import INTERVAL
from efficientad.evaluation.report import Decisions, Evaluation, ScoredSample, describe_chance
from efficientad.evaluation.thumbnails import MAP_FLOOR, MAP_LEVELS, PAGE_BYTES, REPORT_BYTES, TEXT_BYTES
from efficientad.inference import results
from efficientad.inference.detectors import Detector
from efficientad.system.dataset_arguments import path_argument
from efficientad.system.files import write_text_atomically

REPORT_FILE = results.REPORT_FILE
_TEMPLATES = Path(__file__).parent / "templates"
_SCRIPTS = ("pictures.js", "charts.js", "report.js")
_KEPT_FORMAT_LETTERS = "\u200c\u200d"  # Persian and Indic words and emoji need these joiners
_UNPRINTED = {"Cc", "Cs", "Zl", "Zp", "Cf"}  # control, broken Unicode, line breaks, invisible and reordering


@dataclass(frozen=True)
class ReportFacts:
    """The facts of a run that a report shows beside its scores."""

    title: str
    test_folder: Path
    rows: Sequence[tuple[str, str]]  # label and value
    commands: Sequence[tuple[str, str]]  # label and command line
    calibration: Calibration | None
    warning: str = ""  # where the detector is no better than chance
    has_labels: bool = True  # else the page has no metrics, and all images are of the class GOOD


def write_report(
    path: Path,
    scored: Sequence[ScoredSample],
    maps: Mapping[Sample, str],
    evaluation: Decisions,
    facts: ReportFacts,
) -> None:
    """Write the page.

    Args:
        scored: with pictures. If all of them would make the page too large, those of the least suspicious images
            are left out.
        maps: for each sample the file of its map, relative to the page's folder; empty if none were written.
    """
    import jinja2
    from markupsafe import Markup

    script = "\n".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    data = _page_data(path.parent, scored, maps, evaluation, facts)
    loader = jinja2.FileSystemLoader(_TEMPLATES)
    template = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(
        "report.html"
    )
    page = template.render(
        title=visible(facts.title),
        warning=facts.warning,
        labelled=facts.has_labels,
        facts=[(label, visible(value)) for label, value in facts.rows],
        commands=[(label, visible(command)) for label, command in facts.commands],
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        # only the page's own script may run, should a hostile name ever get through the escaping
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=data,
    )
    write_text_atomically(path, page)


def visible(text: str) -> str:
    """The text with control characters, and those that reorder or hide others, escaped; broken bytes as \\xff."""
    return "".join(
        letter
        if unicodedata.category(letter) not in _UNPRINTED or letter in _KEPT_FORMAT_LETTERS
        else _escaped(letter)
        for letter in text
    )


def _escaped(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(letter)[1:-1]


def describe_run(
    dataset: Dataset,
    detector: Detector,
    weights: Path,
    threshold_origin: str,
    command: str,
    evaluation: Evaluation,
    skipped: Sequence[UnreadableImageError],
) -> ReportFacts:
    """The facts of an evaluation, and those of the training that the detector has on record.

    Args:
        weights: the folder or file of the detector.
        threshold_origin: where the threshold came from, in words.
        command: the command line of the evaluation.
        skipped: test images that could not be read.
    """
    known = detector.provenance
    facts = [
        ("Evaluated", now()),
        ("Test images", _test_fact(dataset, evaluation)),
        *model_facts(detector, weights, f"{evaluation.threshold:g} ({threshold_origin})"),
    ]
    facts += _metric_facts(evaluation)
    if skipped:
        facts.insert(2, ("Unreadable images", f"{len(skipped)}, not in this report"))
    facts += training_facts(detector)
    commands = [("Evaluate again", command)]
    if "command" in known:
        commands.insert(0, ("Train again", str(known["command"])))
    title = dataset.root.resolve().name if dataset.name == "custom" else dataset.name
    warning = describe_chance(evaluation, detector.view.size)
    return ReportFacts(title, dataset.test_folder, facts, commands, detector.calibration, warning)


def now() -> str:
    """The date and time as a report shows them."""
    return datetime.now().strftime("%Y-%m-%d %H:%M")


def model_facts(detector: Detector, weights: Path, threshold: str) -> list[tuple[str, str]]:
    """What scores the images, and how they are decided on.

    Args:
        threshold: with its origin, in words.
    """
    facts = [
        ("Threshold", threshold),
        ("Model", f"EfficientAD {detector.model_size} in {weights}"),
        ("Scored with", f"{detector.description}; efficientad {efficientad.__version__}"),
    ]
    described = detector.view.describe()
    return [*facts, ("Input", described)] if described else facts


def _metric_facts(evaluation: Evaluation) -> list[tuple[str, str]]:
    facts, auroc, pixels = [], evaluation.image_metrics.overall.auroc, evaluation.pixel_metrics
    if not math.isnan(auroc.low):
        interval = f"{100 * INTERVAL:g} % interval {100 * auroc.low:.1f} to {100 * auroc.high:.1f} %"
        facts.append(("AUROC", f"{100 * auroc.value:.1f} % over distinct images, {interval}"))
    if pixels:
        row, area = pixels.overall, "AU-sPRO" if pixels.saturated else "AU-PRO"
        facts.append(
            (
                "Localization",
                f"{area} {100 * row.au_pro_30:.1f} % up to a false-positive rate of 30 %, pixel AUROC "
                f"{100 * row.auroc:.1f} %, over {row.images} images with masks",
            )
        )
    return facts


def training_facts(detector: Detector) -> list[tuple[str, str]]:
    """The calibration of a detector and its training, as far as they are on record."""
    known, calibration, facts = detector.provenance, detector.calibration, []
    if calibration:
        described = describe_calibration(calibration, len(calibration.scores))
        facts.append(("Calibration", described.replace("\nNote: ", ". ")))
    if "steps" not in known:
        return facts
    source = known.get(path_argument(known.get("dataset", "custom")))
    versions = ", ".join(f"{name} {version}" for name, version in known.get("versions", {}).items())
    return [
        *facts,
        (
            "Trained on",
            f"{known.get('train_images')} good images, {known.get('validation_images')} more held out, "
            f"from {source}",
        ),
        (
            "Training",
            f"{_describe_training(known)}, recipe {known.get('recipe')}, seed {known.get('seed')}",
        ),
        ("Trained with", f"{known.get('machine')}; {versions}"),
        ("Teacher", str(known.get("teacher"))),
    ]


def _describe_training(known: Mapping[str, Any]) -> str:
    parts = []
    if known["steps"]:
        parts += [
            f"{known['steps']} steps of batch size {known.get('batch_size')}",
            f"learning rate {known.get('lr')}",
        ]
        parts += [f"penalty {known.get('penalty', 'unknown')}"]
    if patches := known.get("memory_patches", known.get("memory")):
        parts += [f"a memory of {patches} patches"]
    return ", ".join(parts)


def _test_fact(dataset: Dataset, evaluation: Evaluation) -> str:
    good = sum(row.count for row in evaluation.classes if row.name == GOOD)
    count, kinds = evaluation.overall.count, sum(row.name != GOOD for row in evaluation.classes)
    classes = f"{kinds} {'class' if kinds == 1 else 'classes'}"
    distinct = f" ({evaluation.distinct.count} distinct ones)" if evaluation.distinct else ""
    return f"{count}{distinct}: {good} good, {count - good} defective in {classes}, from {dataset.test_folder}"


def _page_data(
    folder: Path,
    scored: Sequence[ScoredSample],
    maps: Mapping[Sample, str],
    evaluation: Decisions,
    facts: ReportFacts,
) -> dict[str, Any]:
    """The data of the page's script: numbers, strings and lists only."""
    classes = sorted(evaluation.classes, key=lambda row: row.name != GOOD)  # good first
    numbers = {row.name: number for number, row in enumerate(classes)}
    folders = {item.sample.class_name: _class_folder(item.sample, facts.test_folder) for item in scored}
    illustrated = _within_budget(scored, evaluation.threshold)
    images = []
    for index, item in enumerate(scored):
        sample = item.sample
        row = [
            numbers[sample.class_name],
            visible(sample.image_name),
            item.score,
            _link(f"{folders[sample.class_name]}/{sample.image_name}"),
            _link(maps[sample]) if sample in maps else "",
        ]
        if index in illustrated:
            picture = item.picture
            thumbnail = base64.b64encode(picture.thumbnail).decode()
            row += [*picture.image_size, thumbnail, picture.anomaly_map, picture.mask, picture.peak]
        images.append(row)
    calibration = facts.calibration
    return {
        "key": hashlib.sha256("".join(item.digest for item in scored).encode()).hexdigest()[:16],
        "threshold": evaluation.threshold,
        "labelled": facts.has_labels,
        "classes": [
            [visible(row.name) if facts.has_labels else "", _number(row.auroc), visible(folders[row.name])]
            for row in classes
        ],
        "good": numbers.get(GOOD),
        "auroc": _number(evaluation.overall.auroc),
        "images": images,
        "test_folder": visible(str(facts.test_folder)),
        "test_link": _folder_link(facts.test_folder, folder),
        "calibration": list(calibration.scores) if calibration else [],
        "calibrated_threshold": calibration.threshold if calibration else None,
        "map_levels": MAP_LEVELS,
        "map_floor": MAP_FLOOR,
        "is_chance": bool(facts.warning),
    }


def _class_folder(sample: Sample, test_folder: Path) -> str:
    """The folder of a sample's class, below that of the test images; it may have another name than the class."""
    inside = sample.path.relative_to(test_folder).parts
    return PurePosixPath(*inside[: len(inside) - len(PurePosixPath(sample.image_name).parts)]).as_posix()


def _within_budget(scored: Sequence[ScoredSample], threshold: float) -> set[int]:
    """Indices of the most suspicious images whose pictures fit into REPORT_BYTES."""

    def suspicion(index: int) -> float:
        item = scored[index]
        return threshold - item.score if item.sample.is_anomalous else item.score - threshold

    room = REPORT_BYTES - PAGE_BYTES - TEXT_BYTES * len(scored)
    chosen = set()
    for index in sorted(range(len(scored)), key=suspicion, reverse=True):
        picture = scored[index].picture
        if picture is None:
            continue
        room -= 4 * len(picture.thumbnail) // 3 + len(picture.anomaly_map) + len(picture.mask)
        if room < 0:
            break
        chosen.add(index)
    return chosen


def _link(path: str) -> str:
    """A relative path as a link; bytes that are not UTF-8 are kept."""
    return quote(os.fsencode(path))


def _folder_link(target: Path, folder: Path) -> str:
    """The link from a page in `folder` to another folder; relative, so that both can be moved together."""
    try:
        return _link(Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix())
    except ValueError:  # another drive
        return target.resolve().as_uri()


def _number(value: float) -> float | None:
    """JSON has no nan."""
    return None if math.isnan(value) else value
