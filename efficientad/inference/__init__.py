"""Use of a trained detector: predictions, results, exports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from efficientad.inference.inspection import Inspector


def load_detector(
    path: str | Path, threshold: float | None = None, device: str = "auto", precision: str = "auto"
) -> Inspector:
    """The detector of a training's folder or of an exported file, to be called with one image after another.

    Args:
        threshold: above which a score is anomalous; None for the detector's own.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, fp32, bf16 or fp16.

    Raises:
        UserError: there is no detector, or the device or precision does not suit it.
    """
    # Not before it is needed: importing torch takes seconds
    from efficientad.inference.detectors import open_detector
    from efficientad.inference.inspection import Inspector

    return Inspector(open_detector(path, device, precision), threshold)
