"""Finds the files that a COCO set names, also under another spelling. Imports no torch."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from efficientad.data.folders import find_images, is_image_name, leave_out_below
from efficientad.data.formats import DESCRIPTION
from efficientad.preparation.coco import CocoImage, CocoSet
from efficientad.system.errors import UserError, count_of, list_some, printable


@dataclass(frozen=True)
class Located:
    """An image entry with its file."""

    name: str  # the path below the folder, with "/"
    path: Path
    image: CocoImage


@dataclass
class Search:
    """The entries of a set, by what was found."""

    located: list[Located] = field(default_factory=list)
    missing: list[CocoImage] = field(default_factory=list)
    outside: list[CocoImage] = field(default_factory=list)


def locate_images(
    coco: CocoSet, folder: Path, good_folder: Path | None, skip_missing: bool, match_names: bool, notes: list[str]
) -> tuple[list[Located], list[Path]]:
    """Every entry whose file is in the folder; and the paths of the missing ones.

    Args:
        good_folder: if it is inside the folder, its files are good parts, which an equal name alone does not mean.
        skip_missing: leave out missing images.
        match_names: take the one file in the folder that has the entry's name in another spelling or place.
        notes: takes notes for the user.

    Raises:
        UserError: files are missing, outside the folder, of an unknown type, or could be several.
    """
    search = _search(coco, folder)
    matches = _Matches(folder, good_folder, search)
    if match_names:
        matches.refuse_doubtful()
    if match_names and matches.found:
        search.located += matches.located
        search.missing = [image for image in search.missing if id(image) not in matches.found]
        search.outside = [image for image in search.outside if id(image) not in matches.found]
        count = _are(matches.examples, "annotated image")
        notes.append(f"{count} taken by --match_names:{list_some(matches.examples)}")
        order = {id(image): number for number, image in enumerate(coco.images)}
        search.located.sort(key=lambda item: order[id(item.image)])
    hint = "" if match_names else matches.offer
    if search.outside:
        names = [repr(image.file_name) for image in search.outside]
        raise UserError(f"{_are(names, 'file_name')} outside {folder}{hint or '; correct it'}:{list_some(names)}")
    missing = [folder / image.file_name for image in search.missing]
    names = [*map(str, missing)]
    if missing and not skip_missing:
        if hint and all(id(image) in matches.found for image in search.missing):
            raise UserError(f"{_are(names, 'annotated image')} missing{hint}")
        raise UserError(
            f"{_are(names, 'annotated image')} missing{hint}; check that --labeled_dir is the folder that the "
            f"file names are relative to, or leave them out with --skip_missing:{list_some(names)}"
        )
    unusual = [str(item.path) for item in search.located if not is_image_name(item.path.name)]
    if unusual:
        raise UserError(
            f"{_are(unusual, 'annotated image')} hidden or of an unknown type; known are "
            f"{DESCRIPTION}:{list_some(unusual)}"
        )
    if missing:
        notes.append(f"{_are(names, 'annotated image')} missing and left out{hint}:{list_some(names)}")
    if not search.located:
        raise UserError(f"{folder} holds none of the annotated images; check --labeled_dir")
    return search.located, missing


def _search(coco: CocoSet, folder: Path) -> Search:
    """Look for each entry under its very name."""
    root = os.path.realpath(folder)
    search = Search()
    for image in coco.images:
        name = image.file_name
        if "\\" in name and not _exists(folder / name):
            name = name.replace("\\", "/")  # annotated on Windows
        path = folder / name
        if _leaves(path, root):
            search.outside.append(image)
        elif not _exists(path):
            search.missing.append(image)
        else:
            search.located.append(Located(name, path, image))
    return search


class _Matches:
    """For entries that are not found under their very name: the file in the folder that is meant.

    A path that is equal but for its spelling precedes a file of the same name elsewhere in the folder. Names are
    only compared: no file outside the folder is ever looked at.
    """

    def __init__(self, folder: Path, good_folder: Path | None, search: Search) -> None:
        self.located: list[Located] = []
        self.found: set[int] = set()  # ids of the entries
        self.examples: list[str] = []
        self._doubtful: list[str] = []  # entries that several files could be
        self._twice: list[str] = []  # files that two entries could be
        wanted = [*search.missing, *search.outside]
        self._wanted = len(wanted)
        if not wanted:
            return
        by_path: dict[str, list[Path]] = defaultdict(list)
        by_name: dict[str, list[Path]] = defaultdict(list)
        images = find_images(folder)
        for path in images:
            by_path[_fold(path.relative_to(folder).as_posix())].append(path)
        for path in _leave_out_good(images, folder, good_folder):
            by_name[_fold(path.name)].append(path)
        owners = {item.path: item.image.file_name for item in search.located}
        for image in wanted:
            paths = _spellings(image.file_name)
            candidates = _union(by_path, paths) or _union(by_name, {path.rpartition("/")[2] for path in paths})
            if len(candidates) > 1:
                self._doubtful.append(f"{printable(image.file_name)}: {', '.join(map(str, candidates[:3]))}")
            if len(candidates) != 1:
                continue
            (path,) = candidates
            if owners.setdefault(path, image.file_name) != image.file_name:
                self._twice.append(f"{path}: {printable(owners[path])}, {printable(image.file_name)}")
                continue
            self.found.add(id(image))
            self.located.append(Located(path.relative_to(folder).as_posix(), path, image))
            self.examples.append(f"{image.file_name} is {path}")

    def refuse_doubtful(self) -> None:
        """Raise a UserError if an entry could be several files, or a file several entries."""
        if self._doubtful:
            raise UserError(
                f"--match_names: {count_of(len(self._doubtful), 'file_name')} could mean several files; correct "
                f"them:{list_some(self._doubtful)}"
            )
        if self._twice:
            raise UserError(
                f"--match_names: {_are(self._twice, 'file')} meant by two entries; correct their file_name:"
                f"{list_some(self._twice)}"
            )

    @property
    def offer(self) -> str:
        """A clause about the flag, if it would find any."""
        if not self.examples:
            return ""
        count = "" if len(self.examples) == self._wanted else f"{len(self.examples)} of them "
        return (
            f", but {count}there under another spelling, for example {printable(self.examples[0])}; --match_names "
            f"takes {'it' if len(self.examples) == 1 else 'them'}"
        )


def _leave_out_good(images: list[Path], folder: Path, good_folder: Path | None) -> list[Path]:
    """The images that are not in the folder of good ones, if that is inside the folder of annotated ones."""
    if good_folder is None:
        return images
    good, top = Path(os.path.realpath(good_folder)), Path(os.path.realpath(folder))
    return leave_out_below(good, images) if good != top and good.is_relative_to(top) else images


def _spellings(name: str) -> set[str]:
    """What a file_name may mean, folded: as it is, without percent signs, and without the query of a URL."""
    plain = name.replace("\\", "/")
    names = {plain, unquote(plain)}
    if "://" in plain:
        names |= {unquote(plain.partition("?")[0].partition("#")[0])}
    return {_fold(spelling).rstrip("/") for spelling in names}


def _union(index: dict[str, list[Path]], names: set[str]) -> list[Path]:
    return sorted({path for name in names for path in index.get(name, [])})


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _leaves(path: Path, root: str) -> bool:
    try:  # the image itself may be a link, as from tools that keep large files elsewhere
        return not Path(os.path.realpath(path.parent)).is_relative_to(root)
    except ValueError:  # not a valid file name
        return False


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or not a valid file name
        return False


def _are(problems: Sequence[str], noun: str) -> str:
    return f"{count_of(len(problems), noun)} {'is' if len(problems) == 1 else 'are'}"
