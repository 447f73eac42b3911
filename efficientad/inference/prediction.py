"""From a detector and image files to predictions; reading runs ahead of the network."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from efficientad.data.datasets import Sample
from efficientad.data.images import UnreadableImageError, raise_if_unreadable, read_bytes
from efficientad.data.views import View
from efficientad.detector.anomaly_maps import anomaly_score
from efficientad.inference.detectors import Detector
from efficientad.system.errors import UserError
from efficientad.system.parallel import parallel_map

NOT_FINITE = "its score is not finite; try --precision fp32, or train again"  # why an image has no prediction
_PIXELS_AHEAD = 2**24  # of inputs, that are read, or of maps, that are written, at once
_PIXELS_KEPT = 2**26  # of decoded images that wait for their pictures: 256 MB


@dataclass(frozen=True)
class Prediction:
    """The detector's answer for one image, with facts about its file."""

    sample: Sample
    digest: str  # SHA-256 of the file's bytes
    image_size: tuple[int, int]  # width and height of the upright image
    kept: bytes | Image.Image | None  # the file's bytes, or the image in them; see decode
    thumbnail: bytes | None  # if made
    score: float  # of the map, float32; see model.anomaly_score
    anomaly_map: np.ndarray  # H x W float32, 0-255 scale, of the detector's input
    view: View  # the detector's
    milliseconds: float  # for reading it, and its share of the batch; without waiting

    def decode(self) -> Image.Image | None:
        """The upright RGB image at its own size, not to be changed; None if its data were not kept.

        Large ones are decoded again, since dozens of them waiting for their turn would fill the memory.
        """
        if isinstance(self.kept, bytes):
            return self.view.decode_whole(self.kept, str(self.sample.path))
        return self.kept

    def full_map(self) -> np.ndarray:
        """The map at the image's own size, 0 where it is not inspected: float32."""
        return self.view.to_image(self.anomaly_map, self.image_size)

    def inspected(self) -> np.ndarray | None:
        """Which pixels of the image are inspected: bools at its own size; None: all."""
        return self.view.inspected_in_image(self.image_size)


@dataclass(frozen=True)
class _Loaded:
    sample: Sample
    digest: str
    image_size: tuple[int, int]
    kept: bytes | Image.Image | None
    thumbnail: bytes | None
    pixels: Tensor  # uint8, 3 x H x W
    inspected: Tensor | None  # bools, H x W
    seconds: float  # for reading


@dataclass(frozen=True)
class _Started:
    """A batch that a GPU may still be working on."""

    batch: list[_Loaded]
    anomaly_maps: Tensor  # N x 1 x H x W, on the host
    scores: Tensor  # N, on the host
    copied: torch.cuda.Event | None  # both are complete when it has happened; None: they are
    seconds: float  # so far


def predict(
    detector: Detector,
    samples: Sequence[Sample],
    batch_size: int,
    workers: int,
    keep_data: bool = False,
    on_unreadable: Callable[[UnreadableImageError], None] | None = None,
    make_thumbnail: Callable[[Image.Image], bytes] | None = None,
) -> Iterator[Prediction]:
    """Predictions in the order of the samples; at most a few batches are in memory at once.

    Args:
        batch_size: of images at once, at most; fewer where they are large.
        workers: threads that read images ahead; see limit_workers.
        keep_data: keep each file's bytes, or the image where it is small enough, for Prediction.decode.
        on_unreadable: called for each image that is unreadable, or that the detector's view does not fit, or whose
            score is not finite, which has no prediction; None: they are an error.
        make_thumbnail: makes a thumbnail of each image, which may be reduced; called in the threads that read.

    Raises:
        UserError: images are unreadable, and on_unreadable is None. After the first one nothing more is predicted,
            but all remaining files are read, so that the error names every bad one.
    """

    def load(sample: Sample) -> _Loaded | UnreadableImageError:
        start = time.perf_counter()
        try:
            data = read_bytes(sample.path)
            image, size = view.decode(data, str(sample.path))
            pixels = view.pixels(image, str(sample.path), size)
        except UnreadableImageError as error:
            return error
        inspected = view.inspected(size)
        thumbnail = make_thumbnail(image) if make_thumbnail else None
        digest, is_small = hashlib.sha256(data).hexdigest(), size[0] * size[1] <= largest_kept
        kept = (image if image.size == size and is_small else data) if keep_data else None
        seconds = time.perf_counter() - start
        return _Loaded(sample, digest, size, kept, thumbnail, pixels, inspected, seconds)

    view, pending = detector.view, None
    workers, batch_size = limit_workers(workers, view), detector.images_per_pass(batch_size)
    # Of four batches one is read, one computed, one copied and one written, besides what the threads have ahead
    largest_kept = _PIXELS_KEPT // (4 * (batch_size + workers))
    for batch in _batches(parallel_map(load, samples, workers), batch_size, on_unreadable):
        started = _start(detector, batch)
        if pending:
            yield from _finish(pending, view, on_unreadable)  # a GPU computes the next batch meanwhile
        pending = started
    if pending:
        yield from _finish(pending, view, on_unreadable)


def limit_workers(workers: int, view: View) -> int:
    """As many of these threads as may hold images, or maps, of a view at once: one at least, unless there are none.

    Each has up to two of them waiting.
    """
    return min(workers, max(1, _PIXELS_AHEAD // (view.height * view.width)))


def _batches(
    items: Iterator[_Loaded | UnreadableImageError],
    batch_size: int,
    on_unreadable: Callable[[UnreadableImageError], None] | None,
) -> Iterator[list[_Loaded]]:
    unreadable: list[UnreadableImageError] = []
    batch: list[_Loaded] = []
    for loaded in items:
        if isinstance(loaded, UnreadableImageError):
            (on_unreadable or unreadable.append)(loaded)
        elif not unreadable:
            batch.append(loaded)
            if len(batch) == batch_size:
                yield batch
                batch = []
    raise_if_unreadable(unreadable)
    if batch:
        yield batch


def _start(detector: Detector, batch: list[_Loaded]) -> _Started:
    start = time.perf_counter()
    pixels = torch.stack([loaded.pixels for loaded in batch])
    inspected = None
    if not detector.view.counts_everywhere:
        inspected = torch.stack([loaded.inspected for loaded in batch])
    anomaly_maps = detector(pixels, inspected)
    results, copied = copy_to_host([anomaly_maps, anomaly_score(anomaly_maps)])
    return _Started(batch, *results, copied, time.perf_counter() - start)


def copy_to_host(results: list[Tensor]) -> tuple[list[Tensor], torch.cuda.Event | None]:
    """Results on the host and, from a GPU, the event after which they are complete.

    A copy started later would wait for the batches started meanwhile.

    Args:
        results: tensors on one device.
    """
    if not results[0].is_cuda:
        return [result.cpu() for result in results], None
    on_host = [torch.empty(result.shape, dtype=result.dtype, pin_memory=True) for result in results]
    for copy, result in zip(on_host, results, strict=True):
        copy.copy_(result, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)  # a wait that leaves its core to the threads that read
    copied.record()
    return on_host, copied


def _finish(
    started: _Started, view: View, on_unreadable: Callable[[UnreadableImageError], None] | None
) -> Iterator[Prediction]:
    start = time.perf_counter()
    if started.copied:
        started.copied.synchronize()
    anomaly_maps, scores = started.anomaly_maps, started.scores.tolist()
    share = (started.seconds + time.perf_counter() - start) / len(started.batch)
    for loaded, score, anomaly_map in zip(started.batch, scores, anomaly_maps[:, 0].numpy(), strict=True):
        if not np.isfinite(score):
            if on_unreadable is None:
                raise UserError(f"{loaded.sample.path}: {NOT_FINITE}")
            on_unreadable(UnreadableImageError(str(loaded.sample.path), NOT_FINITE))
            continue
        milliseconds = 1000 * (loaded.seconds + share)
        yield Prediction(
            loaded.sample,
            loaded.digest,
            loaded.image_size,
            loaded.kept,
            loaded.thumbnail,
            score,
            anomaly_map,
            view,
            milliseconds,
        )
