"""One image in, one answer out: the call for programs of your own."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from efficientad.data.images import UnreadableImageError, read_bytes, to_upright_rgb
from efficientad.detector.anomaly_maps import anomaly_score
from efficientad.detector.calibration import choose_threshold
from efficientad.inference.detectors import Detector
from efficientad.inference.prediction import NOT_FINITE
from efficientad.system.errors import UserError, printable


@dataclass(frozen=True)
class Inspection:
    """A detector's answer for one image."""

    score: float  # of the map, float32; see model.anomaly_score
    threshold: float
    anomaly_map: np.ndarray  # float32, height x width of the upright image, 0-255 scale; 0 if not inspected

    @property
    def is_anomalous(self) -> bool:
        """Whether the score is above the threshold."""
        return self.score > self.threshold


class Inspector:
    """A detector that inspects one image at a time, as predict does; threads may share it.

    Attributes:
        threshold: of its decisions.
    """

    def __init__(self, detector: Detector, threshold: float | None = None) -> None:
        """
        Args:
            threshold: None for the detector's own.

        Raises:
            UserError: the threshold is no finite number.
        """
        if threshold is not None and not _is_finite(threshold):
            raise UserError(f"threshold {threshold!r} is no finite number; None is the detector's own")
        self.threshold, _ = choose_threshold(None if threshold is None else float(threshold), detector.calibration)
        self._detector = detector
        self._lock = threading.Lock()  # not every runtime takes a second image while it computes

    def __call__(self, image: str | Path | Image.Image | np.ndarray) -> Inspection:
        """Score one image.

        Args:
            image: a file, an image of Pillow in any mode, or an array: uint8, height x width x 3 (RGB) or height x
                width (gray).

        Raises:
            UnreadableImageError: the file cannot be read, the array is no such image, the detector's view does not
                fit it, or its score is not finite.
            TypeError: it is something else.
        """
        name, view = "the image", self._detector.view
        if isinstance(image, (str, Path)):
            name = str(image)
            if "\0" in name:
                raise UnreadableImageError(printable(name), "no file has a zero byte in its name")
            rgb, size = view.decode(read_bytes(Path(image)), name)
        elif isinstance(image, (Image.Image, np.ndarray)):
            try:
                opened = _from_array(image) if isinstance(image, np.ndarray) else image
                rgb = to_upright_rgb(opened, view.depth)
            except (ValueError, OSError) as error:  # Pillow reads a file only now
                raise UnreadableImageError(name, str(error)) from None
            size = rgb.size
        else:
            raise TypeError(f"expects a path, an image of Pillow or an array, not {type(image).__name__}")
        pixels, inspected = view.pixels(rgb, name, size), view.inspected(size)
        with self._lock:
            maps = self._detector(pixels[None], None if inspected is None else inspected[None]).cpu()
        score = anomaly_score(maps).item()
        if not math.isfinite(score):
            raise UnreadableImageError(name, NOT_FINITE)
        return Inspection(score, self.threshold, view.to_image(maps[0, 0].numpy(), size))


def _is_finite(threshold: object) -> bool:
    return isinstance(threshold, (int, float, np.number)) and math.isfinite(threshold) and threshold is not True


def _from_array(array: np.ndarray) -> Image.Image:
    """The image in a uint8 array, height x width x 3 or height x width.

    Raises:
        ValueError: it is another array.
    """
    if array.dtype != np.uint8 or array.shape[2:] not in ((), (3,)) or array.ndim < 2 or not array.size:
        raise ValueError(
            f"expects an array of uint8, height x width x 3 or height x width, not {array.dtype} of {array.shape}"
        )
    return Image.fromarray(np.ascontiguousarray(array))
