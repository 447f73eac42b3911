"""The evaluation of one detector on one data set: all that is found, written and told."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from efficientad import html_report, pictures, report
from efficientad.data.datasets import Dataset, find_test_samples
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
from efficientad.localization import Localization
from efficientad.masks import GROUND_TRUTH, find_masks
from efficientad.outputs import map_names
from efficientad.report import Evaluation, ScoredSample
from efficientad.runtimes import load_detector
from efficientad.scoring import score_samples
from efficientad.system.distributed import gather_objects, rank, ranks, wait_for_ranks
from efficientad.system.errors import UserError
from efficientad.system.files import claim_files, release_files
from efficientad.system.runs import lock_folder

_MAP_SUFFIXES = {"tiff": ".tiff", "jpg": ".jpg", "none": None}


@dataclass(frozen=True)
class EvaluationOptions:
    """What a user can choose; the names are those of eval.py's flags."""

    model_size: str | None  # only to make sure
    threshold: float | None  # None: the detector's own
    thresholds: list[float]  # further ones
    batch_size: int
    device: str
    precision: str
    num_workers: int
    map_format: str
    on_error: str
    no_report: bool


def evaluate_detector(
    dataset: Dataset, weights_dir: Path, folder: Path, options: EvaluationOptions, command: str
) -> Evaluation | None:
    """Score the test images of a data set, write all results into `folder` and print them.

    Of several ranks all must call it, each scores its share, and the first one writes and tells.

    Args:
        weights_dir: the folder of a training, or an exported file.
        command: how to do the same again, for the report.

    Returns:
        the evaluation on the first rank, None on the others.

    Raises:
        UserError: data or detector cannot be used, or files that no evaluation wrote are in the way.
    """
    with lock_folder(folder) if rank() == 0 else nullcontext():
        wait_for_ranks()  # so that the first one has the lock, or fails alone
        run = _Run(dataset, weights_dir, folder, options)
        run.score()
        if rank() > 0:
            return None
        evaluation = run.evaluate()
        run.write(evaluation, command)
        run.tell(evaluation)
        return evaluation


class _Run:
    """One evaluation, step by step; what can be checked is checked before the first image is scored."""

    def __init__(self, dataset: Dataset, weights_dir: Path, folder: Path, options: EvaluationOptions) -> None:
        self._dataset, self._weights_dir, self._folder, self._options = dataset, weights_dir, folder, options
        self._samples = find_test_samples(dataset)
        self._detector = load_detector(weights_dir, options.device, options.precision)
        size = self._detector.model_size
        if options.model_size not in (None, size):
            raise UserError(f"{weights_dir} holds a {size} model but --model_size is {options.model_size}")
        self._threshold, self._origin = calibration.choose_threshold(options.threshold, self._detector.calibration)
        if options.on_error == "stop":
            paths = [sample.path for sample in self._samples]
            unreadable = find_unreadable(paths, check_file, options.num_workers, quiet=rank() > 0)
            raise_if_unreadable(unreadable)
        self._masks = find_masks(dataset, self._samples)
        self._localization = Localization(self._masks) if self._masks else None
        self._pictures = None if options.no_report else pictures.plan_pictures(len(self._samples))
        self._scored: Sequence[ScoredSample] = ()
        self._skipped: list[UnreadableImageError] = []
        suffix = _MAP_SUFFIXES[options.map_format]
        names = map_names(self._samples, suffix) if suffix else ()
        self._maps = dict(zip(self._samples, names, strict=True)) if suffix else {}
        self._names = [*names, report.SCORES_FILE, report.MISMATCH_FILE, report.METRICS_FILE]
        if options.on_error == "skip":
            self._names.append(SKIPPED_FILE)
        if self._pictures:
            self._names.append(html_report.REPORT_FILE)
        self._stale = claim_files(folder, self._names) if rank() == 0 else set()
        wait_for_ranks()
        if rank() == 0:
            self._tell_start()

    def score(self) -> None:
        """Score this rank's images, writing their maps; then the first rank has the scores of all."""
        own, options = self._samples[rank() :: ranks()], self._options
        scoring = score_samples(
            self._detector,
            own,
            {sample: self._folder / name for sample, name in self._maps.items()},
            self._threshold,
            options.batch_size,
            options.num_workers,
            pass_over=self._skipped.append if options.on_error == "skip" else None,
            localization=self._localization,
            sizes=self._pictures,
            masks=self._masks,
        )
        scored = list(tqdm(scoring, desc="Evaluating", total=len(own), unit="image", disable=rank() > 0))
        everywhere = {item.sample: item for part in gather_objects(scored) for item in part}
        self._scored = [everywhere[sample] for sample in self._samples if sample in everywhere]
        self._skipped = [error for part in gather_objects(self._skipped) for error in part]
        if self._localization:
            for other in gather_objects(self._localization)[1:]:
                self._localization.merge(other)
        if not self._scored:
            raise UserError(
                f"none of the {len(self._samples)} test images can be read; {self._skipped[0]}, for one"
            )

    def evaluate(self) -> Evaluation:
        """All numbers."""
        pixel_metrics = self._localization.metrics() if self._localization else None
        return report.evaluate_scores(self._scored, self._threshold, self._options.thresholds, pixel_metrics)

    def write(self, evaluation: Evaluation, command: str) -> None:
        """All files but the maps, which are there; then those of an earlier evaluation go."""
        folder = self._folder
        facts = {
            "dataset": self._dataset.name,
            "weights_dir": str(self._weights_dir),
            "model_size": self._detector.model_size,
        }
        report.write_scores(folder / report.SCORES_FILE, self._scored, self._threshold)
        report.write_mismatches(folder / report.MISMATCH_FILE, self._scored, self._threshold)
        report.write_metrics(folder / report.METRICS_FILE, evaluation, facts)
        if self._pictures:
            run = html_report.describe_run(
                self._dataset, self._detector, self._weights_dir, self._origin, command, evaluation, self._skipped
            )
            html_report.write_report(folder / html_report.REPORT_FILE, self._scored, self._maps, evaluation, run)
        if self._options.on_error == "skip":
            write_skipped(folder, self._skipped)
        unreadable = {error.name for error in self._skipped}
        lost = {name for sample, name in self._maps.items() if str(sample.path) in unreadable}
        release_files(folder, self._stale | lost, [name for name in self._names if name not in lost])

    def tell(self, evaluation: Evaluation) -> None:
        """Print the tables, and where the files are."""
        by_class = self._dataset.name.startswith("mvtec_loco/")
        print(f"\n{report.format_tables(evaluation, auc_by_class=by_class)}\n")
        print(f"{report.format_metrics(evaluation)}\n")
        print(f"{report.format_thresholds(evaluation)}\n")
        mismatches = sum(item.is_mismatch(self._threshold) for item in self._scored)
        where = self._folder / report.MISMATCH_FILE
        print(f"Label and score disagree on {mismatches} images, most suspicious first: {where}")
        if self._options.on_error == "skip":
            print(describe_skipped(self._folder, self._skipped))
        print(f"{'Maps, scores' if self._maps else 'Scores'} and metrics are in {self._folder}")
        if self._pictures:
            print(f"All of it to look at, in a browser: {self._folder / html_report.REPORT_FILE}")

    def _tell_start(self) -> None:
        count, threshold = len(self._samples), self._threshold
        print(f"Data set {self._dataset.name}: {count} test images, threshold {threshold:g} ({self._origin})")
        print(f"Model {self._weights_dir} ({self._detector.model_size}), {self._detector.description}", flush=True)
        ground_truth = self._dataset.root / GROUND_TRUTH
        if not self._masks and ground_truth.is_dir():
            print(f"Note: no file in {ground_truth} is the mask of a test image; see dataset/README.md")
