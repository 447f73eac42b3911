"""The evaluation of one detector on one data set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from efficientad.data.datasets import Dataset, Sample, find_test_samples
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
from efficientad.evaluation import report, thumbnails
from efficientad.evaluation.localization import Localization, LocatedSample
from efficientad.evaluation.masks import GROUND_TRUTH, MaskSet, find_masks, read_mask
from efficientad.evaluation.report import Evaluation, ScoredSample
from efficientad.evaluation.report_page import REPORT_FILE, describe_run, write_report
from efficientad.evaluation.thumbnails import Picture, PictureSizes, encode_map, encode_mask, encode_thumbnail
from efficientad.inference.detectors import Detector, load_detector
from efficientad.inference.maps import resize_map, write_side_by_side, write_tiff
from efficientad.inference.prediction import Prediction, predict
from efficientad.system.distributed import gather_objects, rank, ranks, wait_for_ranks
from efficientad.system.errors import UserError
from efficientad.system.files import claim_files, release_files
from efficientad.system.parallel import parallel_map
from efficientad.system.runs import lock_folder


def map_names(samples: Sequence[Sample], suffix: str) -> list[str]:
    """The file below the output folder for each sample's map: <class>/<image without its suffix><suffix>.

    A class with two images that differ only in the suffix (a.jpg, a.png) keeps all suffixes (a.jpg.tiff).
    """
    stems: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        stems[sample.class_name].append(_stem(sample).casefold())
    keeps_suffix = {name for name, inside in stems.items() if len(set(inside)) < len(inside)}
    return [
        f"{sample.class_name}/"
        + (sample.image_name if sample.class_name in keeps_suffix else _stem(sample))
        + suffix
        for sample in samples
    ]


def _stem(sample: Sample) -> str:
    return PurePosixPath(sample.image_name).with_suffix("").as_posix()


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
        self._pictures = None if options.no_report else thumbnails.plan_pictures(len(self._samples))
        self._scored: Sequence[ScoredSample] = ()
        self._skipped: list[UnreadableImageError] = []
        suffix = _MAP_SUFFIXES[options.map_format]
        names = map_names(self._samples, suffix) if suffix else ()
        self._maps = dict(zip(self._samples, names, strict=True)) if suffix else {}
        self._names = [*names, report.SCORES_FILE, report.MISMATCH_FILE, report.METRICS_FILE]
        if options.on_error == "skip":
            self._names.append(SKIPPED_FILE)
        if self._pictures:
            self._names.append(REPORT_FILE)
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
            run = describe_run(
                self._dataset, self._detector, self._weights_dir, self._origin, command, evaluation, self._skipped
            )
            write_report(folder / REPORT_FILE, self._scored, self._maps, evaluation, run)
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
            print(f"All of it to look at, in a browser: {self._folder / REPORT_FILE}")

    def _tell_start(self) -> None:
        count, threshold = len(self._samples), self._threshold
        print(f"Data set {self._dataset.name}: {count} test images, threshold {threshold:g} ({self._origin})")
        print(f"Model {self._weights_dir} ({self._detector.model_size}), {self._detector.description}", flush=True)
        ground_truth = self._dataset.root / GROUND_TRUTH
        if not self._masks and ground_truth.is_dir():
            print(f"Note: no file in {ground_truth} is the mask of a test image; see dataset/README.md")


def score_samples(
    detector: Detector,
    samples: Sequence[Sample],
    map_files: Mapping[Sample, Path],
    threshold: float,
    batch_size: int,
    workers: int,
    pass_over: Callable[[UnreadableImageError], None] | None = None,
    localization: Localization | None = None,
    sizes: PictureSizes | None = None,
    masks: MaskSet | None = None,
) -> Iterator[ScoredSample]:
    """Scores in the order of the samples; when one is there, its map is written and compared with its masks.

    Args:
        map_files: for every sample the .tiff or .jpg file of its map, or nothing at all.
        threshold: only for the colours of a .jpg.
        workers: threads that read ahead, and as many that write.
        pass_over: see predict.
        localization: takes in every sample.
        sizes: of the pictures to make for a report, or None for none.
        masks: those that the pictures show.

    Raises:
        UserError: see predict, and Localization.count.
    """
    shows_image = any(file.suffix == ".jpg" for file in map_files.values())

    def finish(prediction: Prediction) -> tuple[ScoredSample, LocatedSample | None]:
        sample = prediction.sample
        if map_files or localization:
            anomaly_map = resize_map(prediction.anomaly_map, *prediction.image_size)
        if map_files:
            if shows_image:
                write_side_by_side(map_files[sample], prediction.decode(), anomaly_map, threshold)
            else:
                write_tiff(map_files[sample], anomaly_map)
        located = localization.count(sample, anomaly_map) if localization else None
        picture = _picture(prediction, sizes, masks) if sizes else None
        return ScoredSample(sample, prediction.digest, prediction.score, picture), located

    make_thumbnail = partial(encode_thumbnail, sizes=sizes) if sizes else None
    predictions = predict(detector, samples, batch_size, workers, shows_image, pass_over, make_thumbnail)
    for scored, located in parallel_map(finish, predictions, workers):
        if localization:
            localization.add(scored.sample, located)  # here and not in the threads: sums in a fixed order
        yield scored


def _picture(prediction: Prediction, sizes: PictureSizes, masks: MaskSet | None) -> Picture:
    files = masks.files(prediction.sample) if masks else ()
    return Picture(
        prediction.image_size,
        prediction.thumbnail,
        encode_map(prediction.anomaly_map, sizes.map_side),
        encode_mask([read_mask(file) for file in files], sizes.thumbnail_side // 2),
        float(prediction.anomaly_map.max()),
    )
