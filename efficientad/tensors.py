"""Images as tensors: uint8 N x 3 x S x S in memory, float32 in [0, 1] for the networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from efficientad.images import UnreadableImageError, raise_if_unreadable, read_image, resize_image
from efficientad.parallel import parallel_map


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> uint8 tensor 3 x H x W."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_unit_range(pixels: Tensor) -> Tensor:
    """uint8 images N x 3 x H x W -> float32 in [0, 1], in the channels_last order the networks prefer."""
    return pixels.to(torch.float32, memory_format=torch.channels_last) / 255


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
