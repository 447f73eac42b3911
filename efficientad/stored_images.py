"""Images in folders and in tar files, found once and read when needed. Imports no torch."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from efficientad.images import IMAGE_SUFFIXES, decode_image, find_images, is_image_name, read_image
from efficientad.system.errors import UserError


@dataclass(frozen=True)
class StoredImage:
    """An image file on disk, or a member of a tar file (then `offset` and `length` say where)."""

    path: Path
    offset: int = 0
    length: int = -1

    def read(self) -> Image.Image:
        """Decode it; see decode_image.

        Raises:
            UnreadableImageError
        """
        if self.length < 0:
            return read_image(self.path)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return decode_image(file.read(self.length), f"{self.path} at byte {self.offset}")


def find_stored_images(sources: Sequence[Path]) -> list[StoredImage]:
    """Every image in the given folders (any depth, tar files in them included), tar files and image files.

    Raises:
        UserError: a source that does not exist, is a compressed or damaged tar file, or holds no image.
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
            raise UserError(f"{source}: neither a folder nor a plain .tar file of images")
        if not found:
            raise UserError(f"{source}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        stored += found
    return stored


def _list_tar(path: Path) -> list[StoredImage]:
    try:
        with tarfile.open(path, "r:") as tar:
            return [
                StoredImage(path, member.offset_data, member.size)
                for member in tar
                if member.isfile() and is_image_name(Path(member.name).name)
            ]
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: not a readable, uncompressed tar file ({error})") from error
