"""The training images and the teacher's features, kept in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from efficientad.data.images import UnreadableImageError, raise_if_unreadable, read_image
from efficientad.data.transforms import to_square
from efficientad.detector.networks import FEATURE_CHANNELS, EfficientAD, feature_map_size
from efficientad.system.devices import autocast
from efficientad.system.distributed import from_first_rank, rank
from efficientad.system.parallel import parallel_map
from efficientad.system.progress_bars import progress_bar


class ImageSet:
    """Images of one square size by their index: uint8, 3 x size x size.

    The first ones are kept in memory, on the device that will use them; those beyond the budget are decoded again,
    a little ahead. The images do not depend on the budget.

    Attributes:
        digests: of every image as returned, to detect changes.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: int,
        budget_bytes: float,
        workers: int,
        device: torch.device,
        kind: str = "images",
    ) -> None:
        """Decode every image once.

        Args:
            budget_bytes: for the images kept, 3 * size * size bytes each.
            workers: threads that decode.
            kind: of images, for the progress bar.

        Raises:
            UserError: naming all unreadable files.
        """
        self._paths, self._size, self._workers = paths, size, workers
        room = min(len(paths), int(budget_bytes // (3 * size * size)))
        self._kept = torch.empty((room, 3, size, size), dtype=torch.uint8, device=device)
        self.digests: list[str] = []
        unreadable = []
        read = parallel_map(self._try_to_read, range(len(paths)), workers)
        bar = progress_bar(read, desc=f"Reading {kind}", total=len(paths), unit="image", disable=rank() > 0)
        for index, image in enumerate(bar):
            if isinstance(image, str):
                unreadable.append(image)
                continue
            self.digests.append(_digest(image))
            if index < room:
                self._kept[index] = image
        raise_if_unreadable(unreadable)

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def kept_bytes(self) -> int:
        """The memory that the set takes."""
        return self._kept.numel()

    def batches(self, order: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Each tensor of indices with its images: uint8, N x 3 x size x size, on the set's device.

        Args:
            order: may be endless; consumed a little ahead where files have to be read.

        Raises:
            UserError: a file can no longer be read.
        """
        streams = len(self._kept) < len(self)
        return parallel_map(self._load, order, self._workers if streams else 0)

    def _load(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        images = [self._kept[i] if i < len(self._kept) else self._read_again(i) for i in indices.tolist()]
        # A process may have no part in a short batch
        return indices, torch.stack(images) if images else self._kept.new_empty((0, *self._kept.shape[1:]))

    def _read_again(self, index: int) -> Tensor:
        image = self._try_to_read(index)
        if isinstance(image, str):
            raise_if_unreadable([image])
        return image.to(self._kept.device)

    def _try_to_read(self, index: int) -> Tensor | str:
        try:
            return to_square(read_image(self._paths[index]), self._size)
        except UnreadableImageError as error:
            return str(error)


def _digest(image: Tensor) -> str:
    rows = image.permute(1, 2, 0).contiguous()  # as decoded: nothing is copied
    return hashlib.sha256(rows.numpy()).hexdigest()[:16]


_BLOCK = 64  # images whose features are kept in one piece; one by one they would fragment the memory


class TeacherFeatures:
    """Raw outputs of a model's teacher by image index, kept in float16 as far as a budget goes.

    All are rounded to float16, kept or not, and every image is computed on its own, so the budget changes only the
    time. Before rounding they are shifted and scaled by the statistics of the first image (of the first process),
    so that float16 suits them.
    """

    def __init__(self, model: EfficientAD, budget_bytes: float, device: torch.device, precision: str) -> None:
        self._model, self._device, self._precision = model, device, precision
        bytes_each = 2 * FEATURE_CHANNELS * feature_map_size(model.image_size) ** 2
        self._room = int(budget_bytes // bytes_each)
        self._kept: dict[int, Tensor] = {}  # parts of blocks
        self._block: Tensor | None = None  # the one that is being filled
        self._shift: Tensor | None = None
        self._scale: Tensor | None = None

    def __len__(self) -> int:
        """The number of images whose features are kept."""
        return len(self._kept)

    @torch.no_grad()
    def __call__(self, indices: Tensor, images: Tensor) -> Tensor:
        """The teacher's output, not yet normalized: N x 384 x 56 x 56, float32.

        Args:
            indices: of the images, on the CPU.
            images: N x 3 x S x S, float32 in [0, 1], on the device.
        """
        features = [self._of(i, image) for i, image in zip(indices.tolist(), images, strict=True)]
        if not features:  # a process that has no part in a short batch
            side = feature_map_size(self._model.image_size)
            return images.new_empty((0, FEATURE_CHANNELS, side, side))
        return torch.cat(features).float() * self._scale + self._shift

    def state(self) -> dict[str, Tensor]:
        """The statistics of the first image, on which the rounding of all depends."""
        return {"shift": self._shift, "scale": self._scale}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Round as the features whose `state` this is."""
        self._shift, self._scale = (state[name].to(self._device) for name in ("shift", "scale"))

    def _of(self, index: int, image: Tensor) -> Tensor:
        if index in self._kept:
            return self._kept[index]
        with autocast(self._device, self._precision):
            raw = self._model.teacher(self._model.normalize(image[None])).float()
        if self._shift is None:
            self._shift = raw.mean(dim=(2, 3), keepdim=True)
            spread, size = ((raw - self._shift).square().mean().sqrt(), raw.square().mean().sqrt())
            # An image without structure says little about the spread of others; 65,504 is float16's limit
            scale = torch.maximum(spread, size / 1000)
            self._scale = torch.where(scale > 0, scale, torch.ones_like(scale))
            from_first_rank(self._shift)
            from_first_rank(self._scale)
        features = ((raw - self._shift) / self._scale).half()
        if len(self._kept) < self._room:
            self._keep(index, features)
        return features

    def _keep(self, index: int, features: Tensor) -> None:
        place = len(self._kept) % _BLOCK
        if place == 0:
            shape = (min(_BLOCK, self._room - len(self._kept)), *features.shape[1:])
            strides = (features[0].numel(), *features.stride()[1:])
            self._block = torch.empty_strided(shape, strides, dtype=features.dtype, device=features.device)
        self._kept[index] = self._block[place : place + 1].copy_(features)
