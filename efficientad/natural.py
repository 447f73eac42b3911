"""Natural images, from folders and tar files, as an endless stream: for the penalty of the training.

Sources may be far larger than memory, so images are decoded as they are needed, a little ahead.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from efficientad.errors import UserError
from efficientad.images import (
    IMAGE_SUFFIXES,
    UnreadableImageError,
    decode_image,
    find_images,
    is_image_name,
    read_image,
)
from efficientad.parallel import parallel_map
from efficientad.tensors import to_tensor


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


def crop_centre_half(image: Image.Image, size: int) -> Tensor:
    """Resize to (2 size) x (2 size) and cut out the central size x size, as one resize: uint8 3 x size x size.

    The paper's penalty images (section 3.2): 512 x 512, then the central 256 x 256.
    """
    width, height = image.size
    centre = (width / 4, height / 4, width * 3 / 4, height * 3 / 4)
    return to_tensor(image.resize((size, size), Image.Resampling.BILINEAR, box=centre))


def natural_batches(
    stored: Sequence[StoredImage], batch_size: int, size: int, workers: int, seed: int
) -> Iterator[Tensor]:
    """Endless uint8 batches, batch_size x 3 x size x size, every image once before any comes again.

    An unreadable image is passed over, with a line that names it: one in a million must not end a long training.

    Raises:
        UserError: no image at all is readable.
    """

    def load(image: StoredImage) -> Tensor | str:
        try:
            return crop_centre_half(image.read(), size)
        except UnreadableImageError as error:
            return str(error)

    batch: list[Tensor] = []
    reported: set[str] = set()
    failed_in_a_row = 0
    for image in parallel_map(load, _shuffled_forever(stored, seed), workers):
        if isinstance(image, str):
            if image not in reported:
                tqdm.write(f"passed over {image}")
                reported.add(image)
            failed_in_a_row += 1
            if failed_in_a_row > 2 * len(stored):
                raise UserError(f"none of the {len(stored)} natural images can be read, {stored[0].path} for one")
            continue
        failed_in_a_row = 0
        batch.append(image)
        if len(batch) == batch_size:
            yield torch.stack(batch)
            batch = []


def _shuffled_forever(stored: Sequence[StoredImage], seed: int) -> Iterator[StoredImage]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(stored), generator=generator).tolist():
            yield stored[index]
