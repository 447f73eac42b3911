"""Anomaly maps before they are joined, and the score of the joined one."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

LOCAL_MAPS = 3
MAP_SCALE = 255.0  # of maps and scores: before the maps are averaged, 25.5 is each one's 0.995 quantile
UNFITTED_QUANTILES = (0.0, 0.1)  # of a missing map: they would leave it as it is
SCORED_PIXELS = 393  # whose mean is the score: about as many as see a small defect, and 0.6 % of 256 x 256


class RawMaps(NamedTuple):
    """Anomaly maps before they are joined, float32, >= 0; None: not made.

    The local ones are N x 1 x the grid and not normalized; that of the global score is N x 1 x 8 x 8 and is.
    """

    student_teacher: Tensor | None
    autoencoder_student: Tensor | None
    memory: Tensor | None = None
    global_map: Tensor | None = None

    @property
    def local(self) -> tuple[Tensor | None, ...]:
        """The LOCAL_MAPS maps of patches."""
        return self[:LOCAL_MAPS]


def anomaly_score(anomaly_maps: Tensor) -> Tensor:
    """Image scores, shape N, float32: the mean of the SCORED_PIXELS highest values of each map N x 1 x H x W.

    The paper takes the maximum. Every patch that sees some of a defect has a high value, so there are many whatever
    the size of the image, and their mean depends less on chance. May exceed 255.
    """
    values = anomaly_maps.flatten(1)
    return values.topk(min(SCORED_PIXELS, values.shape[1]), dim=1).values.mean(dim=1)
