"""How far an exported detector is from the torch one it was made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tabulate import tabulate

from efficientad.detector.networks import MAP_SCALE, anomaly_score

_FLOOR = (
    0.1 * MAP_SCALE
)  # differences are relative to the value, or to the level of the 0.995 quantile if it is lower


@dataclass(frozen=True)
class Bound:
    """The largest relative difference that counts as the same, in the mean and of any score."""

    mean: float
    score: float


BOUNDS = {
    "fp32": Bound(0.0005, 0.005),
    "fp16": Bound(0.01, 0.05),
    "bf16": Bound(0.05, 0.2),
    "int8": Bound(0.1, 0.4),
}


@dataclass(frozen=True)
class Differences:
    """Of maps or of scores: on the 0-255 scale, and relative."""

    mean: float
    largest: float
    relative_mean: float
    relative_largest: float


@dataclass(frozen=True)
class Parity:
    """The comparison over some images."""

    maps: Differences
    scores: Differences
    same_decisions: int
    images: int

    def keeps(self, bound: Bound) -> bool:
        """Whether nothing is beyond the bound; a difference that is not finite is."""
        means = self.maps.relative_mean <= bound.mean and self.scores.relative_mean <= bound.mean
        return means and self.scores.relative_largest <= bound.score

    def format(self, precision: str, threshold: float) -> str:
        """A table for the terminal."""
        bound = BOUNDS[precision]
        rows = [
            [name, d.mean, d.largest, f"{d.relative_mean:.3%}", f"{d.relative_largest:.3%}"]
            for name, d in (("maps", self.maps), ("scores", self.scores))
        ]
        headers = ["Difference to torch", "Mean", "Largest", "Relative mean", "Relative largest"]
        return (
            f"{tabulate(rows, headers=headers, floatfmt='.4f')}\n"
            f"Bound for {precision}: {bound.mean:.3%} in the mean, {bound.score:.3%} for any score\n"
            f"At threshold {threshold:g} {self.same_decisions} of {self.images} decisions agree"
        )


def compare(reference, exported, pixels, batch_size: int, threshold: float) -> Parity:
    """Compare the maps and scores of two detectors.

    Args:
        reference: a Detector.
        exported: an ExportedDetector.
        pixels: uint8 images N x 3 x S x S.
    """
    maps, scores, other_maps, other_scores = [], [], [], []
    for batch in pixels.split(batch_size):
        expected = reference(batch).cpu()
        maps.append(expected[:, 0].numpy())
        scores.append(anomaly_score(expected).numpy())
        answer = exported.answer(batch.permute(0, 2, 3, 1).contiguous().numpy())
        other_maps.append(answer[0])
        other_scores.append(answer[1])
    expected_scores, found_scores = np.concatenate(scores), np.concatenate(other_scores)
    return Parity(
        _differences(np.concatenate(maps), np.concatenate(other_maps)),
        _differences(expected_scores, found_scores),
        int(((expected_scores > threshold) == (found_scores > threshold)).sum()),
        len(pixels),
    )


def _differences(expected: np.ndarray, found: np.ndarray) -> Differences:
    absolute = np.abs(found.astype(np.float64) - expected)
    relative = absolute / np.maximum(np.abs(expected), _FLOOR)
    return Differences(
        *(float(value) for value in (absolute.mean(), absolute.max(), relative.mean(), relative.max()))
    )
