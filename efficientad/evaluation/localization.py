"""Compares maps with masks, image by image, for the pixel metrics of each class and of the whole set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from efficientad.data.datasets import GOOD, Sample
from efficientad.evaluation.masks import MaskSet, SampleMasks, connected_regions, read_defects
from efficientad.evaluation.pixel_metrics import Defect, ImageCounts, PixelHistograms, PixelMetrics, count_pixels


@dataclass(frozen=True)
class LocatedSample:
    """The counts of one image for its class and for the set; None where it does not count."""

    in_class: ImageCounts | None
    in_set: ImageCounts | None


class Localization:
    """The pixel metrics of an evaluation, image by image.

    A class counts every file in its folder, with the defects in the masks of that class; pixels that only masks of
    other classes mark, on copies of the image, are ignored. The set counts every distinct image once, with all its
    defects. A defective image without a mask, or with an empty one, counts nowhere.
    """

    def __init__(self, masks: MaskSet) -> None:
        self._masks = masks
        self._classes: dict[str, PixelHistograms] = {}
        self._overall = PixelHistograms()
        self._defective = self._left_out = 0

    def count(self, sample: Sample, anomaly_map: np.ndarray) -> LocatedSample:
        """Compare a map with its masks; may be called from many threads.

        Args:
            anomaly_map: H x W float32, at the image's own size.

        Raises:
            UserError: see read_defects.
        """
        known = self._masks.samples[sample]
        own, copied = self._regions(sample, known, anomaly_map)
        marked = _mark(own, anomaly_map.shape)
        marked_elsewhere = _mark(copied, anomaly_map.shape) & ~marked
        if not marked_elsewhere.any():
            counts = count_pixels(anomaly_map, own)
            in_class = counts if own or not known.is_anomalous else None
            return LocatedSample(in_class, None if known.is_repeated else in_class)
        in_class = None
        if own or not sample.is_anomalous:
            in_class = count_pixels(anomaly_map, own, ignored=marked_elsewhere)
        if known.is_repeated:
            return LocatedSample(in_class, None)
        regions = [*own, *copied] if self._masks.saturations else _areas(marked | marked_elsewhere)
        return LocatedSample(in_class, count_pixels(anomaly_map, regions))

    def add(self, sample: Sample, located: LocatedSample) -> None:
        """Add the counts of an image."""
        self._defective += sample.is_anomalous
        self._left_out += sample.is_anomalous and located.in_class is None
        histograms = self._classes.setdefault(sample.class_name, PixelHistograms())
        if located.in_class:
            histograms.add(located.in_class)
        if located.in_set:
            self._overall.add(located.in_set)

    def merge(self, other: Localization) -> None:
        """Add the counts that another process made of the same set."""
        self._defective += other._defective
        self._left_out += other._left_out
        for name, histograms in other._classes.items():
            self._classes.setdefault(name, PixelHistograms()).merge(histograms)
        self._overall.merge(other._overall)

    def metrics(self) -> PixelMetrics:
        """The rows over everything added."""
        good = [self._classes[GOOD]] if GOOD in self._classes else []
        return PixelMetrics(
            classes=[item.row(name, good) for name, item in sorted(self._classes.items()) if name != GOOD],
            overall=self._overall.row("Overall"),
            saturated=bool(self._masks.saturations),
            defective=self._defective,
            left_out=self._left_out,
        )

    def _regions(
        self, sample: Sample, known: SampleMasks, anomaly_map: np.ndarray
    ) -> tuple[list[Defect], list[Defect]]:
        size = anomaly_map.shape[::-1]
        own, copied = (
            [
                region
                for masks in files
                for region in read_defects(masks, self._masks.saturations, sample.path, size)
            ]
            for files in ([known.own] if known.own else [], known.of_copies)
        )
        return own, copied


def _mark(regions: list[Defect], shape: tuple[int, ...]) -> np.ndarray:
    marked = np.zeros(shape, dtype=bool)
    for region in regions:
        marked.flat[region.pixels] = True
    return marked


def _areas(mask: np.ndarray) -> list[Defect]:
    return [Defect(pixels, len(pixels)) for pixels in connected_regions(mask)]
