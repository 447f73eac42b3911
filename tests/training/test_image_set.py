"""The images of a training: all checked, some kept, none different for it."""

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import fill_folder
from efficientad.data.views import View
from efficientad.system.errors import UserError
from efficientad.training.cache import ImageSet

CPU = torch.device("cpu")
ONE_IMAGE = 3 * 32 * 32


def test_the_first_bad_images_are_named_at_once(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(60)]
    for index, path in enumerate(paths):
        if index % 2:
            path.write_text("text")
        else:
            Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(UserError, match="cannot read 30 images") as raised:
        ImageSet(paths, View(8, 8), 0, 2, CPU)
    assert all(str(path) in str(raised.value) for path in paths[1:20:2]) and "21.png" not in str(raised.value)
    assert "... and 20 more; --on_error skip of train.py" in str(raised.value)


def test_images_are_resized_rgb(tmp_path):
    gradient = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(gradient).save(tmp_path / "a.png")
    ((indices, pixels, _),) = ImageSet([tmp_path / "a.png"], View(8, 8), 1e6, 0, CPU).batches([torch.tensor([0])])
    assert indices.tolist() == [0] and pixels.shape == (1, 3, 8, 8) and pixels.dtype == torch.uint8
    expected = np.asarray(Image.fromarray(gradient).resize((8, 8), Image.Resampling.BILINEAR))
    assert (pixels[0, 0].numpy() == expected).all()


@pytest.mark.parametrize("budget", [0, 2.5 * ONE_IMAGE])
@pytest.mark.parametrize("workers", [0, 3])
def test_a_budget_changes_nothing_but_memory(tmp_path, budget, workers):
    fill_folder(tmp_path / "set", 7)
    paths = sorted((tmp_path / "set").iterdir())
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0)).split(3) * 2
    kept = ImageSet(paths, View(32, 32), 1e9, workers, CPU)
    streamed = ImageSet(paths, View(32, 32), budget, workers, CPU)
    assert (kept.kept_bytes, streamed.kept_bytes) == (7 * ONE_IMAGE, int(budget // ONE_IMAGE) * ONE_IMAGE)
    for one, other in zip(kept.batches(order), streamed.batches(order), strict=True):
        assert torch.equal(one.indices, other.indices) and torch.equal(one.pixels, other.pixels)


def test_a_file_that_vanishes_later_is_named(tmp_path):
    fill_folder(tmp_path / "set", 2)
    images = ImageSet(sorted((tmp_path / "set").iterdir()), View(32, 32), ONE_IMAGE, 0, CPU)
    (tmp_path / "set" / "001.png").unlink()
    with pytest.raises(UserError, match="001.png: No such file"):
        list(images.batches([torch.tensor([0, 1])]))
