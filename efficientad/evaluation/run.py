"""The evaluation of one detector on one data set, from the images to the printed tables."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from efficientad.data.copies import group_copies
from efficientad.data.datasets import Dataset, Sample, find_test_samples, list_good_images
from efficientad.data.images import (
    SKIPPED_FILE,
    UnreadableImageError,
    check_file,
    describe_skipped,
    find_unreadable,
    raise_if_unreadable,
    write_skipped,
)
from efficientad.detector import calibration
from efficientad.evaluation import report, text_tables
from efficientad.evaluation.localization import Localization
from efficientad.evaluation.loco import format_kinds, kind_rows
from efficientad.evaluation.masks import MaskSet, find_masks
from efficientad.evaluation.report import Evaluation, ScoredSample
from efficientad.evaluation.report_page import REPORT_FILE, describe_run, write_report
from efficientad.evaluation.scoring import ScoringWork, map_names, score_samples
from efficientad.evaluation.sweep import threshold_for_recall
from efficientad.evaluation.thumbnails import plan_pictures
from efficientad.inference.detectors import Detector, open_detector
from efficientad.system.distributed import gather_objects, rank, ranks, wait_for_ranks
from efficientad.system.errors import UserError, count_of, printable
from efficientad.system.files import adopt_files, claim_files, release_files
from efficientad.system.progress_bars import progress_bar
from efficientad.system.runs import lock_folder
from efficientad.system.tables import WIDTH

MAPS_FOLDER = "test"  # below the output folder; MVTec's evaluators expect it, with nothing else in it
_MAP_SUFFIXES = {"tiff": ".tiff", "jpg": ".jpg", "none": None}


@dataclass(frozen=True)
class EvaluationOptions:
    """The user's choices; the fields are named like eval.py's flags."""

    model_size: str | None  # a check only: the detector knows its size
    threshold: float | None  # None: the detector's own
    target_recall: float | None  # in place of a threshold
    thresholds: list[float]  # further ones
    batch_size: int
    device: str
    precision: str
    num_workers: int
    map_format: str
    on_error: str
    no_report: bool


@dataclass(frozen=True)
class EvaluationRun:
    """The inputs of one evaluation, found and loaded."""

    dataset: Dataset
    weights_dir: Path
    folder: Path
    options: EvaluationOptions
    samples: Sequence[Sample]
    detector: Detector
    threshold: float  # until choose_by_recall, if there is a target_recall, for the colours of .jpg maps only
    threshold_origin: str
    masks: MaskSet | None
    notes: Sequence[str]  # about images and masks
    maps: Mapping[Sample, str]  # files below the folder; empty with map_format none


@dataclass(frozen=True)
class Scores:
    """The scored test images in the order of the data set, those skipped, and the pixel counts."""

    scored: Sequence[ScoredSample]
    skipped: Sequence[UnreadableImageError]
    localization: Localization | None  # None without masks


def evaluate_detector(
    dataset: Dataset, weights_dir: Path, folder: Path, options: EvaluationOptions, command: str
) -> Evaluation | None:
    """Score the test images of a data set, write all results into `folder` and print them.

    With several processes all must call it: each scores its share, the first one writes and prints.

    Args:
        weights_dir: the folder of a training, or an exported file.
        command: the command line that repeats this evaluation, for the report.

    Returns:
        the evaluation in the first process, None in the others.

    Raises:
        UserError: data or detector cannot be used, or files that no evaluation wrote are in the way.
    """
    with lock_folder(folder) if rank() == 0 else nullcontext():
        wait_for_ranks()  # the others go on once the first holds the lock, and not at all if it fails
        run = open_run(dataset, weights_dir, folder, options)
        files = name_files(run)
        stale = claim_results(folder, files) if rank() == 0 else set()
        wait_for_ranks()
        if rank() == 0:
            print_start(run)
        scores = score_all(run)
        if rank() > 0:
            return None
        if options.target_recall:
            run = choose_by_recall(run, scores, options.target_recall)
        pixel_metrics = scores.localization.metrics() if scores.localization else None
        evaluation = report.evaluate_scores(scores.scored, run.threshold, options.thresholds, pixel_metrics)
        write_results(run, scores, evaluation, command)
        remove_stale(run, scores, files, stale)
        print_results(run, scores, evaluation)
        return evaluation


def open_run(dataset: Dataset, weights_dir: Path, folder: Path, options: EvaluationOptions) -> EvaluationRun:
    """Find images and masks, load the detector, and check them all before the first image is scored.

    Raises:
        UserError: see evaluate_detector.
    """
    found = find_test_samples(dataset)
    samples = found.samples
    detector = open_detector(weights_dir, options.device, options.precision)
    if options.model_size not in (None, detector.model_size):
        raise UserError(
            f"{weights_dir} holds a {detector.model_size} model but --model_size is {options.model_size}"
        )
    threshold, origin = calibration.choose_threshold(options.threshold, detector.calibration)
    if options.target_recall and not any(sample.is_anomalous for sample in samples):
        raise UserError(f"--target_recall needs defective test images, and {dataset.test_folder} holds none")
    if options.on_error == "stop":
        paths = [sample.path for sample in samples]
        raise_if_unreadable(find_unreadable(paths, check_file, options.num_workers, quiet=rank() > 0))
    masks, about_masks = find_masks(dataset, samples)
    notes = [*found.notes, *_describe_seen(dataset, found.samples), *about_masks]
    suffix = _MAP_SUFFIXES[options.map_format]
    names = [f"{MAPS_FOLDER}/{name}" for name in map_names(samples, suffix)] if suffix else []
    maps = dict(zip(samples, names, strict=True)) if suffix else {}
    return EvaluationRun(
        dataset, weights_dir, folder, options, samples, detector, threshold, origin, masks, notes, maps
    )


def _describe_seen(dataset: Dataset, samples: Sequence[Sample]) -> list[str]:
    """A line about test images that are copies of those to train on, if there are any."""
    try:
        good = list_good_images(dataset)
    except UserError:  # there is nothing to train on, or that is for train.py to say
        return []
    training = [*good.train, *(good.validation or [])]
    paths = [*training, *(sample.path for sample in samples)]
    seen = [
        (paths[index], paths[group[0]])
        for group in group_copies(paths)
        for index in group
        if group[0] < len(training) <= index
    ]
    if not seen:
        return []
    verb = "is a copy of a good training image" if len(seen) == 1 else "are copies of good training images"
    return [
        f"{count_of(len(seen), 'test image')} {verb}, for example {seen[0][0]} of {seen[0][1]}; the detector may "
        "have learned from it"
    ]


def name_files(run: EvaluationRun) -> list[str]:
    """The files below the folder that the run will write."""
    names = [*run.maps.values(), report.SCORES_FILE, report.MISMATCH_FILE, report.METRICS_FILE]
    if run.options.on_error == "skip":
        names.append(SKIPPED_FILE)
    if not run.options.no_report:
        names.append(REPORT_FILE)
    return names


def claim_results(folder: Path, files: Sequence[str]) -> set[str]:
    """See claim_files. Earlier versions wrote all results into MAPS_FOLDER; they count as the last run's."""
    adopt_files(folder, MAPS_FOLDER)
    return claim_files(folder, files)


def score_all(run: EvaluationRun) -> Scores:
    """Score this process's share of the images and write their maps; the first process gets all scores.

    Raises:
        UserError: no image can be read.
    """
    skipped: list[UnreadableImageError] = []
    own = run.samples[rank() :: ranks()]
    work = ScoringWork(
        run.detector,
        own,
        run.threshold,
        run.options.batch_size,
        run.options.num_workers,
        {sample: run.folder / name for sample, name in run.maps.items()},
        on_unreadable=skipped.append if run.options.on_error == "skip" else None,
        localization=Localization(run.masks) if run.masks else None,
        picture_sizes=None if run.options.no_report else plan_pictures(len(run.samples)),
        masks=run.masks,
    )
    bar = progress_bar(score_samples(work), desc="Evaluating", total=len(own), unit="image", disable=rank() > 0)
    everywhere = {item.sample: item for part in gather_objects(list(bar)) for item in part}
    skipped = [error for part in gather_objects(skipped) for error in part]
    if work.localization:
        for other in gather_objects(work.localization)[1:]:
            work.localization.merge(other)
    for notes in gather_objects(run.detector.view.notes):
        run.detector.view.notes.merge(notes)
    if not everywhere:
        raise UserError(f"none of the {len(run.samples)} test images can be read, for example {skipped[0]}")
    scored = [everywhere[sample] for sample in run.samples if sample in everywhere]
    return Scores(scored, skipped, work.localization)


def choose_by_recall(run: EvaluationRun, scores: Scores, recall: float) -> EvaluationRun:
    """The run with the highest threshold that finds this share of its defective images, as their labels tell.

    Raises:
        UserError: none of them could be read.
    """
    y_true = np.array([item.sample.is_anomalous for item in scores.scored])
    if not y_true.any():
        raise UserError("--target_recall needs defective test images, and none of them can be read")
    threshold = threshold_for_recall(y_true, np.array([item.score for item in scores.scored]), recall)
    origin = (
        f"the highest that finds {100 * recall:g} % of these very defective images, so it has seen their labels"
    )
    print(f"\nThreshold {threshold!r}: {origin}; new images will do worse")
    return replace(run, threshold=threshold, threshold_origin=origin)


def write_results(run: EvaluationRun, scores: Scores, evaluation: Evaluation, command: str) -> None:
    """Write every file but the maps, which are already there."""
    folder, scored, threshold = run.folder, scores.scored, run.threshold
    facts = {
        "dataset": run.dataset.name,
        "weights_dir": str(run.weights_dir),
        "model_size": run.detector.model_size,
        "threshold_origin": run.threshold_origin,
    }
    report.write_scores(folder / report.SCORES_FILE, scored, threshold)
    report.write_mismatches(folder / report.MISMATCH_FILE, scored, threshold)
    if kinds := kind_rows(evaluation):
        facts["loco"] = list(map(asdict, kinds))
    report.write_metrics(folder / report.METRICS_FILE, evaluation, facts)
    if not run.options.no_report:
        page_facts = describe_run(
            run.dataset, run.detector, run.weights_dir, run.threshold_origin, command, evaluation, scores.skipped
        )
        write_report(folder / REPORT_FILE, scored, run.maps, evaluation, page_facts)
    if run.options.on_error == "skip":
        write_skipped(folder, scores.skipped)


def remove_stale(run: EvaluationRun, scores: Scores, files: Sequence[str], stale: set[str]) -> None:
    """Remove the files of an earlier evaluation that this one did not replace, old maps of skipped images too."""
    skipped = {error.name for error in scores.skipped}
    lost = {name for sample, name in run.maps.items() if str(sample.path) in skipped}
    release_files(run.folder, stale | lost, [name for name in files if name not in lost])


def print_start(run: EvaluationRun) -> None:
    """Print what is evaluated, and with what."""
    origin = f"threshold {run.threshold:g} ({run.threshold_origin})"
    if run.options.target_recall:
        origin = f"threshold to be chosen for a recall of {100 * run.options.target_recall:g} %"
    print(f"Data set {run.dataset.name}: {len(run.samples)} test images, {origin}")
    print(f"Model {run.weights_dir} ({run.detector.model_size}), {run.detector.description}", flush=True)
    if described := run.detector.view.describe():
        print(f"Input {described}", flush=True)
    for note in run.notes:
        print(f"Note: {printable(note)}", flush=True)


def print_results(run: EvaluationRun, scores: Scores, evaluation: Evaluation) -> None:
    """Print the tables, and where the files are."""
    by_class = run.dataset.name.startswith("mvtec_loco/")
    print(f"\n{text_tables.format_tables(evaluation, auc_by_class=by_class)}\n")
    print(f"{text_tables.format_metrics(evaluation)}\n")
    if kinds := format_kinds(evaluation):
        print(f"{kinds}\n")
    print(f"{text_tables.format_thresholds(evaluation)}\n")
    if warning := report.describe_chance(evaluation, run.detector.view.size):
        print(f"{textwrap.fill(warning, WIDTH)}\n")
    mismatches = sum(item.is_mismatch(run.threshold) for item in scores.scored)
    order = "" if evaluation.is_chance or mismatches < 2 else ", most suspicious first"
    where = run.folder / report.MISMATCH_FILE
    print(f"Label and score disagree on {count_of(mismatches, 'image')}{order}: {where}")
    for line in run.detector.view.notes.lines():
        print(line)
    if run.options.on_error == "skip":
        print(describe_skipped(run.folder, scores.skipped))
    print(f"{'Maps, scores' if run.maps else 'Scores'} and metrics are in {run.folder}")
    if not run.options.no_report:
        print(f"Open this in a browser to look at all of it: {run.folder / REPORT_FILE}")
