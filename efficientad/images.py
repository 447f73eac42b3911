"""Images from disk: one way to read them for training and evaluation, in parallel.

Knows nothing of data sets and classes. Pixels leave this module as RGB uint8.
"""

from __future__ import annotations

import io
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from efficientad.errors import UserError, list_files

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif"})

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class UnreadableImageError(Exception):
    """One file cannot be decoded as an image; the message names it."""


def is_image_name(name: str) -> bool:
    """Whether a file of this name should hold an image: a usual suffix in any letter case, not hidden."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def is_data_folder(name: str) -> bool:
    """Whether a folder of this name is data: not hidden, and not what zip tools of macOS leave."""
    return not name.startswith(".") and name != "__MACOSX"


def find_images(folder: Path) -> list[Path]:
    """Every image under `folder` at any depth, in an order that does not depend on the file system.

    Hidden files, and folders that are no data, are passed over.

    Raises:
        OSError: a folder below cannot be listed.
    """

    def fail(error: OSError) -> None:  # os.walk would pass over it in silence
        raise error

    found = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = filter(is_data_folder, folders)
        found += [Path(parent, name) for name in names if is_image_name(name)]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode an image file's bytes to upright 8-bit RGB, the same way whatever the file's mode is.

    EXIF rotation is applied; transparency goes on black; gray is repeated in the three channels. 16-bit
    values are divided by 257 and floats taken as [0, 1], both clipped: never stretched by the image's own
    range, so that equal light gives equal pixels. Of an animation the first frame counts.

    Raises:
        UnreadableImageError: not an image, damaged, or too large to be a photograph.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise almost any type on damaged files
        raise UnreadableImageError(f"{name}: {_reason(data, error)}") from error


def _reason(data: bytes, error: Exception) -> str:
    if not data:
        return "empty file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or damaged"
    return str(error) or type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        return _from_unit_range(np.asarray(image))
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_unit_range(np.asarray(image).astype(np.float32) / 65535)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, rgba).convert("RGB")
    return image.convert("RGB")


def _from_unit_range(gray: np.ndarray) -> Image.Image:
    levels = np.rint(np.clip(np.nan_to_num(gray), 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(levels).convert("RGB")


def read_image(path: Path) -> Image.Image:
    """Read a file as upright 8-bit RGB; see decode_image.

    Raises:
        UnreadableImageError: also when the file cannot be opened.
    """
    return decode_image(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """The file's bytes, or UnreadableImageError naming it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(f"{path}: {error.strerror}") from error


def resize_image(image: Image.Image, size: int) -> Image.Image:
    """Resize to size x size, bilinear with antialiasing; the aspect ratio is ignored, as in the paper."""
    return image.resize((size, size), Image.Resampling.BILINEAR)


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> uint8 tensor 3 x H x W."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_unit_range(pixels: Tensor) -> Tensor:
    """uint8 images N x 3 x H x W -> float32 in [0, 1], in the channels_last order the networks prefer."""
    return pixels.to(torch.float32, memory_format=torch.channels_last) / 255


def parallel_map(function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int) -> Iterator[_Result]:
    """map() with `workers` threads, in order, never more than a few results ahead of the consumer.

    0 workers means no threads. `items` may be endless. An exception of `function` is raised in its turn.
    """
    if workers == 0:
        yield from map(function, items)
        return
    remaining = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        ahead = deque(pool.submit(function, item) for item in itertools.islice(remaining, 2 * workers))
        try:
            while ahead:
                result = ahead.popleft().result()
                ahead.extend(pool.submit(function, item) for item in itertools.islice(remaining, 1))
                yield result
        finally:  # the consumer may stop early
            for future in ahead:
                future.cancel()


def load_images(paths: Sequence[Path], size: int, workers: int) -> Tensor:
    """Decode and resize every image, once: uint8 tensor N x 3 x size x size.

    Raises:
        UserError: naming every file that cannot be read, not only the first.
    """

    def load(path: Path) -> Tensor | str:
        try:
            return to_tensor(resize_image(read_image(path), size))
        except UnreadableImageError as error:
            return str(error)

    pixels = torch.empty((len(paths), 3, size, size), dtype=torch.uint8)
    unreadable = []
    loaded = tqdm(parallel_map(load, paths, workers), desc="Reading images", total=len(paths), unit="image")
    for index, image in enumerate(loaded):
        if isinstance(image, str):
            unreadable.append(image)
        else:
            pixels[index] = image
    raise_if_unreadable(unreadable)
    return pixels


def raise_if_unreadable(problems: Sequence[str]) -> None:
    """End the command, naming every unreadable file, if there is one."""
    if problems:
        count = f"{len(problems)} images" if len(problems) > 1 else "1 image"
        raise UserError(f"cannot read {count}; repair, replace or remove:{list_files(problems)}")
