"""The images of a training: decoded and resized once, all of them checked, and kept as far as a budget goes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from efficientad.data.images import UnreadableImageError, raise_if_unreadable, read_image
from efficientad.data.transforms import to_square
from efficientad.system.distributed import rank
from efficientad.system.parallel import parallel_map


class ImageSet:
    """Images of one square size by their index: uint8, 3 x size x size.

    The first ones are kept in memory, on the device that will use them; those beyond the budget are decoded
    again, a little ahead. What is returned does not depend on the budget.

    Attributes:
        digests: of every image as it is returned, to find out whether it has changed.
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
            UserError: naming every file that cannot be read, not only the first.
        """
        self._paths, self._size, self._workers = paths, size, workers
        room = min(len(paths), int(budget_bytes // (3 * size * size)))
        self._kept = torch.empty((room, 3, size, size), dtype=torch.uint8, device=device)
        self.digests: list[str] = []
        unreadable = []
        read = parallel_map(self._try_to_read, range(len(paths)), workers)
        bar = tqdm(read, desc=f"Reading {kind}", total=len(paths), unit="image", disable=rank() > 0)
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
        """What the set takes in memory."""
        return self._kept.numel()

    def batches(self, order: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each tensor of indices, itself and those images, uint8, N x 3 x size x size, on the set's device.

        Args:
            order: may be endless; drawn from a little ahead where files have to be read.

        Raises:
            UserError: a file can no longer be read.
        """
        streams = len(self._kept) < len(self)
        return parallel_map(self._load, order, self._workers if streams else 0)

    def _load(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        images = [self._kept[i] if i < len(self._kept) else self._read_again(i) for i in indices.tolist()]
        # A rank may have no part in a short batch
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
    rows = image.permute(1, 2, 0).contiguous()  # the order that images are decoded in: nothing is copied
    return hashlib.sha256(rows.numpy()).hexdigest()[:16]
