"""The training images and the teacher's features, kept in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from efficientad.data.images import UnreadableImageError, raise_if_unreadable
from efficientad.data.transforms import to_unit_range
from efficientad.data.views import View
from efficientad.detector.grid import Cells
from efficientad.detector.model import EfficientAD
from efficientad.detector.networks import FEATURE_CHANNELS, apply_pdn
from efficientad.system.devices import autocast
from efficientad.system.distributed import from_first_rank, rank, ranks
from efficientad.system.parallel import parallel_map
from efficientad.system.progress_bars import progress_bar


class ImageBatch(NamedTuple):
    """Some images of a set, by their indices."""

    indices: Tensor  # N, on the CPU
    pixels: Tensor  # uint8, N x 3 x H x W, on the set's device
    inspected: Tensor | None  # bools, N x H x W, on the set's device: which pixels count; None: all

    def to(self, device: torch.device) -> ImageBatch:
        """The same on another device."""
        at_once = device.type == "cuda"  # a copy to a GPU of Apple would read memory that may be free by then
        inspected = None if self.inspected is None else self.inspected.to(device, non_blocking=at_once)
        return ImageBatch(self.indices, self.pixels.to(device, non_blocking=at_once), inspected)


class ImageSet:
    """Images by their index, as one view shows them.

    The first ones are kept in memory, on the device that will use them; those beyond the budget are decoded again,
    a little ahead. The images do not depend on the budget.

    Attributes:
        digests: of every image as returned, to detect changes.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        view: View,
        budget_bytes: float,
        workers: int,
        device: torch.device,
        kind: str = "images",
    ) -> None:
        """Decode every image once.

        Args:
            view: of the images, H x W.
            budget_bytes: for the images kept, 3 * H * W bytes each.
            workers: threads that decode.
            kind: of images, for the progress bar.

        Raises:
            UserError: naming all unreadable files.
        """
        self._paths, self._view, self._workers = paths, view, workers
        room = min(len(paths), int(budget_bytes // (3 * view.height * view.width)))
        self._kept = torch.empty((room, 3, *view.size), dtype=torch.uint8, device=device)
        self._sizes: list[tuple[int, int]] = []  # of the images themselves: width and height
        self.digests: list[str] = []
        unreadable = []
        read = parallel_map(self._try_to_read, range(len(paths)), workers)
        bar = progress_bar(read, desc=f"Reading {kind}", total=len(paths), unit="image", disable=rank() > 0)
        for index, image in enumerate(bar):
            if isinstance(image, str):
                unreadable.append(image)
                continue
            pixels, size = image
            self._sizes.append(size)
            self.digests.append(_digest(pixels))
            if index < room:
                self._kept[index] = pixels
        raise_if_unreadable(unreadable)

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def kept_bytes(self) -> int:
        """The memory that the set takes."""
        return self._kept.numel()

    def batches(self, order: Iterable[Tensor]) -> Iterator[ImageBatch]:
        """The images of each tensor of indices.

        Args:
            order: may be endless; consumed a little ahead where files have to be read.

        Raises:
            UserError: a file can no longer be read.
        """
        streams = len(self._kept) < len(self)
        return parallel_map(self._load, order, self._workers if streams else 0)

    def _load(self, indices: Tensor) -> ImageBatch:
        images = [self._kept[i] if i < len(self._kept) else self._read_again(i) for i in indices.tolist()]
        if not images:  # a process may have no part in a short batch
            images = self._kept.new_empty((0, *self._kept.shape[1:]))
        pixels = torch.stack(images) if isinstance(images, list) else images
        if self._view.counts_everywhere:
            return ImageBatch(indices, pixels, None)
        inspected = [self._view.inspected(self._sizes[i]) for i in indices.tolist()]
        inspected = torch.stack(inspected) if inspected else torch.empty((0, *self._view.size), dtype=torch.bool)
        return ImageBatch(indices, pixels, inspected.to(pixels.device))

    def _read_again(self, index: int) -> Tensor:
        image = self._try_to_read(index)
        if isinstance(image, str):
            raise_if_unreadable([image])
        return image[0].to(self._kept.device)

    def _try_to_read(self, index: int) -> tuple[Tensor, tuple[int, int]] | str:
        """The pixels and the image's own size, or what is wrong with it."""
        try:
            return self._view.read(self._paths[index])
        except UnreadableImageError as error:
            return str(error)


def _digest(image: Tensor) -> str:
    rows = image.permute(1, 2, 0).contiguous()  # as decoded: nothing is copied
    return hashlib.sha256(rows.numpy()).hexdigest()[:16]


_BLOCK = 64  # images whose features are kept in one piece; one by one they would fragment the memory


class TeacherFeatures:
    """Raw outputs of a model's teacher by image index, kept in float16 as far as a budget goes.

    Those of the first images are kept, whole. All are rounded to float16, kept or not, and every image is computed
    on its own, so the budget changes only the time (and in bf16 sometimes the last digit of a window, which is
    rounded otherwise than the whole image). Before rounding they are shifted and scaled by the statistics of the
    first image or tile (of the first process), so that float16 suits them.
    """

    def __init__(self, model: EfficientAD, budget_bytes: float, device: torch.device, precision: str) -> None:
        self._model, self._device, self._precision = model, device, precision
        self._room = int(budget_bytes // (2 * FEATURE_CHANNELS * model.grid[0] * model.grid[1]))
        self._kept: dict[int, Tensor] = {}  # parts of blocks
        self._block: Tensor | None = None  # the one that is being filled
        self._shift: Tensor | None = None
        self._scale: Tensor | None = None

    def __len__(self) -> int:
        """The number of images whose features are kept."""
        return len(self._kept)

    @torch.no_grad()
    def __call__(self, indices: Tensor, pixels: Tensor, windows: Sequence[Cells] | None = None) -> Tensor:
        """The teacher's output, not yet normalized: N x 384 x the grid, or its windows, float32.

        Args:
            indices: of the images, on the CPU.
            pixels: uint8, N x 3 x H x W, on the device.
            windows: one for each image, at least one, all of one size; None: the whole grid.
        """
        features = [
            self._of(index, pixels[place : place + 1], windows[place] if windows else None)
            for place, index in enumerate(indices.tolist())
        ]
        if not features:  # a process that has no part in a short batch
            size = windows[0][2:] if windows else self._model.grid
            return torch.empty((0, FEATURE_CHANNELS, *size), device=self._device)
        return torch.cat(features).float() * self._scale + self._shift

    def state(self) -> dict[str, Tensor]:
        """The statistics of the first image, on which the rounding of all depends."""
        return {"shift": self._shift, "scale": self._scale}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Round as the features whose `state` this is."""
        self._shift, self._scale = (state[name].to(self._device) for name in ("shift", "scale"))

    def _of(self, index: int, image: Tensor, cells: Cells | None) -> Tensor:
        if index not in self._kept and index < self._room:
            self._keep(index, image)
        if index not in self._kept:
            return self._compute(image, cells)
        kept = self._kept[index]
        return kept if cells is None else kept[..., cells.slices[0], cells.slices[1]]

    def _compute(self, image: Tensor, cells: Cells | None) -> Tensor:
        with autocast(self._device, self._precision):
            if cells is None:
                seen = self._model.cut(to_unit_range(image))
            else:
                seen = to_unit_range(self._model.cut(image, cells))
            raw = apply_pdn(self._model.teacher, self._model.normalize(seen)).float()
        if self._shift is None:
            self._shift = raw.mean(dim=(2, 3), keepdim=True)
            spread, size = ((raw - self._shift).square().mean().sqrt(), raw.square().mean().sqrt())
            # An image without structure says little about the spread of others; 65,504 is float16's limit
            scale = torch.maximum(spread, size / 1000)
            self._scale = torch.where(scale > 0, scale, torch.ones_like(scale))
            from_first_rank(self._shift)
            from_first_rank(self._scale)
        return ((raw - self._shift) / self._scale).half()

    def _keep(self, index: int, image: Tensor) -> None:
        tiles = self._model.tiles()
        first = self._compute(image, tiles[0] if len(tiles) > 1 else None)
        place = len(self._kept) % _BLOCK
        if place == 0:
            shape = (min(_BLOCK, self._room - len(self._kept)), *self._model.grid, FEATURE_CHANNELS)
            block = torch.empty(shape, dtype=first.dtype, device=first.device)
            self._block = block.permute(0, 3, 1, 2)  # as the convolutions leave them
        kept = self._block[place : place + 1]
        for cells in tiles:
            some = first if cells is tiles[0] else self._compute(image, cells)
            kept[..., cells.slices[0], cells.slices[1]] = some
        self._kept[index] = kept


class Tile(NamedTuple):
    """What the teacher says of an image, or of a part of it."""

    features: Tensor  # 1 x 384 x cells, normalized, float32
    cells: Cells
    counted: Tensor | None  # bools, 1 x 1 x cells; None: all


def features_of_each(
    model: EfficientAD, images: ImageSet, indices: range, teacher_features: TeacherFeatures, description: str
) -> Iterator[tuple[ImageBatch, Iterator[Tile]]]:
    """This process's share of the images, one by one on the model's device, with their tiles one after another.

    Args:
        model: with the teacher's statistics.
        description: of the progress bar.
    """
    share = torch.tensor(indices[rank() :: ranks()])
    order = share.split(1) if len(share) else []
    bar = progress_bar(images.batches(order), description, len(order), unit="image", disable=rank() > 0)
    for batch in bar:
        batch = batch.to(model.quantiles.device)
        yield batch, _tiles_of(model, batch, teacher_features)


def _tiles_of(model: EfficientAD, batch: ImageBatch, teacher_features: TeacherFeatures) -> Iterator[Tile]:
    tiles = model.tiles()
    counted = None if batch.inspected is None else model.counted(batch.inspected)
    for cells in tiles:
        raw = teacher_features(batch.indices, batch.pixels, None if len(tiles) == 1 else [cells])
        some = None if counted is None else counted[(..., *cells.slices)]
        yield Tile(model.normalize_features(raw), cells, some)
