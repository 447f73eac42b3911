"""Score new images with a trained detector: decisions, anomaly maps, anomalous regions; or watch a folder."""

import argparse
from pathlib import Path

from efficientad.system import arguments
from efficientad.system.errors import UserError, printable, run_command

LOG_SECONDS = 60.0
SCAN_SECONDS = 0.2


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m efficientad.predict",
        description=__doc__,
        epilog="Exit status: 0 no image is anomalous, 1 some are, 2 an error, unreadable images included; with "
        "--watch 0 once it is stopped by Ctrl-C or SIGTERM.",
    )
    group = parser.add_argument_group("model")
    group.add_argument(
        "-w",
        "--weights_dir",
        type=Path,
        required=True,
        metavar="PATH",
        help="folder of the training, or a file of efficientad.export",
    )
    arguments.add_threshold_argument(group)
    group = parser.add_argument_group("images")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "-i",
        "--input",
        nargs="+",
        metavar="PATH",
        help="folders (of any depth), image files, or quoted patterns such as 'lot/**/*.png'",
    )
    source.add_argument(
        "--watch",
        type=Path,
        metavar="DIR",
        help="score images as they appear in this folder, until stopped; what scores.csv has is not done again",
    )
    arguments.add_batch_argument(group)
    arguments.add_machine_arguments(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o",
        "--output_dir",
        type=Path,
        default=Path("predictions"),
        metavar="DIR",
        help="gets scores.csv, maps/ and regions (default: %(default)s)",
    )
    group.add_argument(
        "-f",
        "--map_format",
        choices=("none", "tiff", "jpg", "overlay"),
        default="none",
        help="tiff: float32 maps at each image's size; jpg: the image beside a heat map; overlay: the heat map on "
        "the image (default: %(default)s)",
    )
    group.add_argument(
        "--save_regions",
        action="store_true",
        help="write the anomalous regions as COCO annotations: regions.json, or with --watch a file for each image",
    )
    group.add_argument("--print", action="store_true", dest="print_each", help="a line for each image")
    return parser


def main(args: argparse.Namespace) -> int:
    # Heavy imports after parsing: --help and a wrong flag answer at once.
    from efficientad.detector.calibration import choose_threshold
    from efficientad.inference import results
    from efficientad.inference.detectors import load_detector

    if args.watch and not args.watch.is_dir():
        raise UserError(f"--watch {args.watch}: there is no such folder")
    samples = [] if args.watch else find_inputs(args.input, args.output_dir)
    results.check_results_folder(args.output_dir, go_on=args.watch is not None)
    detector = load_detector(args.weights_dir, args.device, args.precision)
    threshold, origin = choose_threshold(args.threshold, detector.calibration)
    print(f"Model {args.weights_dir} ({detector.model_size}), {detector.description}")
    print(f"Threshold {threshold:g} ({origin})", flush=True)
    writer = results.ResultWriter(
        args.output_dir, threshold, args.map_format, args.save_regions, file_per_image=args.watch is not None
    )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if args.watch:
        watch(args, detector, writer)
        return 0
    return score(args, detector, writer, samples)


def find_inputs(words: list[str], output_dir: Path) -> list:
    """The images of folders, files and patterns, each once, named by their path below what all have in common.

    Args:
        output_dir: an earlier run's maps in it are no input.

    Raises:
        UserError: a word that leads to no image.
    """
    import glob
    import os

    from efficientad.data.datasets import Sample
    from efficientad.data.images import find_images, is_image_name, leave_out_below
    from efficientad.inference.results import MAP_FOLDER

    found: dict[str, Path] = {}  # by the whole path
    bases = []
    for word in words:
        path = Path(word)
        if path.is_dir():
            images = find_images(path)
        elif path.exists():
            images = [path]
        else:
            matches = [Path(name) for name in sorted(glob.glob(word, recursive=True))]
            images = [match for match in matches if is_image_name(match.name) and match.is_file()]
        images = leave_out_below(output_dir / MAP_FOLDER, images)
        if not images:
            reason = "holds no images" if path.is_dir() else "no such file or folder, nor a pattern of images"
            raise UserError(f"--input {word}: {reason}")
        bases += [path] if path.is_dir() else [image.parent for image in images]
        for image in images:
            found.setdefault(os.path.abspath(image), image)
    common = os.path.commonpath([os.path.abspath(base) for base in bases])
    return [Sample(image, "", Path(os.path.relpath(whole, common)).as_posix()) for whole, image in found.items()]


def score(args: argparse.Namespace, detector, writer, samples: list) -> int:
    """Score the images; returns the exit status."""
    from efficientad.inference import results
    from efficientad.inference.prediction import predict
    from efficientad.system.errors import list_files
    from efficientad.system.files import claim_files, release_files
    from efficientad.system.parallel import parallel_map
    from efficientad.system.progress_bars import progress_bar

    names = [file for sample in samples for file in writer.names(sample.image_name)]
    names += [results.SCORES_FILE, *([results.REGIONS_FILE] if args.save_regions else [])]
    stale = claim_files(args.output_dir, names)
    unreadable: list[Exception] = []
    predictions = predict(
        detector, samples, args.batch_size, args.num_workers, writer.needs_data, pass_over=unreadable.append
    )
    written = parallel_map(
        lambda one: writer.write(one, results.signature_of(one.sample.path)), predictions, args.num_workers
    )
    scores = results.ScoresFile(args.output_dir / results.SCORES_FILE, go_on=False)
    done = []
    for result in progress_bar(written, "Scoring", len(samples), unit="image", disable=args.print_each):
        scores.append(result, writer.threshold)
        done.append(result)
        if args.print_each:
            print_result(result)
    scores.close()
    if args.save_regions:
        results.write_regions(args.output_dir / results.REGIONS_FILE, done, writer.threshold)
    release_files(args.output_dir, stale, names)
    anomalous = sum(result.is_anomalous for result in done)
    print(f"{anomalous} of {len(done)} images are anomalous; results are in {args.output_dir}")
    if unreadable:
        raise UserError(
            f"cannot read {len(unreadable)} of {len(samples)} images:{list_files([*map(str, unreadable)])}"
        )
    return 1 if anomalous else 0


def watch(args: argparse.Namespace, detector, writer) -> None:
    """Score images as they appear, until Ctrl-C or SIGTERM; then finish the one at hand."""
    import sys
    import time

    from efficientad.data.datasets import Sample
    from efficientad.inference import results, run
    from efficientad.inference.prediction import predict
    from efficientad.system.runs import stop_requests

    def warn(problem: Exception) -> None:
        print(f"Passed over until it changes: {printable(str(problem))}", file=sys.stderr, flush=True)

    def warn_of_folder(error: OSError) -> None:
        print(f"Passed over: {printable(str(error.filename))}: {error.strerror}", file=sys.stderr, flush=True)

    folder = args.watch.absolute()
    scores = results.ScoresFile(args.output_dir / results.SCORES_FILE, go_on=True)
    watcher = run.FolderWatcher(folder, args.output_dir / results.MAP_FOLDER, scores.done, warn_of_folder)
    latencies = run.LatencyLog(LOG_SECONDS, lambda line: print(line, flush=True))
    count = 0
    with stop_requests("") as asked_to_stop:
        print(f"Watching {folder}, {len(scores.done)} images are done already; Ctrl-C stops", flush=True)
        while not asked_to_stop():
            time.sleep(SCAN_SECONDS)
            latencies.tell_when_due()
            by_path = {arrival.path: arrival for arrival in watcher.scan()}
            samples = [Sample(path, "", path.relative_to(folder).as_posix()) for path in by_path]
            for one in predict(detector, samples, args.batch_size, args.num_workers, writer.needs_data, warn):
                arrival = by_path[one.sample.path]
                result = writer.write(one, arrival.signature)
                scores.append(result, writer.threshold)
                latencies.add(arrival)
                latencies.tell_when_due()
                count += 1
                if args.print_each:
                    print_result(result)
                if asked_to_stop():
                    break
    scores.close()
    latencies.tell()
    print(f"Stopped after {count} images; results are in {args.output_dir}")


def print_result(result) -> None:
    decision = "anomalous" if result.is_anomalous else "good"
    path = printable(str(result.path))
    print(f"{decision:9}  {result.score:10.3f}  {result.milliseconds:7.1f} ms  {path}", flush=True)


if __name__ == "__main__":
    run_command(main, get_parser())
