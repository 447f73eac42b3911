"""From source images to a data set: plans where each goes, then writes it. Imports no torch.

train/good  test/good  test/<defect class>  ground_truth/<defect class>/<image>_mask.png
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from efficientad.data.images import UnreadableImageError, check_image, raise_if_unreadable, read_bytes
from efficientad.preparation.mask_files import read_mask_file
from efficientad.preparation.orientation import Frame, ImageHeader, read_header, turn_upright
from efficientad.preparation.shapes import draw_mask, has_shape
from efficientad.preparation.sources import SourceImage
from efficientad.preparation.staging import COUNTS_FILE, ManifestRow, mask_name, write_manifest
from efficientad.system.errors import UserError, list_some
from efficientad.system.files import write_csv
from efficientad.system.parallel import parallel_map
from efficientad.system.progress_bars import progress_bar

TRAIN_GOOD, TEST_GOOD = "train/good", "test/good"


@dataclass(frozen=True)
class FileFacts:
    """Facts about a source file, from one look at it."""

    sha256: str
    header: ImageHeader


@dataclass(frozen=True)
class Placement:
    """A source image and every place it goes to, below the output folder."""

    source: SourceImage
    facts: FileFacts
    destinations: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Everything that will be written, and notes for the user."""

    placements: list[Placement]
    notes: list[str]

    def counts(self) -> dict[str, int]:
        """Images in each folder, train/good and test/good first."""
        counts = Counter(
            PurePosixPath(name).parent.as_posix() for item in self.placements for name in item.destinations
        )
        first = {folder: counts.pop(folder, 0) for folder in (TRAIN_GOOD, TEST_GOOD)}
        return first | {folder: counts[folder] for folder in sorted(counts, key=_natural_order)}


def look_at_files(
    sources: Sequence[SourceImage],
    workers: int,
    on_unreadable: Callable[[UnreadableImageError], None] | None = None,
) -> tuple[list[SourceImage], list[FileFacts]]:
    """Read every source once for its hash and header, and find cheaply detected damage.

    Args:
        on_unreadable: called for each unreadable image, which is left out; None: they are an error.

    Returns:
        The readable sources and the facts of each.

    Raises:
        UserError: files cannot be read or are no images, and on_unreadable is None; names all of them.
    """

    def look(source: SourceImage) -> FileFacts | UnreadableImageError:
        name = str(source.path)
        try:
            data = read_bytes(source.path)
            check_image(io.BytesIO(data), name)
            return FileFacts(hashlib.sha256(data).hexdigest(), read_header(data, name))
        except UnreadableImageError as error:
            return error

    looks = progress_bar(parallel_map(look, sources, workers), desc="Reading", total=len(sources), unit="image")
    unreadable: list[UnreadableImageError] = []
    readable, facts = [], []
    for source, found in zip(sources, looks, strict=True):
        if isinstance(found, UnreadableImageError):
            (on_unreadable or unreadable.append)(found)
        else:
            readable.append(source)
            facts.append(found)
    raise_if_unreadable(unreadable)
    return readable, facts


def make_plan(sources: Sequence[SourceImage], facts: Sequence[FileFacts], train_ratio: float, seed: int) -> Plan:
    """Split the good images, and give every image its place and a unique name there.

    Byte-identical good images stay on one side of the split. A good image that is byte-identical to a
    defective one is a contradiction: it is left out.

    Args:
        sources: good and defective images; their order and the seed alone decide the split.
        train_ratio: share of the good images for train/good, in (0, 1].

    Raises:
        UserError: no good image is left.
    """
    notes: list[str] = []
    good = _usable_good(sources, facts, notes)
    training = _choose_training([facts[index].sha256 for index in good], train_ratio, seed)
    members: dict[str, list[int]] = defaultdict(list)
    for index in good:
        members[TRAIN_GOOD if facts[index].sha256 in training else TEST_GOOD].append(index)
    for index, source in enumerate(sources):
        for class_name in source.classes:
            members[f"test/{class_name}"].append(index)
    destinations: dict[int, list[str]] = defaultdict(list)
    for folder, inside in members.items():
        names = distinct_names([PurePosixPath(sources[index].name).name for index in inside])
        for index, name in zip(inside, names, strict=True):
            destinations[index].append(f"{folder}/{name}")
    placements = [Placement(sources[index], facts[index], tuple(names)) for index, names in destinations.items()]
    return Plan(placements, notes)


def _usable_good(sources: Sequence[SourceImage], facts: Sequence[FileFacts], notes: list[str]) -> list[int]:
    """Indices of the good images to use; adds contradictions and copies to `notes`."""
    defective = {fact.sha256: source.path for source, fact in zip(sources, facts, strict=True) if source.classes}
    good: dict[str, int] = {}  # by real path: a file may be annotated as good and be among the good images, too
    contradictions = []
    for index, source in enumerate(sources):
        if source.classes:
            continue
        if facts[index].sha256 in defective:
            contradictions.append(f"{source.path} is {defective[facts[index].sha256]}")
        else:
            good.setdefault(os.path.realpath(source.path), index)
    if contradictions:
        notes.append(
            f"Good images that are byte-identical to defective ones: {len(contradictions)}; they count as "
            f"defective only:{list_some(contradictions)}"
        )
    if not good:
        raise UserError("there are no good images, which training needs; give their folder with --unlabeled_dir")
    copies = len(good) - len({facts[index].sha256 for index in good.values()})
    if copies:
        are = "image is a byte-identical copy" if copies == 1 else "images are byte-identical copies"
        notes.append(f"{copies} good {are}; copies stay on one side of the split")
    return list(good.values())


def _choose_training(digests: Sequence[str], train_ratio: float, seed: int) -> set[str]:
    """Digests of the images for train/good: as close to the ratio as copies allow, at least one."""
    copies = Counter(digests)
    order = list(copies)  # by first appearance
    random.Random(seed).shuffle(order)
    target = round(train_ratio * len(digests))
    if train_ratio < 1:
        target = min(target, len(digests) - 1)  # one to test with
    chosen: set[str] = set()
    taken = 0
    for digest in order:
        if taken + copies[digest] <= target or not chosen:
            chosen.add(digest)
            taken += copies[digest]
    return chosen


def distinct_names(names: Sequence[str]) -> list[str]:
    """The names, made distinct for one folder: a.jpg, a_2.jpg.

    Stems differ too, in any letter case, since masks and anomaly maps are named after them. Unique names do not
    change.
    """
    taken = {PurePosixPath(name).stem.casefold() for name in names}
    next_number: dict[str, int] = {}  # by stem
    result = []
    for name in names:
        path = PurePosixPath(name)
        stem, key = path.stem, path.stem.casefold()
        if key in next_number:
            while f"{key}_{next_number[key]}" in taken:
                next_number[key] += 1
            stem = f"{stem}_{next_number[key]}"
            taken.add(stem.casefold())
        next_number.setdefault(key, 2)
        result.append(stem + path.suffix)
    return result


def write_plan(plan: Plan, folder: Path, link: bool, workers: int) -> list[Path]:
    """Fill the empty `folder` with the images, masks, manifest.csv and image_counts.csv.

    Args:
        link: hard-link the images instead of copying them.

    Returns:
        The defective images whose mask file, boxes or segmentations mark nothing; they get no mask.

    Raises:
        UserError: hard links are not possible in that folder, or a mask file is damaged.
    """
    for parent in {PurePosixPath(name).parent for item in plan.placements for name in item.destinations}:
        (folder / parent).mkdir(parents=True, exist_ok=True)

    def write(item: Placement) -> bool:
        """False if the image should have a mask and has none."""
        for name in item.destinations:
            (_link if link else _copy)(item.source.path, folder / name)
        if not (item.source.defects or item.source.mask):
            return True
        mask = _encode_mask(item.source, item.facts.header)
        for path in (folder / mask_name(name) for name in item.destinations if mask):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(mask)
        return bool(mask or not (item.source.mask or any(map(has_shape, item.source.defects))))

    done = parallel_map(write, plan.placements, workers)
    bar = progress_bar(done, desc="Linking" if link else "Copying", total=len(plan.placements), unit="image")
    without = [item.source.path for item, is_complete in zip(plan.placements, bar, strict=True) if not is_complete]
    rows = [
        ManifestRow(item.source.path.absolute(), name, item.facts.sha256)
        for item in plan.placements
        for name in item.destinations
    ]
    write_manifest(folder, rows)
    write_csv(folder / COUNTS_FILE, ["directory", "count"], plan.counts().items())
    return without


def describe_unmarked(images: Sequence[Path]) -> list[str]:
    """A line about the defective images that write_plan gave no mask, if there are any."""
    if not images:
        return []
    what = "image gets" if len(images) == 1 else "images get"
    names = list_some([*map(str, images)])
    return [f"{len(images)} defective {what} no mask, since nothing is marked, and no pixel metrics:{names}"]


def _copy(source: Path, destination: Path) -> None:
    try:
        shutil.copyfile(source, destination)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # Python names the source
            raise OSError(error.errno, error.strerror, str(destination)) from error
        raise


def _link(source: Path, destination: Path) -> None:
    try:
        os.link(os.path.realpath(source), destination)
    except OSError as error:
        raise UserError(f"cannot hard-link {source} ({error.strerror}); leave out --link to copy") from error


def _encode_mask(source: SourceImage, header: ImageHeader) -> bytes | None:
    """The PNG of the source's defects, at the size of its upright image; None if nothing is marked."""
    if source.mask:
        mask = Image.fromarray(read_mask_file(source.mask, source.path, header))
    else:
        frame = source.frame or Frame(header.upright_size, is_stored=False)
        mask = Image.fromarray(draw_mask(source.defects, *frame.size))
        if frame.is_stored:
            mask = turn_upright(mask, header.orientation)
        if mask.size != header.upright_size:  # annotated on a copy of another size
            mask = mask.resize(header.upright_size, Image.Resampling.NEAREST)
    if not mask.getbbox():
        return None
    buffer = io.BytesIO()
    mask.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _natural_order(folder: str) -> list:
    """defect_type_2 before defect_type_10."""
    head, _, number = folder.rpartition("_")
    return [head, int(number)] if number.isdecimal() else [folder, -1]
