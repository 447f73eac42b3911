"""A fitted detector and image files in, predictions out: reading runs ahead of the network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from efficientad.datasets import Sample
from efficientad.device import autocast
from efficientad.errors import UserError
from efficientad.images import (
    UnreadableImageError,
    decode_image,
    raise_if_unreadable,
    read_bytes,
)
from efficientad.networks import EfficientAD, anomaly_score
from efficientad.parallel import parallel_map
from efficientad.tensors import to_square, to_unit_range


@dataclass(frozen=True)
class Prediction:
    """What the detector says of one image."""

    sample: Sample
    digest: str  # SHA-256 of the file's bytes
    image_size: tuple[int, int]  # width and height of the upright image
    image: Image.Image | None  # upright RGB at its own size, where asked for
    thumbnail: bytes | None  # where asked for
    score: float  # the largest value of the map, float32
    anomaly_map: np.ndarray  # S x S float32, 0-255 scale


@dataclass(frozen=True)
class _Loaded:
    sample: Sample
    digest: str
    image_size: tuple[int, int]
    image: Image.Image | None
    thumbnail: bytes | None
    pixels: Tensor  # uint8, 3 x S x S


def predict(
    model: EfficientAD,
    samples: Sequence[Sample],
    batch_size: int,
    workers: int,
    device: torch.device,
    precision: str,
    keep_images: bool = False,
    make_thumbnail: Callable[[Image.Image], bytes] | None = None,
) -> Iterator[Prediction]:
    """Predictions in the order of the samples; at most a few batches are in memory at once.

    Args:
        model: in eval mode, on `device`.
        workers: threads that read images ahead.
        keep_images: give the predictions their images, which may be large.
        make_thumbnail: what remains of an image otherwise; called in the threads that read.

    Raises:
        UserError: images are unreadable. From the first one on nothing more is predicted, but all
            remaining files are read, so that the error names every bad one.
    """

    def load(sample: Sample) -> _Loaded | str:
        try:
            data = read_bytes(sample.path)
            image = decode_image(data, str(sample.path))
        except UnreadableImageError as error:
            return str(error)
        pixels = to_square(image, model.image_size)
        thumbnail = make_thumbnail(image) if make_thumbnail else None
        kept = image if keep_images else None
        return _Loaded(sample, hashlib.sha256(data).hexdigest(), image.size, kept, thumbnail, pixels)

    pending: tuple[list[_Loaded], Tensor] | None = None
    for batch in _batches(parallel_map(load, samples, workers), batch_size):
        started = (batch, _start(model, batch, device, precision))
        if pending:
            yield from _finish(*pending)  # a GPU is at work on the next batch meanwhile
        pending = started
    if pending:
        yield from _finish(*pending)


def _batches(items: Iterator[_Loaded | str], batch_size: int) -> Iterator[list[_Loaded]]:
    unreadable: list[str] = []
    batch: list[_Loaded] = []
    for loaded in items:
        if isinstance(loaded, str):
            unreadable.append(loaded)
        elif not unreadable:
            batch.append(loaded)
            if len(batch) == batch_size:
                yield batch
                batch = []
    raise_if_unreadable(unreadable)
    if batch:
        yield batch


@torch.inference_mode()
def _start(model: EfficientAD, batch: list[_Loaded], device: torch.device, precision: str) -> Tensor:
    pixels = torch.stack([loaded.pixels for loaded in batch])
    if device.type == "cuda":
        pixels = pixels.pin_memory()  # else the copy would wait for the batch before
    with autocast(device, precision):
        return model(to_unit_range(pixels.to(device, non_blocking=True)))


def _finish(batch: list[_Loaded], anomaly_maps: Tensor) -> Iterator[Prediction]:
    anomaly_maps = anomaly_maps.cpu()
    scores = anomaly_score(anomaly_maps).tolist()
    for loaded, score, anomaly_map in zip(batch, scores, anomaly_maps[:, 0].numpy(), strict=True):
        if not np.isfinite(score):
            raise UserError(
                f"the score of {loaded.sample.path} is not finite; try --precision fp32, or train again"
            )
        yield Prediction(
            loaded.sample, loaded.digest, loaded.image_size, loaded.image, loaded.thumbnail, score, anomaly_map
        )
