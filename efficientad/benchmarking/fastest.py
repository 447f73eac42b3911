"""Exported files beside model.pt on this machine's CPU: how fast they are, and which one to keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efficientad.benchmarking.measuring import time_side_by_side
from efficientad.data.datasets import Dataset, Sample, find_test_samples
from efficientad.detector.checkpoint import MODEL_FILE, load_model, read_training
from efficientad.evaluation.image_metrics import image_auroc
from efficientad.inference import export_check, exporting
from efficientad.inference.detectors import Detector, open_detector
from efficientad.inference.export_check import BOUNDS, CheckImages, Parity, SeenImage, spread
from efficientad.inference.export_options import ExportOptions
from efficientad.inference.exported import Answers, load_exported
from efficientad.inference.prediction import predict
from efficientad.system.errors import UserError
from efficientad.system.tables import format_table, number

MOST_LOST = 0.003  # of model.pt's AUROC
MOST_TEST_IMAGES, FEWEST_TEST_IMAGES = 400, 100
_AUROC_SECONDS = 60.0  # about so long for each file
_BATCH_SIZE = 16
_SECONDS = 2.0  # of a measurement, for each of the two that take turns
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Speed:
    """Median seconds of one pass; the two took turns, so that other load slowed both."""

    file: float
    model: float  # of model.pt, as predict computes it

    @property
    def factor(self) -> float:
        """How many times as fast as model.pt the file is."""
        return self.model / self.file

    def format(self) -> str:
        """A sentence for the terminal."""
        slower = ", so model.pt is faster here" if self.factor < 1 else ""
        file, model = (_three(1000 * seconds) for seconds in (self.file, self.model))
        return f"On this machine's CPU: {file} ms per image (model.pt: {model} ms){slower}"


def _three(value: float) -> str:
    """With three digits that count, and as many as it has before the point: 0.985, 48.1, 1150."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def measure_speed(model: Detector, exported: Detector, images: Sequence[SeenImage], seconds: float) -> Speed:
    """Time both on these images as one batch, which they must fit into."""
    batch = export_check.stack(images)
    return Speed(*time_side_by_side([partial(exported, *batch), partial(model, *batch)], seconds, _CPU))


@dataclass(frozen=True)
class Candidate:
    """An export that has been tried."""

    format: str
    precision: str
    path: Path
    megabytes: float
    parity: Parity
    speed: Speed  # one image at a time
    images_per_second: float  # in batches
    auroc: float  # nan: not measured

    def problem(self, model_auroc: float) -> str:
        """Why it may not be kept; empty if it may."""
        if not self.parity.keeps(BOUNDS[self.precision]):
            return "differs"
        return "AUROC low" if model_auroc - self.auroc > MOST_LOST else ""  # never of nan


class Trials:
    """Exports of one detector, made and measured one after another."""

    def __init__(
        self,
        weights_dir: Path,
        images: CheckImages,
        samples: Sequence[Sample],
        workers: int,
        options: ExportOptions | None = None,
    ) -> None:
        """
        Args:
            samples: test images for the AUROC, of which it is measured on as many as time allows; empty: it is not.
            workers: threads that read them.
            options: of all the files.

        Raises:
            UserError: the model cannot be loaded, or a test image cannot be read.
        """
        self._model, self._detector = load_model(weights_dir, _CPU), open_detector(weights_dir, "cpu")
        self._images, self._workers, self._options = images, workers, options or ExportOptions()
        self._expected: Answers | None = None  # of torch, which every file is compared with
        self._graphs: dict[str, Any] = {}
        self._file = weights_dir / MODEL_FILE
        batch = export_check.stack(images.to_compare[:1])
        (seconds,) = time_side_by_side([partial(self._detector, *batch)], 0.0, _CPU)
        count = min(MOST_TEST_IMAGES, max(FEWEST_TEST_IMAGES, int(_AUROC_SECONDS / seconds)))
        self._samples, self._found = spread(samples, count), len(samples)
        self.model_auroc = self._measure_auroc(self._detector)
        self._model_speeds: list[tuple[float, float]] = []  # seconds of one image, images per second in batches
        self.candidates: list[Candidate] = []
        self.failures: dict[str, list[str]] = {}  # formats and precisions by the reason why they were not tried

    def add(self, name: str, precision: str, path: Path) -> None:
        """Write an export to `path`, in a folder of its own, and measure it."""
        try:
            candidate = self._measure(name, precision, path)
        except UserError as error:  # a package is missing, or cannot compute this model
            self.failures.setdefault(str(error), []).append(f"{name} {precision}")
            return
        self.candidates.append(candidate)

    def _measure(self, name: str, precision: str, path: Path) -> Candidate:
        metadata = exporting.describe(self._model, precision, self._options)
        calibration = [metadata.inputs(*export_check.stack([image])) for image in self._images.to_calibrate]
        exporting.write_export(name, self._model, metadata, path, calibration, self._graphs, self._options.opset)
        exported = load_exported(path, "cpu", "auto")
        compared = self._images.to_compare
        if self._expected is None:
            self._expected = export_check.answer_as_torch(self._model, compared)
        parity = export_check.compare_file(self._expected, path, self._images, metadata.threshold)
        speed = measure_speed(self._detector, exported, compared[:1], _SECONDS)
        size = min(exported.images_per_pass(_BATCH_SIZE), self._detector.images_per_pass(_BATCH_SIZE))
        in_batches = measure_speed(self._detector, exported, (list(compared) * size)[:size], _SECONDS)
        self._model_speeds.append((speed.model, size / in_batches.model))
        auroc = math.nan
        if parity.keeps(BOUNDS[precision]):
            auroc = self._measure_auroc(exported)
        megabytes = sum(file.stat().st_size for file in path.parent.iterdir()) / 1e6
        return Candidate(name, precision, path, megabytes, parity, speed, size / in_batches.file, auroc)

    def _measure_auroc(self, detector: Detector) -> float:
        if not self._samples:
            return math.nan
        scores = [found.score for found in predict(detector, self._samples, _BATCH_SIZE, self._workers)]
        return image_auroc(np.array([sample.is_anomalous for sample in self._samples]), np.array(scores))

    def fastest(self) -> Candidate:
        """The fastest one that may be kept.

        Raises:
            UserError: there is none.
        """
        if not self.candidates:
            raise UserError(f"no format could be tried: {next(iter(self.failures))}")
        kept = [candidate for candidate in self.candidates if not candidate.problem(self.model_auroc)]
        if not kept:
            raise UserError("nothing is written: every format would differ too much from model.pt")
        return max(kept, key=lambda candidate: candidate.speed.factor)

    def format(self) -> str:
        """A table of all, the fastest first, and what was not tried."""
        seconds, rates = (float(np.median(values)) for values in zip(*self._model_speeds, strict=True))
        auroc = number(100 * self.model_auroc, 2)
        megabytes = f"{self._file.stat().st_size / 1e6:.1f}" if self._file.exists() else "-"
        cells = ["model.pt", _three(1000 * seconds), "1.00x", _three(rates), "-", "-", auroc]
        rows = [(1.0, [*cells, megabytes, ""])]
        for found in self.candidates:
            cells = [
                f"{found.format} {found.precision}",
                _three(1000 * found.speed.file),
                f"{found.speed.factor:.2f}x",
                _three(found.images_per_second),
                _three(found.parity.scores.mean),
                _three(found.parity.scores.largest),
                number(100 * found.auroc, 2),
                f"{found.megabytes:.1f}",
                found.problem(self.model_auroc),
            ]
            rows.append((found.speed.factor, cells))
        headers = ["", "ms per\nimage", "Speed", "Images/s,\nbatches", "Mean\ndiff.", "Largest\ndiff."]
        ordered = [cells for _, cells in sorted(rows, key=lambda row: -row[0])]
        table = format_table([*headers, "AUROC", "MB", "Note"], ordered, "lrrrrrrrl")
        about = "AUROC: not measured; name a data set with labelled test images with --dataset"
        if self._found:
            about = f"AUROC: on {len(self._samples)} of {self._found} test images"
        not_tried = [f"Not tried: {', '.join(names)}: {why}" for why, names in self.failures.items()]
        return "\n".join([table, about, *not_tried])


def find_labelled_images(dataset: Dataset | None, weights_dir: Path) -> list[Sample]:
    """Test images to measure the AUROC on, good and defective ones; none if the training's data set has them not.

    Args:
        dataset: None: that of the training in `weights_dir`.

    Raises:
        UserError: the data set that is given has no such images.
    """
    own = dataset is None
    try:
        dataset = export_check.open_training_dataset(read_training(weights_dir)) if own else dataset
        found = find_test_samples(dataset).samples
        if len({sample.is_anomalous for sample in found}) < 2:
            raise UserError(f"{dataset.test_folder} needs good and defective images for an AUROC")
    except (KeyError, UserError):
        if not own:
            raise
        return []
    return found
