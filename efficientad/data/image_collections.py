"""Collections of natural images in folders and tar files, decoded once and kept in memory."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from efficientad.data.folders import find_images, is_image_name
from efficientad.data.formats import DESCRIPTION
from efficientad.data.images import UnreadableImageError, decode_image, read_bytes
from efficientad.system.errors import UserError


@dataclass(frozen=True)
class StoredImage:
    """An image file on disk, or a member of a tar file (then `offset` and `length` say where)."""

    path: Path
    offset: int = 0
    length: int = -1

    def read(self, decode: Callable[[bytes, str], Image.Image] = decode_image) -> Image.Image:
        """Decode it.

        Args:
            decode: makes the upright RGB image of the file's bytes and its name.

        Raises:
            UnreadableImageError
        """
        if self.length < 0:
            return decode(read_bytes(self.path), str(self.path))
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return decode(file.read(self.length), f"{self.path} at byte {self.offset}")


def find_stored_images(sources: Sequence[Path]) -> list[StoredImage]:
    """Every image in the given folders (at any depth, also in tar files there) and tar files.

    Raises:
        UserError: a source that does not exist, is a compressed or damaged tar file or one of tar files, or has no
            image.
    """
    stored: list[StoredImage] = []
    for source in sources:
        if source.is_dir():
            found = [StoredImage(path) for path in find_images(source)]
            for tar in sorted(source.rglob("*.tar")):
                found += _list_tar(tar)
        elif source.suffix == ".tar":
            found = _list_tar(source)
        elif not source.exists():
            raise UserError(f"{source}: no such file or folder of images")
        else:
            raise UserError(f"{source}: neither a folder nor an uncompressed .tar file of images")
        if not found:
            raise UserError(f"{source}: holds no images ({DESCRIPTION})")
        stored += found
    return stored


def _list_tar(path: Path) -> list[StoredImage]:
    try:
        with tarfile.open(path, "r:") as tar:
            files = [member for member in tar if member.isfile()]
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: not a readable, uncompressed tar file ({error})") from error
    inner = [member.name for member in files if member.name.endswith((".tar", ".tar.gz", ".tgz"))]
    if inner:
        count = f"{len(inner)} tar files" if len(inner) > 1 else "a tar file"
        raise UserError(f"{path} holds {count}, {inner[0]} for one; unpack it once, and give the folder instead")
    return [
        StoredImage(path, member.offset_data, member.size)
        for member in files
        if is_image_name(Path(member.name).name)
    ]


class ReadableImage(Protocol):
    """An image that is read on demand: a file, a member of a tar file, or a drawn one.

    Attributes:
        path: for messages.
    """

    @property
    def path(self) -> Path: ...

    def read(self) -> Image.Image:
        """The upright RGB image."""


class ImageCache:
    """Images by index, as uint8 tensors of one size; safe to use from several threads.

    The memory budget changes the time that reading takes, never the result.
    """

    def __init__(
        self,
        stored: Sequence[ReadableImage],
        prepare: Callable[[Image.Image], Tensor],
        bytes_each: int,
        budget_bytes: float,
    ) -> None:
        """
        Args:
            prepare: makes the uint8 tensor of an upright RGB image.
            bytes_each: the size of such a tensor.
        """
        self._stored = stored
        self._prepare = prepare
        self._room = int(budget_bytes // bytes_each)
        self._kept: dict[int, Tensor] = {}
        self._reported: set[int] = set()

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> Tensor:
        """Image `index`, or the next readable one in its place; prints the unreadable ones once.

        Raises:
            UserError: no image is readable.
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
                    tqdm.write(f"Skipped {error}")
        else:
            raise UserError(f"none of the {len(self)} images can be read, for example {self._stored[0].path}")
        if len(self._kept) < self._room:
            self._kept[index] = image
        return image
