"""The folders of a data set that are named after classes, and the one among them with the good images."""

from __future__ import annotations

from pathlib import Path

from efficientad.data.folders import find_images, is_data_folder, is_image_name
from efficientad.data.labels import GOOD, is_good_name
from efficientad.system.errors import UserError


def class_folders(parent: Path) -> list[Path]:
    """The folders right below `parent` that hold data, by name."""
    folders = [entry for entry in parent.iterdir() if entry.is_dir() and is_data_folder(entry.name)]
    return sorted(folders, key=lambda folder: folder.name)


def has_images(folder: Path) -> bool:
    """Whether images are directly in the folder."""
    return any(is_image_name(entry.name) and entry.is_file() for entry in folder.iterdir())


def find_good_folder(parent: Path) -> tuple[Path | None, list[str]]:
    """The class folder that holds good images by its name, and a note if that is another name than GOOD.

    Raises:
        UserError: several do. Which of them hold what, only the user knows.
    """
    named = [folder for folder in class_folders(parent) if is_good_name(folder.name)]
    used = [folder for folder in named if find_images(folder)] if len(named) > 1 else named
    if len(used) > 1:
        names = " and ".join(folder.name for folder in used)
        raise UserError(
            f"{parent} has several folders of good images, {names}; put all good ones into {parent / GOOD}"
        )
    good = next(iter([*used, *named]), None)
    return good, [f"{good} is taken as {GOOD}"] if good and good.name != GOOD else []


def refuse_classes(folder: Path, good: Path | None) -> None:
    """Raise a UserError if other class folders than that of the good images hold images."""
    others = [entry.name for entry in class_folders(folder) if entry != good and find_images(entry)]
    if others:
        raise UserError(
            f"{folder} also holds images in {', '.join(others)}; training takes good images only, "
            f"from one folder: put them into train/{GOOD} and the others into test/<class>"
        )
