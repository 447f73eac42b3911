"""Compares maps with masks, image by image, for the pixel metrics of each class and of the whole set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from efficientad.data.datasets import Sample
from efficientad.data.labels import GOOD
from efficientad.evaluation.mask_files import MaskFiles
from efficientad.evaluation.masks import MaskSet, SampleMasks, connected_regions, read_defects
from efficientad.evaluation.pixel_metrics import Defect, ImageCounts, PixelHistograms, PixelMetrics, count_pixels


@dataclass(frozen=True)
class LocatedSample:
    """The counts of one image for its class and for the set; None where it does not count."""

    in_class: ImageCounts | None
    in_set: ImageCounts | None
    hidden: int  # defects in its own masks that lie wholly where nothing is inspected


class Localization:
    """The pixel metrics of an evaluation, image by image.

    A class counts every file in its folder, with the defects in the masks of that class; pixels that only masks of
    other classes mark, on copies of the image, are ignored. The set counts every distinct image once, with all its
    defects. A defective image without a mask, or with an empty one, counts nowhere, and neither does one without a
    defect where it is inspected. Pixels that are not inspected are ignored.
    """

    def __init__(self, masks: MaskSet) -> None:
        self._masks = masks
        self._classes: dict[str, PixelHistograms] = {}
        self._overall = PixelHistograms()
        self._defective = self._left_out = self._hidden = self._hiding = 0

    def count(self, sample: Sample, anomaly_map: np.ndarray, inspected: np.ndarray | None = None) -> LocatedSample:
        """Compare a map with its masks; may be called from many threads.

        Args:
            anomaly_map: H x W float32, at the image's own size.
            inspected: H x W bools; None: all pixels are.

        Raises:
            UserError: see read_defects.
        """
        known = self._masks.samples[sample]
        (own, hidden), copied = self._defects(sample, known, anomaly_map.shape, inspected)
        unseen = None if inspected is None else ~inspected
        marked = _mark(own, anomaly_map.shape)
        marked_elsewhere = _mark(copied, anomaly_map.shape) & ~marked
        if not marked_elsewhere.any():
            counts = count_pixels(anomaly_map, own, unseen)
            in_class = counts if own or not known.is_anomalous else None
            return LocatedSample(in_class, None if known.is_repeated else in_class, hidden)
        in_class = None
        if own or not sample.is_anomalous:
            ignored = marked_elsewhere if unseen is None else marked_elsewhere | unseen
            in_class = count_pixels(anomaly_map, own, ignored)
        if known.is_repeated:
            return LocatedSample(in_class, None, hidden)
        regions = [*own, *copied] if self._masks.saturations else _areas(marked | marked_elsewhere)
        return LocatedSample(in_class, count_pixels(anomaly_map, regions, unseen), hidden)

    def add(self, sample: Sample, located: LocatedSample) -> None:
        """Add the counts of an image."""
        self._defective += sample.is_anomalous
        self._left_out += sample.is_anomalous and located.in_class is None and not located.hidden
        self._hidden += located.hidden
        self._hiding += located.hidden > 0
        histograms = self._classes.setdefault(sample.class_name, PixelHistograms())
        if located.in_class:
            histograms.add(located.in_class)
        if located.in_set:
            self._overall.add(located.in_set)

    def merge(self, other: Localization) -> None:
        """Add the counts that another process made of the same set."""
        self._defective += other._defective
        self._left_out += other._left_out
        self._hidden += other._hidden
        self._hiding += other._hiding
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
            hidden=self._hidden,
            hiding=self._hiding,
        )

    def _defects(
        self, sample: Sample, known: SampleMasks, shape: tuple[int, ...], inspected: np.ndarray | None
    ) -> tuple[tuple[list[Defect], int], list[Defect]]:
        """read_defects of its own masks, and the defects in those of its copies."""

        def read(masks: MaskFiles) -> tuple[list[Defect], int]:
            return read_defects(masks, self._masks.saturations, sample.path, shape[::-1], inspected)

        own = read(known.own) if known.own else ([], 0)
        return own, [defect for masks in known.of_copies for defect in read(masks)[0]]


def _mark(regions: list[Defect], shape: tuple[int, ...]) -> np.ndarray:
    marked = np.zeros(shape, dtype=bool)
    for region in regions:
        marked.flat[region.pixels] = True
    return marked


def _areas(mask: np.ndarray) -> list[Defect]:
    return [Defect(pixels, len(pixels)) for pixels in connected_regions(mask)]
