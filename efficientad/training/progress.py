"""The progress of a training: its unfinished networks, scored on the labelled test images.

For studying trainings. Whoever ends a training where the test images look best has chosen by their labels, and
eval.py's numbers on them then promise too much. The training itself learns nothing from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from efficientad.data.datasets import Dataset, FoundSamples, Sample, find_test_samples
from efficientad.data.images import UnreadableImageError, find_unreadable
from efficientad.detector.model import EfficientAD
from efficientad.system.distributed import rank
from efficientad.system.errors import UserError
from efficientad.training.cache import ImageSet
from efficientad.training.fitting import FlatMapsError, fit_map_quantiles, map_held_out, score_images


@dataclass(frozen=True)
class Progress:
    """Scores the networks of a training on the test images from time to time."""

    every: int  # steps
    model: EfficientAD
    images: ImageSet
    held_out: range  # good ones in `images`, on which the maps are normalized
    test_images: ImageSet
    labels: Sequence[bool]  # of the test images: whether defective
    precision: str

    def is_due(self, step: int, steps: int) -> bool:
        """Whether to score after this step of `steps`, counted from 1."""
        return step % self.every == 0 or step == steps

    def auroc(self) -> float:
        """The image AUROC in [0, 1] that eval.py would find if the training ended here; nan where it is undefined.

        It is that of student and autoencoder: a memory is fitted after the last step.

        Every copy of an image counts, as in eval.py's "Final image auc". The model is left unchanged, and no random
        number is drawn: there is no dropout in eval mode. With several processes all must call it.
        """
        from sklearn.metrics import roc_auc_score  # slow to import, and most trainings do without

        with _unchanged(self.model):
            try:
                fit_map_quantiles(
                    self.model, map_held_out(self.model, self.images, self.held_out, self.precision, quiet=True)
                )
            except FlatMapsError:  # of networks that have learnt nothing yet; at the end of the training an error
                return math.nan
            everything = range(len(self.test_images))
            scores = score_images(
                self.model, self.test_images, everything, self.precision, "Scoring test images", quiet=True
            )
        if not np.isfinite(scores).all():
            return math.nan
        return float(roc_auc_score(np.array(self.labels), np.array(scores)))


@contextmanager
def _unchanged(model: EfficientAD) -> Iterator[None]:
    """Restore mode, quantiles and weights after the block, in place: a CUDA graph knows their addresses."""
    training = model.training
    fitted = {buffer: buffer.clone() for buffer in (model.quantiles, model.rim_weights)}
    try:
        yield
    finally:
        model.train(training)
        with torch.no_grad():
            for buffer, before in fitted.items():
                buffer.copy_(before)


def find_labelled_samples(
    dataset: Dataset, check: Callable[[Path], object] | None, workers: int
) -> tuple[FoundSamples, list[UnreadableImageError]]:
    """The test images, good and defective ones, and the unreadable ones that are skipped.

    Args:
        check: raises UnreadableImageError for images to be skipped; None: skip none.
        workers: threads that decode.

    Raises:
        UserError: there are none, or only good or only defective ones.
    """
    try:
        found, unreadable = find_test_samples(dataset), []
    except UserError as error:
        raise UserError(f"--evaluate_every needs test images: {error}") from None
    samples = found.samples
    if check:
        paths = [sample.path for sample in samples]
        unreadable = find_unreadable(paths, check, workers, quiet=rank() > 0)
        bad = {error.name for error in unreadable}
        samples = [sample for sample in samples if str(sample.path) not in bad]
    kinds = {sample.is_anomalous for sample in samples}
    missing = [name for name, kind in (("good", False), ("defective", True)) if kind not in kinds]
    if missing:
        readable = "readable " if unreadable else ""
        raise UserError(
            f"--evaluate_every needs good and defective test images, but {dataset.test_folder} holds no "
            f"{readable}{' and no '.join(missing)} ones; add some, or leave the flag out"
        )
    return FoundSamples(samples, found.notes), unreadable


def describe_use(every: int | None, samples: Sequence[Sample]) -> list[str]:
    """A warning if test images are going to be scored; `every` is the number of steps between, or None."""
    if every is None:
        return []
    defective = sum(sample.is_anomalous for sample in samples)
    return [
        f"Note: every {every} steps {len(samples)} test images are scored, {len(samples) - defective} good and "
        f"{defective} defective; that looks at their labels, so it is for studying a training, not for choosing "
        "when to stop"
    ]
