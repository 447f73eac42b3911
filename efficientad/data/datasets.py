"""The four data set layouts, and the split of the good images into training and validation.

custom      PATH/train/good, PATH/test/<class>, optionally PATH/validation/good
mvtec_ad    PATH/<category>/train/good, .../test/<class>
mvtec_loco  PATH/<category>/train/good, .../validation/good, .../test/<class>
visa        PATH/<category>/train/good, .../test/<class> (VisA's one-class layout), or VisA as it is downloaded

The folder of good images may have another name that says so; see labels.py.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from efficientad.data import visa
from efficientad.data.class_folders import class_folders, find_good_folder, has_images, refuse_classes
from efficientad.data.copies import group_copies
from efficientad.data.folders import describe_others, find_images
from efficientad.data.labels import GOOD
from efficientad.system.dataset_arguments import path_argument
from efficientad.system.errors import UserError, count_of, require_folder

ALL_CATEGORIES = "all"  # instead of a category's name: every category in turn
VALIDATION_SHARE = 0.1  # of the training images, in a set without a validation folder
_LIKE_VALIDATION = ("validation", "valid", "val")  # folders that might be meant as validation
COPIES_SHARE = 0.1  # of the good images; with more copies than that the user is told


@dataclass(frozen=True)
class Dataset:
    """A data set: its layout and the folder that holds train and test."""

    name: str  # "custom", or layout and category as in "mvtec_ad/bottle"; also its folder below an output
    root: Path
    split_file: Path | None = None  # of VisA as it is downloaded; its images are not in folders train and test

    @property
    def test_folder(self) -> Path:
        """The folder that the test images are in."""
        return self.root / (visa.IMAGES if self.split_file else "test")


@dataclass(frozen=True)
class Sample:
    """A test image and its class, which is that of the folder it is in."""

    path: Path
    class_name: str  # GOOD, or a kind of defect
    image_name: str  # the path below the class folder, with "/", as tables and CSV files show it
    mask: Path | None = None  # where the data set names it; else ground_truth may hold one

    @property
    def is_anomalous(self) -> bool:
        return self.class_name != GOOD


@dataclass(frozen=True)
class FoundSamples:
    """The test images, ordered by class and name, and what the user should know about them."""

    samples: list[Sample]
    notes: list[str]


@dataclass(frozen=True)
class GoodImages:
    """The good images of a data set, before any are held out."""

    folder: Path  # of those to train on, for messages
    train: list[Path]
    validation: list[Path] | None  # None: there is no validation folder
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TrainingSplit:
    """Good images: those to train on, and the held-out ones for map quantiles and calibration."""

    train: list[Path]
    validation: list[Path]
    notes: list[str] = field(default_factory=list)  # what the user should know about them
    is_given: bool = False  # by a validation folder; otherwise random


def open_dataset(layout: str, path: Path, subdataset: str) -> Dataset:
    """Find the data set of one layout below `path`.

    Args:
        layout: mvtec_ad, mvtec_loco, visa or custom.
        subdataset: the category; a custom set has none and ignores it.

    Raises:
        UserError: the folder or the category is missing; the message lists the existing categories. Or it is VisA
            as it is downloaded and cannot be read directly; the message has the command that prepares it.
    """
    flag = f"--{path_argument(layout)}"
    require_folder(path, f"give the data set's folder with {flag}, or choose another --dataset")
    if layout == "custom":
        _refuse_original(path)
        return Dataset(layout, path)
    root = path / subdataset
    if not root.is_dir():
        categories = _categories(path)
        hint = f"choose from {', '.join(categories)}" if categories else f"and no other; check {flag}"
        raise UserError(f"{path} has no category {subdataset!r} (--subdataset), {hint}")
    split_file = path / visa.SPLIT_FILE
    if layout == "visa" and visa.is_original(root) and split_file.is_file():
        return Dataset(f"{layout}/{subdataset}", root, split_file)
    _refuse_original(root)
    return Dataset(f"{layout}/{subdataset}", root)


def _refuse_original(category: Path) -> None:
    if not visa.is_original(category):
        return
    top = category.parent
    if (top / visa.SPLIT_FILE).is_file():
        advice = f"give --dataset visa --visa_path {shlex.quote(str(top))} --subdataset {category.name}"
    else:
        advice = f"without {top / visa.SPLIT_FILE} prepare it with: {visa.describe_preparing(category)}"
    raise UserError(f"{category} is VisA as it is downloaded; {advice}")


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
    return sorted(
        folder.name for folder in path.iterdir() if (folder / "train").is_dir() or visa.is_original(folder)
    )


def find_training_images(dataset: Dataset, seed: int, leave_out: Collection[str] = ()) -> TrainingSplit:
    """The good training images, split for validation by the data set itself or else by `seed`.

    Args:
        leave_out: paths of images to ignore.

    Raises:
        UserError: see list_good_images; or fewer than two images, or copies of one image only.
    """
    found = list_good_images(dataset)
    images = [path for path in found.train if str(path) not in leave_out]
    readable = "readable " if leave_out else ""
    if found.validation is not None:
        validation = [path for path in found.validation if str(path) not in leave_out]
        if not images or not validation:
            empty = dataset.root / "validation" / GOOD if images else found.folder
            raise UserError(
                f"{empty} holds no {readable}images; a set with a validation folder needs good images in both"
            )
        everything = [*images, *validation]
        about_copies = _describe_copies(everything, group_copies(everything), found.folder)
        return TrainingSplit(images, validation, [*found.notes, *about_copies], is_given=True)
    if len(images) < 2:
        count = f"only one {readable}image" if images else f"no {readable}images"
        raise UserError(
            f"{found.folder} holds {count}; training needs at least two good images, preferably hundreds"
        )
    groups = group_copies(images)
    about_copies = _describe_copies(images, groups, found.folder)
    split = split_validation(images, seed, groups)
    return TrainingSplit(split.train, split.validation, [*found.notes, *about_copies])


def _describe_copies(images: Sequence[Path], groups: Sequence[Sequence[int]], folder: Path) -> list[str]:
    """A line for the user if there are many copies; an error if there is nothing else."""
    if len(groups) == 1:
        raise UserError(
            f"the {len(images)} images in {folder} are copies of one image; training needs at least two different "
            "good images, preferably hundreds"
        )
    copies = len(images) - len(groups)
    if copies <= COPIES_SHARE * len(images):
        return []
    first, second = next(group for group in groups if len(group) > 1)[:2]
    return [
        f"{copies} of the {len(images)} good images {'is a copy' if copies == 1 else 'are copies'} of others, for "
        f"example {images[second]} of {images[first]}; there is no more to learn than from the other {len(groups)}"
    ]


def split_validation(images: Sequence[Path], seed: int, groups: Sequence[Sequence[int]] = ()) -> TrainingSplit:
    """Hold out 10 % (at least one) at random; depends only on the order of `images` and the seed.

    Args:
        groups: indices of images that are copies of each other, which stay together; not all in one group. Fewer
            images are held out where no group fits, and more where all groups are larger than the tenth.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    together = {index: group for group in groups for index in group}
    wanted = max(1, round(VALIDATION_SHARE * len(images)))
    held_out: set[int] = set()
    for index in order:
        group = together.get(index, (index,))
        if len(held_out) + len(group) <= wanted:
            held_out.update(group)
    if not held_out:
        held_out.update(min((together[index] for index in order), key=len))
    return TrainingSplit(
        train=[image for index, image in enumerate(images) if index not in held_out],
        validation=[image for index, image in enumerate(images) if index in held_out],
    )


def list_good_images(dataset: Dataset) -> GoodImages:
    """All good images to train on and to hold out, with notes on what else is there.

    Raises:
        UserError: no train folder, other images than good ones in it, or a damaged split file.
    """
    if dataset.split_file:
        images = visa.read_split(dataset.split_file, dataset.root.name)
        good = sorted(image.path for image in images if image.is_training and image.is_good)
        return GoodImages(dataset.root / visa.IMAGES, good, None, visa.describe_left_out(images, dataset.root))
    others: list[Path] = []
    folder, notes = _training_folder(dataset)
    train, validation = find_images(folder, others), None
    validation_folder = dataset.root / "validation"
    if validation_folder.is_dir():
        good, about = find_good_folder(validation_folder)
        notes += about
        validation = find_images(good, others) if good else []
        unused = len(find_images(validation_folder)) - len(validation)
        if validation and unused:
            notes.append(f"{count_of(unused, 'image')} in {validation_folder} outside {good.name} left out")
    notes += [
        f"{inside} is not used; images to hold out belong into {validation_folder / GOOD}"
        for inside in class_folders(dataset.root)
        if inside.name.casefold() in _LIKE_VALIDATION and inside != validation_folder and folder != dataset.root
    ]
    return GoodImages(folder, train, validation, [*notes, *describe_others(others)])


def _training_folder(dataset: Dataset) -> tuple[Path, list[str]]:
    """The folder of the good images, and notes for the user."""
    train = dataset.root / "train"
    if not train.is_dir():
        if dataset.name != "custom" or not has_images(dataset.root):
            raise UserError(f"{dataset.root} has no train folder; put the good images into {train / GOOD}")
        refuse_classes(dataset.root, None)  # a plain folder of good images
        return dataset.root, []
    good, notes = find_good_folder(train)
    refuse_classes(train, good)
    if not good:
        return train, []
    if has_images(train):
        raise UserError(f"{train} holds images beside the folder {good.name}; move them into {good}")
    return good, notes


def find_test_samples(dataset: Dataset) -> FoundSamples:
    """Every test image, ordered by class and name, with notes on what else is there.

    Raises:
        UserError: no test folder, no images in it, images that are in no class folder, several folders of good
            images, or a damaged split file.
    """
    found = _find_split_samples(dataset) if dataset.split_file else _find_folder_samples(dataset)
    if all(sample.is_anomalous for sample in found.samples):
        found.notes.append(
            f"{dataset.test_folder} holds no good images, so AUROC and false-positive rate are undefined"
        )
    return found


def _find_folder_samples(dataset: Dataset) -> FoundSamples:
    test = dataset.test_folder
    layout = f"put test images into {test / GOOD} and one folder per defect class beside it"
    if not test.is_dir():
        raise UserError(f"{dataset.root} has no test folder; {layout}")
    if has_images(test):
        raise UserError(f"{test} holds images outside class folders; {layout}")
    others = [entry for entry in sorted(test.iterdir()) if entry.is_file() and not entry.name.startswith(".")]
    good, notes = find_good_folder(test)
    classes = [(GOOD if folder == good else folder.name, folder) for folder in class_folders(test)]
    samples = []
    for name, folder in sorted(classes):
        images = find_images(folder, others)
        samples += [Sample(path, name, path.relative_to(folder).as_posix()) for path in images]
        if not images:
            notes.append(f"{folder} holds no images")
    if not samples:
        raise UserError(f"{test} holds no images; {layout}")
    return FoundSamples(samples, [*notes, *describe_others(others)])


def _find_split_samples(dataset: Dataset) -> FoundSamples:
    """The test images of VisA as it is downloaded, in the classes GOOD and "anomaly"."""
    images = visa.read_split(dataset.split_file, dataset.root.name)
    samples = []
    for name, good in (("anomaly", False), (GOOD, True)):
        test = [image for image in images if image.is_good == good and not image.is_training]
        top = os.path.commonpath([image.path.parent for image in test]) if test else ""
        made = [Sample(image.path, name, image.path.relative_to(top).as_posix(), image.mask) for image in test]
        samples += sorted(made, key=lambda sample: sample.image_name)
    if not samples:
        raise UserError(f"{dataset.split_file} lists no test images of {dataset.root.name}")
    return FoundSamples(samples, visa.describe_left_out(images, dataset.root))
