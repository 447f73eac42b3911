"""Images as tensors: uint8 N x 3 x S x S in memory, float32 in [0, 1] for the networks."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from efficientad.images import resize_image


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> uint8 tensor 3 x H x W."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_unit_range(pixels: Tensor) -> Tensor:
    """uint8 images N x 3 x H x W -> float32 in [0, 1], in the channels_last order the networks prefer."""
    return pixels.to(torch.float32, memory_format=torch.channels_last) / 255


def to_square(image: Image.Image, size: int) -> Tensor:
    """RGB image -> uint8 tensor 3 x size x size, as every network of this size sees it."""
    return to_tensor(resize_image(image, size))
