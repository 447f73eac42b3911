"""Decoded images, kept in memory as far as a budget goes and decoded again beyond it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from tqdm import tqdm

from efficientad.errors import UserError
from efficientad.images import UnreadableImageError, resize_image
from efficientad.natural import StoredImage
from efficientad.tensors import to_tensor


class ImageCache:
    """Images of one square size by their index, uint8, 3 x size x size; safe to use from several threads.

    What is returned does not depend on the budget, only the time that it takes.
    """

    def __init__(self, stored: Sequence[StoredImage], size: int, budget_bytes: float) -> None:
        """
        Args:
            size: side in pixels; the aspect ratio is ignored, as in the paper.
            budget_bytes: for the decoded images, size * size * 3 bytes each.
        """
        self._stored = stored
        self._size = size
        self._room = int(budget_bytes // (3 * size * size))
        self._kept: dict[int, Tensor] = {}
        self._reported: set[int] = set()

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> Tensor:
        """Image `index`, or the next readable one in its place, with a line that names the unreadable.

        Raises:
            UserError: no image at all is readable.
        """
        if index in self._kept:
            return self._kept[index]
        for number in [*range(index, len(self)), *range(index)]:
            try:
                image = to_tensor(resize_image(self._stored[number].read(), self._size)).contiguous()
                break
            except UnreadableImageError as error:
                if number not in self._reported:
                    self._reported.add(number)
                    tqdm.write(f"passed over {error}")
        else:
            raise UserError(f"none of the {len(self)} images can be read, {self._stored[0].path} for one")
        if len(self._kept) < self._room:
            self._kept[index] = image
        return image
