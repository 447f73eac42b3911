"""The four data set layouts, and the split of the good images into training and validation.

custom      PATH/train/good, PATH/test/<class>, optionally PATH/validation/good
mvtec_ad    PATH/<category>/train/good, .../test/<class>
mvtec_loco  PATH/<category>/train/good, .../validation/good, .../test/<class>
visa        PATH/<category>/train/good, .../test/<class> (VisA's one-class layout)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from efficientad.data.folders import find_images, is_data_folder, is_image_name
from efficientad.system.arguments import path_argument
from efficientad.system.errors import UserError, require_folder

GOOD = "good"  # the only class that is not anomalous
ALL_CATEGORIES = "all"  # instead of a category's name: every category in turn
VALIDATION_SHARE = 0.1  # of the training images, in a set without a validation folder


@dataclass(frozen=True)
class Dataset:
    """A data set: its layout and the folder that holds train and test."""

    name: str  # "custom", or layout and category as in "mvtec_ad/bottle"; also its folder below an output
    root: Path


@dataclass(frozen=True)
class Sample:
    """A test image and the class whose folder it is in."""

    path: Path
    class_name: str
    image_name: str  # the path below the class folder, with "/", as tables and CSV files show it

    @property
    def is_anomalous(self) -> bool:
        return self.class_name != GOOD


@dataclass(frozen=True)
class TrainingSplit:
    """Good images: those to train on, and the held-out ones for map quantiles and calibration."""

    train: list[Path]
    validation: list[Path]


def open_dataset(layout: str, path: Path, subdataset: str) -> Dataset:
    """Find the data set of one layout below `path`.

    Args:
        layout: mvtec_ad, mvtec_loco, visa or custom.
        subdataset: the category; a custom set has none and ignores it.

    Raises:
        UserError: the folder or the category is missing; the message lists the existing categories.
    """
    flag = f"--{path_argument(layout)}"
    require_folder(path, f"give the data set's folder with {flag}, or choose another --dataset")
    if layout == "custom":
        return Dataset(layout, path)
    root = path / subdataset
    if not root.is_dir():
        categories = _categories(path)
        hint = f"choose from {', '.join(categories)}" if categories else f"and no other; check {flag}"
        raise UserError(f"{path} has no category {subdataset!r} (--subdataset), {hint}")
    return Dataset(f"{layout}/{subdataset}", root)


def find_categories(layout: str, path: Path) -> list[str]:
    """All categories below `path`, in alphabetical order; for layouts that have them.

    Raises:
        UserError: the folder is missing or has none.
    """
    flag = f"--{path_argument(layout)}"
    require_folder(path, f"give the data set's folder with {flag}, or choose another --dataset")
    categories = _categories(path)
    if not categories:
        raise UserError(f"{path} has no category, that is, no folder with a train folder in it; check {flag}")
    return categories


def _categories(path: Path) -> list[str]:
    return sorted(folder.name for folder in path.iterdir() if (folder / "train").is_dir())


def find_training_images(dataset: Dataset, seed: int, leave_out: Collection[str] = ()) -> TrainingSplit:
    """The good training images, split for validation by the data set itself or else by `seed`.

    Args:
        leave_out: paths of images to ignore.

    Raises:
        UserError: no train folder, other images than good ones in it, or fewer than two of them.
    """
    folder = _training_folder(dataset)
    images = _find_images_but(folder, leave_out)
    readable = "readable " if leave_out else ""
    if (dataset.root / "validation").is_dir():
        own_validation = dataset.root / "validation" / GOOD
        validation = _find_images_but(own_validation, leave_out) if own_validation.is_dir() else []
        if not images or not validation:
            empty = own_validation if images else folder
            raise UserError(
                f"{empty} holds no {readable}images; a set with a validation folder needs good images in both"
            )
        return TrainingSplit(images, validation)
    if len(images) < 2:
        count = f"only one {readable}image" if images else f"no {readable}images"
        raise UserError(f"{folder} holds {count}; training needs at least two good images, preferably hundreds")
    return split_validation(images, seed)


def _find_images_but(folder: Path, leave_out: Collection[str]) -> list[Path]:
    return [path for path in find_images(folder) if str(path) not in leave_out]


def split_validation(images: Sequence[Path], seed: int) -> TrainingSplit:
    """Hold out 10 % (at least one) at random; depends only on the order of `images` and the seed."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = set(order[: max(1, round(VALIDATION_SHARE * len(images)))])
    return TrainingSplit(
        train=[image for index, image in enumerate(images) if index not in held_out],
        validation=[image for index, image in enumerate(images) if index in held_out],
    )


def _training_folder(dataset: Dataset) -> Path:
    train = dataset.root / "train"
    if not train.is_dir():
        if dataset.name != "custom" or not _has_images(dataset.root):
            raise UserError(f"{dataset.root} has no train folder; put the good images into {train / GOOD}")
        _refuse_classes(dataset.root, allowed=())  # a plain folder of good images
        return dataset.root
    _refuse_classes(train, allowed=(GOOD,))
    if not (train / GOOD).is_dir():
        return train
    if _has_images(train):
        raise UserError(f"{train} holds images beside the folder {GOOD}; move them into {train / GOOD}")
    return train / GOOD


def _refuse_classes(folder: Path, allowed: tuple[str, ...]) -> None:
    others = [entry.name for entry in _class_folders(folder) if entry.name not in allowed and find_images(entry)]
    if others:
        raise UserError(
            f"{folder} also holds images in {', '.join(others)}; training takes good images only, "
            f"from one folder: put them into train/{GOOD} and the others into test/<class>"
        )


def find_test_samples(dataset: Dataset) -> list[Sample]:
    """Every test image, ordered by class and name.

    Raises:
        UserError: no test folder, no images in it, or images that are in no class folder.
    """
    test = dataset.root / "test"
    layout = f"put test images into {test / GOOD} and one folder per defect class beside it"
    if not test.is_dir():
        raise UserError(f"{dataset.root} has no test folder; {layout}")
    if _has_images(test):
        raise UserError(f"{test} holds images outside class folders; {layout}")
    samples = [
        Sample(path, folder.name, path.relative_to(folder).as_posix())
        for folder in _test_folders(test)
        for path in find_images(folder)
    ]
    if not samples:
        raise UserError(f"{test} holds no images; {layout}")
    return samples


def _test_folders(test: Path) -> list[Path]:
    folders = _class_folders(test)
    for folder in folders:
        if folder.name != GOOD and folder.name.casefold() == GOOD:
            raise UserError(f"{folder} would count as a class of defects; rename it to {GOOD}")
    return folders


def _class_folders(parent: Path) -> list[Path]:
    folders = [entry for entry in parent.iterdir() if entry.is_dir() and is_data_folder(entry.name)]
    return sorted(folders, key=lambda folder: folder.name)


def _has_images(folder: Path) -> bool:
    return any(is_image_name(entry.name) and entry.is_file() for entry in folder.iterdir())
