"""Images as tensors (uint8 N x 3 x H x W in memory, float32 in [0, 1] for the networks) and their augmentation."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from efficientad.data.images import resize_image


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> uint8 tensor 3 x H x W."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_unit_range(pixels: Tensor) -> Tensor:
    """uint8 images N x 3 x H x W -> float32 in [0, 1], in the channels_last order the networks prefer."""
    return pixels.to(torch.float32, memory_format=torch.channels_last).div_(255)


def to_square(image: Image.Image, size: int) -> Tensor:
    """RGB image -> uint8 tensor 3 x size x size, as every network of this size sees it."""
    return to_tensor(resize_image(image, size))


_SAME_LIGHT_SHARE = 0.2


class Changes(NamedTuple):
    """How N images are changed: two tensors N x 1 x 1 x 1 on the CPU."""

    kind: Tensor  # 0: brightness, 1: contrast, 2: saturation
    factor: Tensor


def draw_changes(count: int, generator: torch.Generator) -> Changes:
    """One kind of change for each image, and its own factor from U(0.8, 1.2) (section 3.3).

    Args:
        generator: on the CPU, so that a seed means the same on every device.
    """
    kind = torch.randint(0, 3, (count, 1, 1, 1), generator=generator)
    return Changes(kind, torch.empty(count, 1, 1, 1).uniform_(0.8, 1.2, generator=generator))


def draw_light(count: int, strongest: float, generator: torch.Generator) -> Changes:
    """A brightness for each image: a fifth stay as they are, the others' factors are log-uniform.

    Images get brighter only by the root of `strongest`, since clipped highlights are lost.

    Args:
        strongest: at least 1; factors are between 1 / strongest and its root.
        generator: on the CPU.
    """
    factor = torch.empty(count, 1, 1, 1)
    factor.uniform_(-math.log(strongest), math.log(strongest) / 2, generator=generator).exp_()
    unchanged = torch.rand(count, 1, 1, 1, generator=generator) < _SAME_LIGHT_SHARE
    return Changes(torch.zeros(count, 1, 1, 1), torch.where(unchanged, 1.0, factor))


def augment(images: Tensor, changes: Changes, whole: Tensor | None = None) -> Tensor:
    """Change the brightness, contrast or saturation of each image.

    Each blends the image with another one: black, its mean gray, or its gray version. The result is clamped to
    [0, 1], as by torchvision's adjust_brightness, adjust_contrast and adjust_saturation.

    Args:
        images: N x 3 x H x W, float32 in [0, 1].
        whole: the whole images of any size, if these are windows of them, whose mean gray then counts.
    """
    kind, factor = (values.to(images.device, non_blocking=images.is_cuda) for values in changes)
    gray = _grayscale(images)
    mean_gray = (gray if whole is None else _grayscale(whole)).mean(dim=(1, 2, 3), keepdim=True)
    other = torch.where(kind == 0, torch.zeros_like(gray), torch.where(kind == 1, mean_gray, gray))
    return (factor * images + (1 - factor) * other).clamp(0, 1)


def where_gray(images: Tensor, chosen: Tensor) -> Tensor:
    """N x 3 x S x S with the chosen images (N booleans) replaced by their gray versions."""
    chosen = chosen.view(-1, 1, 1, 1).to(images.device, non_blocking=images.is_cuda)
    return torch.where(chosen, _grayscale(images), images)


def _grayscale(images: Tensor) -> Tensor:
    """Luma as torchvision computes it: N x 3 x S x S -> N x 1 x S x S."""
    red, green, blue = images.unbind(dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def random_crops(
    pixels: Tensor, smallest: float, sizes: tuple[int, ...], generator: torch.Generator
) -> list[Tensor]:
    """A random crop of each image, mirrored half of the time, resized to each of `sizes`.

    Like torchvision's RandomResizedCrop: area from U(smallest, 1), aspect ratio from 3:4 to 4:3, antialiased.

    Args:
        pixels: N x 3 x S x S, uint8.
        smallest: share of the area; 1: the whole images, unchanged.
        generator: on the CPU.

    Returns:
        for each size N x 3 x size x size, float32 in [0, 1]: the same crops.
    """
    side = pixels.shape[-1]
    crops = []
    for image in pixels:
        if smallest < 1:
            area, shape, x, y, mirror = torch.rand(5, generator=generator).tolist()
            area = smallest + area * (1 - smallest)
            ratio = math.exp((2 * shape - 1) * math.log(4 / 3) / 2)  # width = side * sqrt(area) * ratio
            width, height = (min(side, round(side * math.sqrt(area) * part)) for part in (ratio, 1 / ratio))
            left, top = round(x * (side - width)), round(y * (side - height))
            image = image[:, top : top + height, left : left + width]
            image = image.flip(2) if mirror < 0.5 else image
        crops.append(image[None].float() / 255)
    return [torch.cat([_resize(crop, size) for crop in crops]) for size in sizes]


def _resize(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
