"""VisA as it is downloaded: images in <category>/Data, and tables in split_csv that say what each is for.

Its own preparation copies the images into train and test folders; this reads the table of the one-class split.
"""

from __future__ import annotations

import csv
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from efficientad.data.folders import describe_others, find_images
from efficientad.data.labels import is_good_name
from efficientad.system.errors import UserError, count_of, list_some

SPLIT_FILE = "split_csv/1cls.csv"
IMAGES = "Data/Images"  # below a category
_MASKS = "Data/Masks"
_COLUMNS = ("object", "split", "label", "image", "mask")
_SPLITS = ("train", "test")


@dataclass(frozen=True)
class SplitImage:
    """An image of the split: what it is used for, whether it is good, and its mask, if it has one."""

    path: Path
    is_training: bool
    is_good: bool
    mask: Path | None


def is_original(category: Path) -> bool:
    """Whether the folder is a category of VisA as it is downloaded, not prepared."""
    return (category / IMAGES).is_dir() and not (category / "train").is_dir()


def describe_preparing(category: Path) -> str:
    """The command that makes a data set of a category without using the split."""
    images, masks, result = category / IMAGES, category / _MASKS / "Anomaly", Path("dataset", category.name)
    words = ["python", "prepare_dataset.py", "--annotations", "none", "--unlabeled_dir", images / "Normal"]
    words += ["--defect_dir", images / "Anomaly", *(["--mask_dir", masks] if masks.is_dir() else [])]
    return shlex.join(map(str, [*words, "--output_dir", result]))


def read_split(split_file: Path, category: str) -> list[SplitImage]:
    """The images of a category in the table of the split, in its order.

    Args:
        split_file: PATH/split_csv/1cls.csv; its paths are relative to PATH.

    Raises:
        UserError: the table is damaged, names files outside the category or files that are not there, names a
            file twice or a mask for a good image, or has no row for the category.
    """
    rows = [row for row in _read_rows(split_file) if row["object"] == category]
    if not rows:
        raise UserError(f"{split_file} lists no image of {category}; download VisA's split_csv again")
    top = split_file.parents[1]
    images = [
        SplitImage(
            _inside(top, f"{category}/{IMAGES}", row["image"], split_file),
            row["split"] == "train",
            is_good_name(row["label"]),
            _inside(top, f"{category}/{_MASKS}", row["mask"], split_file) if row["mask"] else None,
        )
        for row in rows
    ]
    _check_files(images, split_file)
    return images


def describe_left_out(images: Sequence[SplitImage], category: Path) -> list[str]:
    """Lines for the user about images of the category that are not used, if there are any."""
    others: list[Path] = []
    unlisted = set(find_images(category / IMAGES, others)).difference(image.path for image in images)
    defective = sum(image.is_training and not image.is_good for image in images)
    notes = describe_others(others)
    if unlisted:
        count, first = count_of(len(unlisted), "image"), min(unlisted)
        notes.append(f"{count} left out that {SPLIT_FILE} does not list, for example {first}")
    if defective:
        notes.append(f"{count_of(defective, 'defective image')} left out that {SPLIT_FILE} would train on")
    return notes


def _read_rows(split_file: Path) -> Iterator[dict[str, str]]:
    try:
        with split_file.open(newline="", encoding="utf-8-sig") as opened:
            for number, row in enumerate(csv.DictReader(opened), start=2):
                values = {name: (row.get(name) or "").strip() for name in _COLUMNS}
                if values["split"] not in _SPLITS or not (values["object"] and values["label"] and values["image"]):
                    raise UserError(
                        f"{split_file} is damaged: row {number} needs the columns {', '.join(_COLUMNS)}, and as "
                        f"split {' or '.join(_SPLITS)}; download VisA's split_csv again"
                    )
                yield values
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{split_file} is damaged ({error}); download VisA's split_csv again") from None


def _inside(top: Path, folder: str, name: str, split_file: Path) -> Path:
    """The file of this name, which must be in the folder; both are relative to `top`."""
    path = PurePosixPath(name)
    if not path.is_relative_to(folder) or ".." in path.parts or any(mark in name for mark in "\\:\0"):
        raise UserError(f"{split_file} names {name}, which is not inside {folder}; download VisA's split_csv again")
    return top / name


def _check_files(images: list[SplitImage], split_file: Path) -> None:
    paths = [image.path for image in images]
    missing = [path for path in (*paths, *(image.mask for image in images if image.mask)) if not path.is_file()]
    if missing:
        raise UserError(
            f"{count_of(len(missing), 'file')} that {split_file} lists {'is' if len(missing) == 1 else 'are'} not "
            f"there; download VisA again:{list_some(list(map(str, missing)))}"
        )
    listed = Counter([*paths, *(image.mask for image in images if image.mask)])
    twice = [str(path) for path, count in listed.items() if count > 1]
    if twice:
        raise UserError(f"{split_file} lists {count_of(len(twice), 'file')} more than once:{list_some(twice)}")
    odd = [str(image.path) for image in images if image.is_good and image.mask]
    if odd:
        raise UserError(
            f"{split_file} has masks of defects for {count_of(len(odd), 'good image')}; correct it:{list_some(odd)}"
        )
