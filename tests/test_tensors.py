import numpy as np
import pytest
import torch
from PIL import Image

from efficientad.errors import UserError
from efficientad.images import resize_image
from efficientad.tensors import load_images, to_tensor, to_unit_range

GRADIENT = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_all_bad_images_are_named_at_once(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(60)]
    for index, path in enumerate(paths):
        if index % 2:
            path.write_text("text")
        else:
            Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(UserError, match="cannot read 30 images") as raised:
        load_images(paths, 8, 2)
    assert all(str(path) in str(raised.value) for path in paths[1::2])


def test_loaded_images_are_resized_rgb(tmp_path):
    Image.fromarray(GRADIENT).save(tmp_path / "a.png")
    pixels = load_images([tmp_path / "a.png"], 8, 0)
    assert pixels.shape == (1, 3, 8, 8) and pixels.dtype == torch.uint8
    expected = np.asarray(Image.fromarray(GRADIENT).resize((8, 8), Image.Resampling.BILINEAR))
    assert (pixels[0, 0].numpy() == expected).all()


def test_unit_range():
    pixels = to_unit_range(to_tensor(resize_image(Image.new("RGB", (3, 5), (255, 0, 51)), 2))[None])
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])
    assert pixels.dtype == torch.float32
