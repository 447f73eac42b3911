import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import fill_folder
from efficientad.data.image_collections import find_stored_images
from efficientad.system.errors import UserError
from efficientad.training.penalty_images import (
    SIDE,
    DrawnImage,
    crop_centre_half,
    find_penalty_images,
    penalty_batches,
)


@pytest.fixture
def tar_of_images(tmp_path):
    fill_folder(tmp_path / "loose", 3, suffix=".webp")
    path = tmp_path / "natural.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "loose", "natural")
    return path


def test_tar_members_equal_their_files(tar_of_images, tmp_path):
    from_tar = find_stored_images([tar_of_images])
    from_folder = find_stored_images([tmp_path / "loose"])
    assert len(from_tar) == len(from_folder) == 3
    for left, right in zip(from_tar, from_folder, strict=True):
        assert left.read().tobytes() == right.read().tobytes()


def test_folder_with_tars_and_images_gives_both(tar_of_images, tmp_path):
    assert len(find_stored_images([tmp_path])) == 6
    assert find_stored_images([]) == []


def test_bad_sources_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.tar").write_text("no tar file at all")
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz"):
        pass
    with tarfile.open(tmp_path / "imagenet.tar", "w") as tar:
        tar.add(tmp_path / "broken.tar", "n01440764.tar")
        tar.add(tmp_path / "broken.tar", "n01443537.tar")
    for name, message in (
        ("missing", "no such file"),
        ("imagenet.tar", "holds 2 tar files, n01440764.tar for one; unpack it once, and give the folder"),
        ("empty", "holds no images"),
        ("broken.tar", "not a readable, uncompressed tar"),
        ("packed.tar.gz", "neither a folder nor an uncompressed .tar"),
    ):
        with pytest.raises(UserError, match=f"{name}.*{message}"):
            find_stored_images([tmp_path / name])


@pytest.mark.parametrize("size", [(320, 427), (1000, 300), (91, 77)])
def test_penalty_crop_is_the_centre_of_512(size):
    """One resize of the centre gives what the paper's two operations give, but for rounding."""
    image = Image.effect_noise(size, 80).convert("RGB")
    doubled = image.resize((512, 512), Image.Resampling.BILINEAR).crop((128, 128, 384, 384))
    ours = crop_centre_half(image, 256).permute(1, 2, 0).numpy()
    difference = np.abs(ours.astype(int) - np.asarray(doubled).astype(int))
    assert difference.max() <= 1


def test_batches_are_endless_shuffled_and_seeded(tmp_path):
    for level in range(5):
        Image.new("RGB", (8, 8), (40 * level,) * 3).save(tmp_path / f"{level}.png")
    images = find_penalty_images([tmp_path])

    def levels(seed, budget=0):
        batches = penalty_batches(images, 2, 16, budget, 2, seed)
        seen = [int(value) for _ in range(5) for value in next(batches)[:, 0, 0, 0] // 40]
        batches.close()
        return seen

    assert sorted(levels(0)[:5]) == sorted(levels(0)[5:]) == [0, 1, 2, 3, 4]
    assert levels(0) == levels(0) != levels(1)
    assert levels(0, budget=1e6) == levels(0)


def test_unreadable_natural_images_are_passed_over(tmp_path, capsys):
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "fine.png")
    (tmp_path / "bad.png").write_text("text")
    batch = next(penalty_batches(find_penalty_images([tmp_path]), 40, 8, 1e6, 0, seed=0))
    assert batch.shape == (40, 3, 8, 8) and (batch == 9).all()
    assert capsys.readouterr().out.count("bad.png") == 1


def test_nothing_but_unreadable_natural_images_is_an_error(tmp_path):
    (tmp_path / "bad.png").write_text("text")
    with pytest.raises(UserError, match="none of the 1 images"):
        next(penalty_batches(find_penalty_images([tmp_path]), 2, 8, 0, 0, seed=0))


def test_drawn_images_are_always_the_same_and_all_different():
    first, again, other = (DrawnImage(number).read() for number in (3, 3, 4))
    assert first.mode == "RGB" and first.size == (SIDE, SIDE)
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_drawn_images_have_edges_colours_and_a_falling_spectrum():
    """Without them the student would learn to be silent on flat images, or on noise."""
    images = np.stack([np.asarray(DrawnImage(number).read(), dtype=float) for number in range(60)])
    assert images.std(axis=(1, 2)).mean() > 15
    assert np.abs(images[..., 0] - images[..., 2]).mean() > 20
    gray = images.mean(axis=3)
    power = (np.abs(np.fft.fft2(gray - gray.mean(axis=(1, 2), keepdims=True))) ** 2).mean(axis=0)
    frequencies = np.fft.fftfreq(SIDE)
    distances = np.hypot(frequencies[:, None], frequencies)
    octaves = [power[(distances >= low) & (distances < 2 * low)].mean() for low in (1 / 64, 1 / 32, 1 / 16, 1 / 8)]
    assert octaves == sorted(octaves, reverse=True) and octaves[0] > 10 * octaves[-1]


def test_words_in_place_of_paths():
    assert str(find_penalty_images([Path("none")])) == "off"
    drawn = find_penalty_images([Path("drawn")])
    assert str(drawn) == "1000 drawn images"
    batch = next(penalty_batches(drawn, 2, 64, 0, 0, seed=0))
    assert batch.shape == (2, 3, 64, 64) and batch.float().std() > 5
    with pytest.raises(UserError, match='"none" cannot go with other images'):
        find_penalty_images([Path("none"), Path("drawn")])
