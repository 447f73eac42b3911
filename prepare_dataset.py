"""Make a data set for train.py and eval.py from COCO annotations (or from folders) and images of good parts."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from efficientad.system import arguments
from efficientad.system.errors import UserError, printable, run_command

if TYPE_CHECKING:
    from efficientad.preparation.sources import SourceImage

NONE = Path("none")
LABELED_DIR = Path("dataset/original/images/")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prepare_dataset.py",
        description=__doc__,
        epilog="An image goes to test/defect_type_<id> for each kind of defect it has; good images are split into "
        "train/good and test/good. manifest.csv lists the source and SHA-256 of each image, image_counts.csv the "
        "images per folder. The folder appears when it is complete, or not at all.",
    )
    group = parser.add_argument_group("images")
    group.add_argument(
        "--annotations",
        type=Path,
        default=Path("dataset/original/annotations/instance.json"),
        metavar="FILE",
        help="COCO file; none: use only the folders --unlabeled_dir and --defect_dir (default: %(default)s)",
    )
    group.add_argument(
        "--labeled_dir",
        type=Path,
        metavar="DIR",
        help=f"folder that the COCO file's file names are relative to (default: {LABELED_DIR})",
    )
    group.add_argument(
        "--unlabeled_dir",
        type=Path,
        default=Path("dataset/original/normal/B/"),
        metavar="DIR",
        help="good images, at any depth; none: use only those of the COCO file (default: %(default)s)",
    )
    group.add_argument(
        "--defect_dir",
        type=Path,
        metavar="DIR",
        help="with --annotations none: defective images, in one folder per class or all in one (default: none)",
    )
    group.add_argument(
        "--mask_dir",
        type=Path,
        metavar="DIR",
        help="with --defect_dir: masks, not 0 where the defect is; that of a/b.jpg is a/b.png, a/b_mask.png, "
        "a/b_label.png or a/b.jpg.png (default: none)",
    )
    group = parser.add_argument_group("annotations")
    group.add_argument(
        "--normal_categories",
        nargs="*",
        metavar="NAME_OR_ID",
        help="categories that label the part, not a defect, in any letter case (default: names of good parts, as "
        "good, normal, ok or no defect, and led and marked)",
    )
    group.add_argument(
        "--unannotated",
        choices=("skip", "good"),
        default="skip",
        help="images of the COCO file without annotations; skip: leave them out; good: they are good (default: "
        "%(default)s)",
    )
    group.add_argument(
        "--match_names",
        action="store_true",
        help="for an annotated image that is missing take the one file below --labeled_dir that has its name in "
        "another spelling (letter case, %%20, Unicode) or folder (default: name them)",
    )
    group.add_argument(
        "--skip_missing",
        action="store_true",
        help="leave out missing annotated images, as --on_error skip does (default: list them and write nothing)",
    )
    group = parser.add_argument_group("data set")
    group.add_argument(
        "--train_ratio",
        type=arguments.ratio,
        default=0.8,
        metavar="X",
        help="share of the good images for training, above 0 and at most 1 (default: %(default)s)",
    )
    arguments.add_seed_argument(group, "the split of the good images")
    group.add_argument(
        "--folder_names",
        choices=("id", "name"),
        default="id",
        help="defect folders are named defect_type_<category id>, or after the category (default: %(default)s)",
    )
    group.add_argument("--link", action="store_true", help="hard-link the images instead of copying them")
    group = parser.add_argument_group("output")
    arguments.add_output_dir_argument(group, "the data set, a new or empty folder", "dataset/leddd")
    group.add_argument(
        "--preview",
        type=Path,
        metavar="DIR",
        help="also draw boxes, outlines and names of the annotations on their images, to check the labels, into "
        "this new or empty folder (default: off)",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an output folder if this tool wrote every file in it (default: refuse)",
    )
    arguments.add_on_error_argument(group)
    arguments.add_max_megapixels_argument(group)
    arguments.add_workers_argument(group)
    return parser


def main(args: argparse.Namespace) -> None:
    # Imports after parsing, so that --help and flag errors are instant.
    from efficientad.data.formats import limit_megapixels
    from efficientad.data.images import UnreadableImageError, describe_skipped, write_skipped
    from efficientad.preparation.checks import check_annotations
    from efficientad.preparation.coco import read_coco
    from efficientad.preparation.frames import settle_frames
    from efficientad.preparation.mask_files import check_mask_files
    from efficientad.preparation.plan import describe_unmarked, look_at_files, make_plan, write_plan
    from efficientad.preparation.preview import write_previews
    from efficientad.preparation.sources import find_annotated
    from efficientad.preparation.staging import require_free, staged_folder

    limit_megapixels(args.max_megapixels)
    check_flags(args)
    labeled_dir = args.labeled_dir or LABELED_DIR
    inputs = [labeled_dir, args.unlabeled_dir, args.defect_dir, args.mask_dir]
    require_free(args.output_dir, args.overwrite, "--output_dir", inputs)
    if args.preview:
        require_free(args.preview, args.overwrite, "--preview", [*inputs, args.output_dir])
    skip = args.on_error == "skip"
    skipped: list[UnreadableImageError] = []
    on_unreadable = skipped.append if skip else None
    class_names: dict[str, str] = {}
    found: list[SourceImage] = []
    notes: list[str] = []
    if args.annotations != NONE:
        coco = read_coco(args.annotations)
        annotated = find_annotated(
            coco,
            labeled_dir,
            args.normal_categories,
            use_names=args.folder_names == "name",
            take_unannotated=args.unannotated == "good",
            skip_missing=args.skip_missing or skip,
            match_names=args.match_names,
            good_folder=None if args.unlabeled_dir == NONE else args.unlabeled_dir,
        )
        skipped += [UnreadableImageError(str(path), "missing") for path in annotated.missing]
        found, class_names = annotated.images, annotated.class_names
        print("\n".join(annotated.notes))
    found, facts = look_at_files([*found, *find_in_folders(args, notes)], args.num_workers, on_unreadable)
    headers = [fact.header for fact in facts]
    check_mask_files(found, headers)
    found, frame_notes = settle_frames(found, headers)
    notes += frame_notes + check_annotations(args.annotations, found)
    plan = make_plan(found, facts, args.train_ratio, args.seed)
    print("".join(f"{note}\n" for note in [*notes, *plan.notes]), end="", flush=True)
    with staged_folder(args.output_dir, args.overwrite, "--output_dir") as folder:
        unmarked = write_plan(plan, folder, args.link, args.num_workers)
        if args.preview:
            with staged_folder(args.preview, args.overwrite, "--preview") as drawn:
                write_previews(found, coco.categories, drawn, args.num_workers, on_unreadable)
        if skip:
            write_skipped(folder, skipped)
    print("".join(f"{line}\n" for line in describe_unmarked(unmarked)), end="")
    if skip:
        print(f"\n{describe_skipped(args.output_dir, skipped)}")
    report(args, plan.counts(), class_names)


def find_in_folders(args: argparse.Namespace, notes: list[str]) -> list[SourceImage]:
    """The images of --unlabeled_dir and --defect_dir, with their masks; `notes` takes what there is to say."""
    from efficientad.preparation.mask_files import add_mask_files
    from efficientad.preparation.sources import find_defective, find_good

    good = find_good(args.unlabeled_dir, notes) if args.unlabeled_dir != NONE else []
    defective = find_defective(args.defect_dir, args.mask_dir, notes) if args.defect_dir else []
    if args.mask_dir:
        defective, mask_notes = add_mask_files(args.mask_dir, defective)
        notes += mask_notes
    return good + defective


def check_flags(args: argparse.Namespace) -> None:
    """Refuse contradictory flags."""
    if args.annotations == NONE and args.preview:
        raise UserError("--preview draws annotations, but there are none; give --annotations FILE")
    if args.annotations == NONE and args.unlabeled_dir == NONE:
        raise UserError("--annotations none needs good images; give their folder with --unlabeled_dir")
    if args.annotations != NONE and args.defect_dir:
        raise UserError("--defect_dir replaces COCO annotations; add --annotations none")
    if args.mask_dir and not args.defect_dir:
        raise UserError("--mask_dir has the masks of defective images; give their folder with --defect_dir")
    if args.mask_dir and is_below(args.defect_dir, args.mask_dir):
        raise UserError("--mask_dir and --defect_dir must be different folders, and the images not among the masks")
    if args.annotations == NONE:
        unused = {
            "--labeled_dir": args.labeled_dir is not None,
            "--normal_categories": args.normal_categories is not None,
            "--unannotated": args.unannotated != "skip",
            "--match_names": args.match_names,
            "--skip_missing": args.skip_missing,
            "--folder_names": args.folder_names != "id",
        }
        if names := [flag for flag, is_given in unused.items() if is_given]:
            advice = "good images are those of --unlabeled_dir, defective ones those of --defect_dir"
            print(f"Without annotations {' and '.join(names)} change{'s' * (len(names) == 1)} nothing: {advice}")


def is_below(path: Path, folder: Path) -> bool:
    """Whether the path is the folder or in it, links resolved."""
    return path.resolve().is_relative_to(folder.resolve())


def report(args: argparse.Namespace, counts: dict[str, int], class_names: dict[str, str]) -> None:
    """Print the number of images in each folder, and the next command."""
    from efficientad.preparation.staging import MANIFEST_FILE
    from efficientad.system.tables import format_table

    rows = [
        [printable(folder), str(count), class_names.get(folder.removeprefix("test/"), "")]
        for folder, count in counts.items()
    ]
    table = format_table(["Directory", "Count", "Category"], rows, "lrl")
    print(f"\n{table}\n\nWrote {args.output_dir}; {MANIFEST_FILE} there lists the source of each image")
    if args.preview:
        print(f"The annotations are drawn in {args.preview}")
    path = shlex.quote(str(args.output_dir))
    print(f"Train with: python train.py --dataset custom --custom_dataset_path {path}")


if __name__ == "__main__":
    run_command(main, get_parser())
