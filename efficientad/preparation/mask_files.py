"""Masks that come with a folder of defective images: whose they are, and what they mark. Imports no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from efficientad.data.folders import find_images
from efficientad.data.formats import open_image
from efficientad.data.images import UnreadableImageError, check_file, raise_if_unreadable
from efficientad.data.mask_files import read_mask_values
from efficientad.preparation.orientation import ImageHeader, turn_upright
from efficientad.preparation.sources import SourceImage
from efficientad.system.errors import UserError, count_of, list_some, require_folder

_ENDINGS = ("", "_mask", "_label", "_gt")  # of a mask's name, behind the image's name with or without its suffix


def add_mask_files(folder: Path, sources: Sequence[SourceImage]) -> tuple[list[SourceImage], list[str]]:
    """The sources, those with a mask in the folder with its path, and notes for the user.

    The mask of a/b.jpg is a/b.png, a/b_mask.png, a/b_label.png or a/b.jpg.png below the folder, of any image type.

    Args:
        sources: defective images; their names are paths below their folder.

    Raises:
        UserError: no such folder, no mask in it belongs to an image, or an image has several masks or shares one.
    """
    require_folder(folder, "give the folder of masks with --mask_dir")
    by_name: dict[str, list[Path]] = defaultdict(list)
    masks = find_images(folder)
    for path in masks:
        by_name[path.relative_to(folder).with_suffix("").as_posix()].append(path)
    found: dict[int, list[Path]] = {}
    users: dict[Path, list[Path]] = defaultdict(list)
    for index, source in enumerate(sources):
        name = PurePosixPath(source.name)
        names = {f"{start}{ending}" for start in (name, name.with_suffix("")) for ending in _ENDINGS}
        found[index] = sorted(path for name in names for path in by_name[name])
        for path in found[index]:
            users[path].append(source.path)
    if not users:
        raise UserError(
            f"none of the {count_of(len(masks), 'image')} in {folder} is the mask of a defective image; that of "
            f"{sources[0].name} would be {PurePosixPath(sources[0].name).with_suffix('')}_mask.png there"
        )
    doubtful = [
        *(f"{sources[index].path}: {paths[0]}, {paths[1]}" for index, paths in found.items() if len(paths) > 1),
        *(f"{path}: {images[0]}, {images[1]}" for path, images in users.items() if len(images) > 1),
    ]
    if doubtful:
        raise UserError(f"an image has one mask and a mask one image; correct or remove:{list_some(doubtful)}")
    matched = [replace(source, mask=(found[index] or [None])[0]) for index, source in enumerate(sources)]
    return matched, _describe(matched, [path for path in masks if path not in users])


def _describe(sources: Sequence[SourceImage], strays: Sequence[Path]) -> list[str]:
    bare = [str(source.path) for source in sources if source.mask is None]
    notes = [f"{len(sources) - len(bare)} of {count_of(len(sources), 'defective image')} have a mask"]
    if bare:
        notes[0] += f"; without one, and left out of pixel metrics: {len(bare)}{list_some(bare)}"
    if strays:
        belong = "mask belongs to no image and is" if len(strays) == 1 else "masks belong to no image and are"
        notes.append(f"{len(strays)} {belong} not used:{list_some([*map(str, strays)])}")
    return notes


def check_mask_files(sources: Sequence[SourceImage], headers: Sequence[ImageHeader]) -> None:
    """Check the masks before anything is written: their headers and their sizes.

    Raises:
        UserError: masks are damaged or not as large as their images.
    """
    unreadable, problems = [], []
    for source, header in zip(sources, headers, strict=True):
        if source.mask is None:
            continue
        try:
            check_file(source.mask)
            with open_image(source.mask, str(source.mask)) as opened:
                size = opened.size
        except UnreadableImageError as error:
            unreadable.append(error)
            continue
        if size not in (header.upright_size, header.stored_size):
            problems.append(_size_problem(source.mask, size, source.path, header))
    raise_if_unreadable(unreadable)
    if problems:
        count = f"{len(problems)} masks do" if len(problems) > 1 else "1 mask does"
        raise UserError(f"{count} not have the size of its image; correct or remove:{list_some(problems)}")


def read_mask_file(path: Path, image: Path, header: ImageHeader) -> np.ndarray:
    """The mask of an image, H x W of its upright size, uint8: 255 where the file is not 0.

    See read_mask_values. A mask of the size of the stored image is turned with it.

    Raises:
        UserError: it cannot be read or has another size.
    """
    values, _ = read_mask_values(path)
    if values.shape[::-1] not in (header.upright_size, header.stored_size):
        raise UserError(f"1 mask does not fit: {_size_problem(path, values.shape[::-1], image, header)}")
    mask = np.where(values != 0, np.uint8(255), np.uint8(0))
    if mask.shape != header.upright_size[::-1]:
        mask = np.asarray(turn_upright(Image.fromarray(mask), header.orientation))
    return mask


def _size_problem(path: Path, size: tuple[int, int], image: Path, header: ImageHeader) -> str:
    width, height = header.upright_size
    return f"{path} is {size[0]} x {size[1]}, its image {image} is {width} x {height}"
