"""Decoded images, kept in memory as far as a budget goes and decoded again beyond it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from efficientad.drawn import DrawnImage
from efficientad.images import UnreadableImageError
from efficientad.stored_images import StoredImage
from efficientad.system.errors import UserError


class ImageCache:
    """Images by their index, as uint8 tensors of one size; safe to use from several threads.

    What is returned does not depend on the budget, only the time that it takes.
    """

    def __init__(
        self,
        stored: Sequence[StoredImage | DrawnImage],
        prepare: Callable[[Image.Image], Tensor],
        bytes_each: int,
        budget_bytes: float,
    ) -> None:
        """
        Args:
            prepare: makes the uint8 tensor of an upright RGB image.
            bytes_each: what such a tensor takes.
        """
        self._stored = stored
        self._prepare = prepare
        self._room = int(budget_bytes // bytes_each)
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
                image = self._prepare(self._stored[number].read()).contiguous()
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
