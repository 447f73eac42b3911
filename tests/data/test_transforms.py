import pytest
import torch
from PIL import Image

from efficientad.data.transforms import to_square, to_unit_range


def test_unit_range():
    pixels = to_unit_range(to_square(Image.new("RGB", (3, 5), (255, 0, 51)), 2)[None])
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])
    assert pixels.dtype == torch.float32
