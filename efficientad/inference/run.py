"""Score images, or a folder that they appear in, and write the results: the work of predict."""

from __future__ import annotations

import glob
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from efficientad.data.datasets import Sample
from efficientad.data.folders import describe_others, find_images, is_image_name, leave_out_written
from efficientad.data.images import SKIPPED_FILE, UnreadableImageError, write_skipped
from efficientad.detector.calibration import choose_threshold
from efficientad.inference import results
from efficientad.inference.batches import Batch, Report
from efficientad.inference.detectors import Detector, open_detector
from efficientad.inference.prediction import Prediction, limit_workers, predict
from efficientad.inference.watching import FolderWatcher, LatencyLog
from efficientad.system.errors import UserError, count_of, list_some, printable
from efficientad.system.files import claim_files, release_files, write_file_list
from efficientad.system.parallel import parallel_map
from efficientad.system.progress_bars import progress_bar
from efficientad.system.runs import lock_folder, stop_requests

LOG_SECONDS = 60.0
SCAN_SECONDS = 0.2


@dataclass(frozen=True)
class PredictOptions:
    """The user's choices; the names are those of predict's flags."""

    weights_dir: Path
    threshold: float | None  # None: the detector's own
    batch_size: int
    device: str
    precision: str
    num_workers: int
    output_dir: Path
    map_format: str
    save_regions: bool
    print_each: bool


def find_inputs(words: Sequence[str], others: list[Path]) -> list[Sample]:
    """The images of folders, files and patterns, each once, named by their path below the common folder.

    Args:
        others: takes what is in folders and patterns and no image, or the result of an earlier run; see
            describe_others.

    Raises:
        UserError: a word leads to no image.
    """
    found: dict[str, Path] = {}  # by absolute path
    bases = []
    for word in words:
        path = Path(word)
        if path.is_dir():
            images = find_images(path, others)
        elif path.exists():
            images = [path]
        else:
            matches = [Path(name) for name in sorted(glob.glob(word, recursive=True)) if Path(name).is_file()]
            matches = leave_out_written(matches, others)
            images = [match for match in matches if is_image_name(match.name)]
            others += [match for match in matches if not is_image_name(match.name)]
        if not images:
            reason = "holds no images" if path.is_dir() else "no such file or folder, nor a pattern of images"
            raise UserError(f"--input {word}: {reason}")
        bases += [path] if path.is_dir() else [image.parent for image in images]
        for image in images:
            found.setdefault(os.path.abspath(image), image)
    common = os.path.commonpath([os.path.abspath(base) for base in bases])
    return [Sample(image, "", Path(os.path.relpath(whole, common)).as_posix()) for whole, image in found.items()]


def score_inputs(words: Sequence[str], options: PredictOptions, report: Report | None = None) -> int:
    """Score the images of folders, files and patterns; returns how many are anomalous.

    Args:
        report: written, too, unless no image can be read.

    Raises:
        UserError: nothing can be scored or written; or images are unreadable or their maps cannot be written, once
            the others have their results.
    """
    others: list[Path] = []
    samples = find_inputs(words, others)
    for line in describe_others(others):
        print(f"Note: {line}")
    unreadable: list[UnreadableImageError] = []
    folder = options.output_dir
    with lock_folder(folder):
        results.check_results_folder(folder, is_watching=False)
        detector, writer, origin = _open(options, file_per_image=False)
        of_all = [results.SCORES_FILE, *([results.REGIONS_FILE] if options.save_regions else [])]
        names = [file for sample in samples for file in writer.names(sample.image_name)]
        claimed = [*names, *of_all, SKIPPED_FILE, *([results.REPORT_FILE] if report else [])]
        stale = claim_files(folder, claimed)
        done = _score(detector, samples, writer, options, unreadable, report)
        if options.save_regions:
            results.write_regions(folder / results.REGIONS_FILE, done, writer.threshold)
        unwritten = [result.failure for result in done if result.failure]
        if unreadable or unwritten:
            write_skipped(folder, [*unreadable, *unwritten])
            of_all.append(SKIPPED_FILE)
        if report and done:
            maps = {
                result.name: writer.names(result.name)[0]
                for result in done
                if options.map_format != "none" and not result.failure
            }
            about = (options.weights_dir, writer.threshold, origin, maps, len(unreadable))
            report.write(folder / results.REPORT_FILE, Batch(_common_folder(samples[0]), detector, *about))
            of_all.append(results.REPORT_FILE)
        written = [file for result in done if not result.failure for file in writer.names(result.name)] + of_all
        release_files(folder, stale.union(claimed).difference(written), written)
    anomalous = sum(result.is_anomalous for result in done)
    if done:
        verb = "is" if 1 in (anomalous, len(done)) else "are"
        print(f"{anomalous} of {count_of(len(done), 'image')} {verb} anomalous; results are in {folder}")
    if report and done:
        print(f"Open this in a browser to look at all of it: {folder / results.REPORT_FILE}")
    elif report:
        print(f"Note: no {results.REPORT_FILE} is written, as no image can be read")
    for line in detector.view.notes.lines():
        print(line)
    _raise_problems(folder / SKIPPED_FILE, unreadable, unwritten, len(samples))
    return anomalous


def _common_folder(sample: Sample) -> Path:
    """The folder below which find_inputs named the image."""
    return Path(os.path.abspath(sample.path)).parents[len(PurePosixPath(sample.image_name).parts) - 1]


def _raise_problems(
    file: Path, unreadable: Sequence[UnreadableImageError], unwritten: Sequence[UnreadableImageError], total: int
) -> None:
    """Raise a UserError that names the first images of each kind and the file that lists all; none: do nothing."""
    kinds = {"cannot read": unreadable, "cannot write all files of": unwritten}
    lines = [
        f"{what} {len(problems)} of {count_of(total, 'image')}, see {file}:{list_some([*map(str, problems)])}"
        for what, problems in kinds.items()
        if problems
    ]
    if lines:
        raise UserError("\n".join(lines))


def watch_folder(folder: Path, options: PredictOptions) -> None:
    """Score images as they appear in a folder, until Ctrl-C or SIGTERM; then finish the one in progress.

    Raises:
        UserError: nothing can be watched, scored or written.
    """
    if not folder.is_dir():
        raise UserError(f"--watch {folder}: there is no such folder")
    with lock_folder(options.output_dir):
        results.check_results_folder(options.output_dir, is_watching=True)
        detector, writer, _ = _open(options, file_per_image=True)
        scores = results.ScoresFile(options.output_dir / results.SCORES_FILE, go_on=True)
        write_file_list(options.output_dir, results.WRITTEN_BY_WATCH)  # not to be taken for input
        count = _watch(folder.absolute(), detector, writer, scores, options)
        scores.close()
    print(f"Stopped after {count_of(count, 'image')}; results are in {options.output_dir}")


def _watch(
    folder: Path,
    detector: Detector,
    writer: results.ResultWriter,
    scores: results.ScoresFile,
    options: PredictOptions,
) -> int:
    """Score images until asked to stop; returns how many."""
    watcher = FolderWatcher(folder, scores.done, _warn_of_folder, _warn_of_kind)
    latencies = LatencyLog(LOG_SECONDS, lambda line: print(line, flush=True))
    count = 0
    with stop_requests("") as asked_to_stop:
        print(f"Watching {folder}, {count_of(len(scores.done), 'image')} scored before; Ctrl-C stops", flush=True)
        if scores.thresholds - {f"{writer.threshold:.9g}"}:
            print(
                "Note: the earlier images were decided with another threshold, perhaps of another model, and keep "
                "their lines; for a new start choose another --output_dir",
                flush=True,
            )
        while not asked_to_stop():
            time.sleep(SCAN_SECONDS)
            latencies.report_when_due()
            by_path = {arrival.path: arrival for arrival in watcher.scan()}
            samples = [Sample(path, "", path.relative_to(folder).as_posix()) for path in by_path]
            predictions = predict(
                detector, samples, options.batch_size, options.num_workers, writer.needs_data, _warn_of_image
            )
            for one in predictions:
                arrival = by_path[one.sample.path]
                result = writer.write(one, arrival.signature)
                scores.append(result, writer.threshold)
                if result.failure:
                    _warn_of_files(result.failure)
                latencies.add(arrival)
                latencies.report_when_due()
                count += 1
                if options.print_each:
                    _print_result(result)
                if asked_to_stop():
                    break
            for line in detector.view.notes.new_lines():
                print(line, flush=True)
    latencies.report()
    return count


def _open(options: PredictOptions, file_per_image: bool) -> tuple[Detector, results.ResultWriter, str]:
    """Load the detector, and print it and its threshold, whose origin is returned, too."""
    detector = open_detector(options.weights_dir, options.device, options.precision)
    threshold, origin = choose_threshold(options.threshold, detector.calibration)
    print(f"Model {options.weights_dir} ({detector.model_size}), {detector.description}")
    if described := detector.view.describe():
        print(f"Input {described}")
    print(f"Threshold {threshold:g} ({origin})", flush=True)
    writer = results.ResultWriter(
        options.output_dir, threshold, options.map_format, options.save_regions, file_per_image
    )
    return detector, writer, origin


def _score(
    detector: Detector,
    samples: Sequence[Sample],
    writer: results.ResultWriter,
    options: PredictOptions,
    unreadable: list[UnreadableImageError],
    report: Report | None,
) -> list[results.Result]:
    """Score the images and write scores.csv and the maps; collects the unreadable ones."""
    if report:
        report.begin(len(samples))
    signatures = {sample: results.signature_of(sample.path) for sample in samples}  # it may be gone when scored
    predictions = predict(
        detector,
        samples,
        options.batch_size,
        options.num_workers,
        writer.needs_data,
        unreadable.append,
        report.make_thumbnail if report else None,
    )

    def write(one: Prediction) -> results.Result:
        if report:
            report.add(one)
        return writer.write(one, signatures[one.sample])

    written = parallel_map(
        write,
        predictions,
        limit_workers(options.num_workers, detector.view),
        more_ahead=detector.images_per_pass(options.batch_size),
    )
    scores = results.ScoresFile(options.output_dir / results.SCORES_FILE, go_on=False)
    done = []
    for result in progress_bar(written, "Scoring", len(samples), unit="image", disable=options.print_each):
        scores.append(result, writer.threshold)
        done.append(result)
        if options.print_each:
            _print_result(result)
    scores.close()
    return done


def _print_result(result: results.Result) -> None:
    decision = "anomalous" if result.is_anomalous else "good"
    path = printable(str(result.path))
    print(f"{decision:9}  {result.score:10.3f}  {result.milliseconds:7.1f} ms  {path}", flush=True)


def _warn_of_image(problem: Exception) -> None:
    print(f"Skipped until it changes: {printable(str(problem))}", file=sys.stderr, flush=True)


def _warn_of_files(problem: Exception) -> None:
    print(f"Scored, but not all of its files are written: {printable(str(problem))}", file=sys.stderr, flush=True)


def _warn_of_kind(path: str) -> None:
    kind = Path(path).suffix.lower()
    print(f"Not taken, as it is no image: {printable(path)} (said once for {kind or 'no suffix'})", flush=True)


def _warn_of_folder(error: OSError | UserError) -> None:
    reason = f"Skipped: {error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
    print(printable(reason), file=sys.stderr, flush=True)
