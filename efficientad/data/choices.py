"""Which data sets a command is asked for: one, every category of a data set, or several custom sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from efficientad.data.datasets import ALL_CATEGORIES, Dataset, find_categories, open_dataset
from efficientad.system.errors import UserError

CUSTOM_SETS = "custom_sets"  # below an output: a folder for each of several custom sets


@dataclass(frozen=True)
class Choice:
    """One data set, not opened yet."""

    layout: str
    path: Path
    category: str  # not used of a custom set
    name: str | None = None  # of its folder below an output; None: what open_dataset calls it

    def open(self) -> Dataset:
        """The data set; see open_dataset for the errors."""
        dataset = open_dataset(self.layout, self.path, self.category)
        return replace(dataset, name=self.name) if self.name else dataset


def choose_several(layout: str, paths: Sequence[Path], category: str) -> dict[str, Choice]:
    """The data sets by the names that tables give them; empty if it is only one, without such a name.

    Categories are called what they are called, and custom sets like their folders.

    Args:
        paths: one, or several of custom sets.
        category: ALL_CATEGORIES for all of them.

    Raises:
        UserError: see find_categories; or two custom sets have the same name.
    """
    if layout != "custom":
        names = find_categories(layout, paths[0]) if category == ALL_CATEGORIES else []
        return {name: Choice(layout, paths[0], name) for name in names}
    if len(paths) == 1:
        return {}
    chosen: dict[str, Choice] = {}
    for path in paths:
        name = os.path.basename(os.path.abspath(path))  # of a link that of the link
        same = [other.path for known, other in chosen.items() if known.casefold() == name.casefold()]
        if same and os.path.realpath(same[0]) == os.path.realpath(path):
            raise UserError(f"--custom_dataset_path: {same[0]} and {path} are the same folder; name it once")
        if same:
            raise UserError(
                f"--custom_dataset_path: {same[0]} and {path} have the same name, {name}, which is that of the "
                "folder of their results; rename one of them"
            )
        chosen[name] = Choice(layout, path, category, f"{CUSTOM_SETS}/{name}")
    return chosen
