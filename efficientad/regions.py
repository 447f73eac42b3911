"""Where an image is anomalous: connected regions of its map, also as COCO annotations. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_NEIGHBOURS = np.ones((3, 3), dtype=int)  # pixels that touch at a corner belong together


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


def find_regions(anomaly_map: np.ndarray, threshold: float, is_anomalous: bool) -> list[Region]:
    """The regions of a map H x W above the threshold, highest score first; no region is too small to count.

    Args:
        anomaly_map: float32, at the image's own size.
        is_anomalous: the decision on the image; a good one has no regions, although a few pixels may exceed the
            threshold, since its score is a mean. A peak can fall below the threshold when the map is made smaller
            for a small image; an anomalous image then still has a region, its highest pixel.
    """
    from pycocotools import mask as coco_mask
    from scipy import ndimage

    if not is_anomalous:
        return []
    above = anomaly_map > threshold
    if not above.any():
        above = anomaly_map == anomaly_map.max()
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
        facts: plain values that go into its "info".
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
