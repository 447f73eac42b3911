"""Evaluate a trained EfficientAD detector: scores, anomaly maps, metrics per class, likely wrong labels."""

import argparse
from pathlib import Path

from efficientad import arguments
from efficientad.errors import UserError, run_command


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="eval.py", description=__doc__)
    arguments.add_dataset_arguments(parser)
    group = parser.add_argument_group("model")
    group.add_argument(
        "-w",
        "--weights_dir",
        type=Path,
        metavar="PATH",
        help="folder of the training, or a file of efficientad.export (default: where train.py puts it for this "
        "--output_dir and data set)",
    )
    group.add_argument(
        "-m",
        "--model_size",
        choices=arguments.MODEL_SIZES,
        help="only to make sure; the model knows its size (default: not checked)",
    )
    group = parser.add_argument_group("evaluation")
    arguments.add_threshold_argument(group)
    group.add_argument(
        "--thresholds",
        type=arguments.non_negative_float,
        nargs="+",
        default=[],
        metavar="X",
        help="also print the tables for each of these (default: none)",
    )
    group.add_argument(
        "-b",
        "--batch_size",
        type=arguments.positive_int,
        default=16,
        metavar="N",
        help="images at once; changes speed and memory, not results (default: %(default)s)",
    )
    arguments.add_machine_arguments(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "-f",
        "--map_format",
        choices=("tiff", "jpg", "none"),
        default="tiff",
        help="tiff: float32 maps at each image's size; jpg: the image beside a heat map; none: only the "
        "tables (default: %(default)s)",
    )
    arguments.add_on_error_argument(group)
    group.add_argument(
        "-o",
        "--output_dir",
        type=Path,
        default=Path("output/1"),
        metavar="DIR",
        help="results go to DIR/anomaly_maps/<data set>/test (default: %(default)s)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="continue an interrupted evaluation: what the detector has computed is not computed again",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    # Heavy imports after parsing: --help and a wrong flag answer at once.
    from efficientad.categories import each_category, raise_if_failed
    from efficientad.category_summary import CSV_FILE, JSON_FILE, format_summary, write_summary
    from efficientad.datasets import ALL_CATEGORIES, find_categories
    from efficientad.distributed import process_group

    with process_group(args.device) as (rank, _):
        if args.subdataset != ALL_CATEGORIES or args.dataset == "custom":
            evaluate_category(args, args.subdataset)
            return
        if args.weights_dir:
            raise UserError("--weights_dir names one detector, but --subdataset all has one each; leave it out")
        names = find_categories(args.dataset, arguments.dataset_path(args))
        evaluations = each_category(names, lambda name: evaluate_category(args, name))
        if rank == 0:
            folder = args.output_dir / "anomaly_maps" / args.dataset
            write_summary(folder, evaluations)
            print(f"\n{format_summary(evaluations)}\n")
            print(f"The same as files: {folder / CSV_FILE} and {JSON_FILE}")
            raise_if_failed(names, evaluations)


def evaluate_category(args: argparse.Namespace, category: str):
    """Evaluate one detector on its category; returns the report.Evaluation on the first rank."""
    from contextlib import nullcontext

    from efficientad.datasets import open_dataset
    from efficientad.distributed import rank, wait_for_ranks
    from efficientad.locks import lock_folder

    dataset = open_dataset(args.dataset, arguments.dataset_path(args), category)
    folder = args.output_dir / "anomaly_maps" / dataset.name / "test"
    with lock_folder(folder) if rank() == 0 else nullcontext():
        wait_for_ranks()
        return evaluate(args, dataset, folder)


def evaluate(args: argparse.Namespace, dataset, folder: Path):
    """Score the test images of a datasets.Dataset and write all results into `folder`."""
    from tqdm import tqdm

    from efficientad import bad_files, calibration, outputs, report
    from efficientad.datasets import find_test_samples
    from efficientad.distributed import gather_objects, rank, ranks, wait_for_ranks
    from efficientad.images import check_file, raise_if_unreadable
    from efficientad.localization import Localization
    from efficientad.map_spool import MapSpool, detector_digest
    from efficientad.masks import GROUND_TRUTH, find_masks
    from efficientad.runtimes import load_detector
    from efficientad.scoring import score_samples

    samples = find_test_samples(dataset)
    weights_dir = args.weights_dir or args.output_dir / "trainings" / dataset.name
    detector = load_detector(weights_dir, args.device, args.precision)
    if args.model_size not in (None, detector.model_size):
        raise UserError(f"{weights_dir} holds a {detector.model_size} model but --model_size is {args.model_size}")
    threshold, origin = calibration.choose_threshold(args.threshold, detector.calibration)

    skipped = [] if args.on_error == "skip" else None
    if skipped is None:
        paths = [sample.path for sample in samples]
        raise_if_unreadable(bad_files.find_unreadable(paths, check_file, args.num_workers))
    masks = find_masks(dataset, samples)
    localization = Localization(masks) if masks else None

    suffix = {"tiff": ".tiff", "jpg": ".jpg", "none": None}[args.map_format]
    maps = dict(zip(samples, outputs.map_names(samples, suffix), strict=True)) if suffix else {}
    names = [*maps.values(), report.SCORES_FILE, report.MISMATCH_FILE, report.METRICS_FILE]
    if skipped is not None:
        names.append(bad_files.SKIPPED_FILE)
    stale = outputs.claim_files(folder, names) if rank() == 0 else set()
    wait_for_ranks()
    if rank() == 0:
        print(f"Data set {dataset.name}: {len(samples)} test images, threshold {threshold:g} ({origin})")
        print(f"Model {weights_dir} ({detector.model_size}), {detector.description}", flush=True)
        if not masks and (dataset.root / GROUND_TRUTH).is_dir():
            print(
                f"Note: no file in {dataset.root / GROUND_TRUTH} is the mask of a test image; see dataset/README.md"
            )

    digest = detector_digest(weights_dir, f"{args.device} {args.precision}")
    spool = MapSpool(folder, digest, detector.image_size, args.resume)
    if args.resume and rank() == 0:
        print(f"Resuming with {len(spool)} maps that are computed already", flush=True)
    own = samples[rank() :: ranks()]
    scoring = score_samples(
        detector,
        own,
        {sample: folder / name for sample, name in maps.items()},
        threshold,
        args.batch_size,
        args.num_workers,
        pass_over=None if skipped is None else skipped.append,
        localization=localization,
        spool=spool,
    )
    scored = list(tqdm(scoring, desc="Evaluating", total=len(own), unit="image", disable=rank() > 0))
    everywhere = {item.sample: item for part in gather_objects(scored) for item in part}
    scored = [everywhere[sample] for sample in samples if sample in everywhere]
    if localization:
        for other in gather_objects(localization)[1:]:
            localization.merge(other)
    if skipped is not None:
        skipped = [error for part in gather_objects(skipped) for error in part]
    if rank() > 0:
        return None
    if skipped and not scored:
        raise UserError(f"none of the {len(samples)} test images can be read; {skipped[0]}, for one")

    pixel_metrics = localization.metrics() if localization else None
    evaluation = report.evaluate_scores(scored, threshold, args.thresholds, pixel_metrics)
    facts = {"dataset": dataset.name, "weights_dir": str(weights_dir), "model_size": detector.model_size}
    report.write_scores(folder / report.SCORES_FILE, scored, threshold)
    mismatches = report.write_mismatches(folder / report.MISMATCH_FILE, scored, threshold)
    report.write_metrics(folder / report.METRICS_FILE, evaluation, facts)
    if skipped is not None:
        bad_files.write_skipped(folder, skipped)
    unreadable = {error.name for error in skipped or ()}
    lost = {name for sample, name in maps.items() if str(sample.path) in unreadable}
    spool.discard()
    outputs.release_files(folder, stale | lost, [name for name in names if name not in lost])
    print(f"\n{report.format_tables(evaluation, auc_by_class=args.dataset == 'mvtec_loco')}\n")
    print(f"{report.format_metrics(evaluation)}\n")
    print(f"{report.format_thresholds(evaluation)}\n")
    print(
        f"Label and score disagree on {mismatches} images, most suspicious first: {folder / report.MISMATCH_FILE}"
    )
    if skipped is not None:
        print(bad_files.describe_skipped(folder, skipped))
    print(f"{'Maps, scores' if maps else 'Scores'} and metrics are in {folder}")
    return evaluation


if __name__ == "__main__":
    run_command(main, get_parser())
