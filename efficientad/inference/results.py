"""The files of predict: a line of scores.csv for each image, its map, its regions."""

from __future__ import annotations

import csv
import errno
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from efficientad.data.images import UnreadableImageError
from efficientad.inference.maps import write_overlay, write_side_by_side, write_tiff
from efficientad.inference.prediction import Prediction
from efficientad.system.errors import UserError
from efficientad.system.files import (
    FILE_LIST,
    csv_cell,
    file_below,
    fitting_name,
    open_not_followed,
    remove_file,
    require_no_links,
    write_text_atomically,
    written_files,
)
from efficientad.system.runs import LOCK_FILE

SCORES_FILE = "scores.csv"
MAP_FOLDER = "maps"
REPORT_FILE = "report.html"
REGIONS_FILE, REGIONS_FOLDER = "regions.json", "regions"
WRITTEN_BY_WATCH = (SCORES_FILE, MAP_FOLDER, REGIONS_FOLDER)
MAP_SUFFIXES = {"tiff": ".tiff", "jpg": ".jpg", "overlay": ".jpg", "none": None}
COLUMNS = ("path", "score", "threshold", "anomalous", "milliseconds", "bytes", "modified")
_OF_ALL_FILES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # errors that the next file has, too
Signature = tuple[int, int]  # of a file's contents: its length in bytes and when it was modified, in nanoseconds


class UnwrittenError(UnreadableImageError):
    """The files of one image cannot be written; the message is the image's name and the reason."""


@dataclass(frozen=True)
class Result:
    """A decision on an image, and its regions if they are saved."""

    path: Path
    name: str  # below the input folder
    score: float
    is_anomalous: bool
    milliseconds: float
    image_size: tuple[int, int]  # width and height
    signature: Signature
    regions: list | None
    failure: UnwrittenError | None  # why its files are not written, or not all


class ResultWriter:
    """Turns predictions into results, and writes the map of each image and the file of its regions."""

    def __init__(
        self, folder: Path, threshold: float, map_format: str, save_regions: bool, file_per_image: bool
    ) -> None:
        """
        Args:
            map_format: tiff, jpg, overlay or none.
            save_regions: find the anomalous regions of each image.
            file_per_image: write the regions of each image to regions/<name>.json.
        """
        self.threshold = threshold
        self.needs_data = map_format in ("jpg", "overlay")
        self._folder, self._map_format = folder, map_format
        self._regions, self._file_per_image = save_regions, file_per_image

    def names(self, name: str) -> list[str]:
        """The files below the folder for an image of this name, which keeps its suffix: a.png and a.jpg differ."""
        names = []
        if suffix := MAP_SUFFIXES[self._map_format]:
            names.append(fitting_name(f"{MAP_FOLDER}/{name}{suffix}"))
        if self._regions and self._file_per_image:
            names.append(fitting_name(f"{REGIONS_FOLDER}/{name}.json"))
        return names

    def write(self, prediction: Prediction, signature: Signature) -> Result:
        """Write the files of a prediction and return its result, which says whether that has failed.

        Raises:
            OSError: no file can be written, as on a full disk.
        """
        is_anomalous, regions = prediction.score > self.threshold, None
        anomaly_map = inspected = None
        if self._regions or self._map_format != "none":
            anomaly_map, inspected = prediction.full_map(), prediction.inspected()
        if self._regions:
            regions = find_regions(anomaly_map, self.threshold, inspected) if is_anomalous else []
        result = Result(
            prediction.sample.path,
            prediction.sample.image_name,
            prediction.score,
            is_anomalous,
            prediction.milliseconds,
            prediction.image_size,
            signature,
            regions,
            failure=None,
        )
        try:
            self._write_files(result, prediction, anomaly_map, inspected)
        except (OSError, UserError, UnreadableImageError) as error:
            if isinstance(error, OSError) and error.errno in _OF_ALL_FILES:
                raise
            return replace(result, failure=UnwrittenError(str(result.path), _reason(error)))
        return result

    def _write_files(
        self, result: Result, prediction: Prediction, anomaly_map: np.ndarray | None, inspected: np.ndarray | None
    ) -> None:
        files = [file_below(self._folder, file) for file in self.names(result.name)]
        if self._map_format == "tiff":
            write_tiff(files[0], anomaly_map)
        elif self._map_format != "none":
            write = {"jpg": write_side_by_side, "overlay": write_overlay}[self._map_format]
            write(files[0], prediction.decode(), anomaly_map, self.threshold, inspected)
        if self._regions and self._file_per_image:
            write_regions(files[-1], [result], self.threshold)


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.strerror}: {error.filename}" if error.filename else error.strerror


def write_regions(path: Path, results: Sequence[Result], threshold: float) -> None:
    """Write the regions of all results as a COCO file, which appears complete or not at all."""
    images = [ImageRegions(result.name, result.image_size, result.regions) for result in results]
    write_text_atomically(path, json.dumps(coco_contents(images, {"threshold": threshold})) + "\n")


class ScoresFile:
    """scores.csv, written line by line, so that an interrupted run leaves its results."""

    def __init__(self, path: Path, go_on: bool) -> None:
        """Start the file in place of an earlier one, or with `go_on` append to that."""
        self.done: dict[str, Signature] = {}  # by path as csv_cell writes it
        self.thresholds: set[str] = set()  # of the lines that were there
        if go_on and path.exists():
            self.done, self.thresholds = _read_done(path)
            torn = not path.read_bytes().endswith(b"\n")  # the last run was killed while it wrote
            self._file = open(path, "a", newline="", encoding="utf-8", opener=open_not_followed)  # noqa: SIM115
            if torn:
                self._file.write("\n")
        else:
            remove_file(path)  # rather than to write into it: a backup by hard links would change
            self._file = path.open("x", newline="", encoding="utf-8")
            csv.writer(self._file).writerow(COLUMNS)
        self._file.flush()

    def append(self, result: Result, threshold: float) -> None:
        """Add a line; it is in the file when this returns."""
        row = [
            result.path,
            f"{result.score:.9g}",  # nine digits identify a float32
            f"{threshold:.9g}",
            int(result.is_anomalous),
            f"{result.milliseconds:.1f}",
            *result.signature,
        ]
        csv.writer(self._file).writerow(map(csv_cell, row))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def check_results_folder(folder: Path, is_watching: bool) -> None:
    """Refuse a folder that this command must not write to.

    A folder holds the results of one --input, which the next one replaces, or those of --watch, which only grow.
    The list of what was written names the files of the former, and the folders of the latter.

    Raises:
        UserError: there are other files, or links in their place.
    """
    require_no_links(folder, [*WRITTEN_BY_WATCH, REGIONS_FILE, REPORT_FILE, FILE_LIST])
    path = folder / SCORES_FILE
    written = written_files(folder)
    is_replaceable = SCORES_FILE in written and MAP_FOLDER not in written
    if path.exists():
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            if next(csv.reader(file), []) != list(COLUMNS):
                raise UserError(f"{path} was not written by predict; choose another --output_dir")
        if is_watching and is_replaceable:
            raise UserError(f"{folder} holds the results of an --input; choose another --output_dir for --watch")
        if not is_watching and not is_replaceable:
            raise UserError(f"{folder} holds the results of --watch; choose another --output_dir for --input")
    elif is_watching and {file.name for file in folder.iterdir()} - {LOCK_FILE}:
        raise UserError(f"{folder} holds other files; choose another --output_dir")


def signature_of(path: Path) -> Signature:
    """The signature of the file as it is now; zeros if it is not there."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _read_done(path: Path) -> tuple[dict[str, Signature], set[str]]:
    """The last signature of each path, and all thresholds; a torn line is ignored."""
    done, thresholds = {}, set()
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            try:
                done[row["path"]] = (int(row["bytes"]), int(row["modified"]))
                thresholds.add(row["threshold"])
            except (TypeError, ValueError):
                continue
    return done, thresholds


_NEIGHBOURS = np.ones((3, 3), dtype=int)  # pixels that touch at a corner are connected


@dataclass(frozen=True)
class Region:
    """Connected pixels above the threshold, in pixels of the image."""

    score: float  # the largest value of the map in it
    box: tuple[int, int, int, int]  # left, top, width, height
    area: int
    run_lengths: dict[str, Any]  # COCO's compressed RLE of the whole image: size (height, width) and counts


@dataclass(frozen=True)
class ImageRegions:
    """The regions of one image."""

    file_name: str
    image_size: tuple[int, int]  # width and height
    regions: list[Region]


def find_regions(anomaly_map: np.ndarray, threshold: float, inspected: np.ndarray | None = None) -> list[Region]:
    """The regions above the threshold of the map H x W of an anomalous image, highest score first.

    No region is too small to count. Good images have none: a few high pixels do not make a high score.

    Args:
        anomaly_map: float32, at the image's own size.
        threshold: below the image's score. If no pixel exceeds it, since the map was shrunk to a small image, the
            highest pixel is the region.
        inspected: H x W bools; a region has no other pixels. None: all.
    """
    from pycocotools import mask as coco_mask
    from scipy import ndimage

    if inspected is None:
        inspected = np.ones(anomaly_map.shape, dtype=bool)
    above = inspected & (anomaly_map > threshold)
    if not above.any():
        above = inspected & (anomaly_map == anomaly_map.max(where=inspected, initial=-np.inf))
    labels, _ = ndimage.label(above, structure=_NEIGHBOURS)
    regions = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[rows, columns] == number
        mask = np.zeros(above.shape, dtype=np.uint8, order="F")
        mask[rows, columns] = inside
        encoded = coco_mask.encode(mask)
        regions.append(
            Region(
                score=float(anomaly_map[rows, columns][inside].max()),
                box=(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start),
                area=int(inside.sum()),
                run_lengths={"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")},
            )
        )
    return sorted(regions, key=lambda region: -region.score)


def coco_contents(images: Iterable[ImageRegions], facts: dict[str, Any]) -> dict[str, Sequence | dict]:
    """A COCO file's contents: one category, every image, and an annotation with its score for each region.

    Args:
        facts: plain values for its "info".
    """
    entries, annotations = [], []
    for image_id, image in enumerate(images, start=1):
        width, height = image.image_size
        entries.append({"id": image_id, "file_name": image.file_name, "width": width, "height": height})
        for region in image.regions:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": list(region.box),
                    "area": region.area,
                    "segmentation": region.run_lengths,
                    "iscrowd": 0,
                    "score": region.score,
                }
            )
    return {
        "info": {"description": "Anomalous regions", **facts},
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "anomaly"}],
    }
