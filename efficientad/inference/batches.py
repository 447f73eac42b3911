"""A batch of images that predict has scored, and what makes a page of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from efficientad.inference.detectors import Detector
from efficientad.inference.prediction import Prediction


@dataclass(frozen=True)
class Batch:
    """Images that were scored, and with what."""

    folder: Path  # that all of them are in
    detector: Detector
    weights: Path
    threshold: float
    threshold_origin: str
    map_files: Mapping[str, str]  # by the names of the images, below the output folder; empty without maps
    unreadable: int


class Report(Protocol):
    """What makes a page of a batch; see evaluation.batch_report."""

    def begin(self, count: int) -> None:
        """Before the first of so many images."""

    def make_thumbnail(self, image: Image.Image) -> bytes:
        """Of an image, which may be reduced; called in threads, as add is."""

    def add(self, prediction: Prediction) -> None:
        """Take in an image with its thumbnail."""

    def write(self, path: Path, batch: Batch) -> None:
        """Write the page of the images that were added, one at least."""
