"""Byte-identical files among the good images."""

import shutil

import pytest
import torch

from conftest import draw_part, fill_folder
from efficientad.data import copies
from efficientad.data.copies import group_copies
from efficientad.data.datasets import Dataset, find_training_images, split_validation
from efficientad.system.errors import UserError


def write(folder, *contents):
    paths = [folder / f"{number}.png" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def test_groups_of_copies(tmp_path):
    paths = write(tmp_path, b"ab", b"cd", b"ab", b"abc", b"", b"", b"cd", b"ab")
    paths.insert(1, tmp_path / "gone.png")
    assert group_copies(paths) == [[0, 3, 8], [1], [2, 7], [4], [5], [6]]
    assert group_copies([]) == []


def test_only_files_of_equal_size_and_middle_are_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(copies, "read_bytes", lambda path: read.append(path) or path.read_bytes())
    middle = bytes(10_000)
    paths = write(tmp_path, b"a" + middle, b"bb" + middle, b"dd" + middle, b"e" + bytes(5000) + b"f" + bytes(5000))
    assert len(group_copies(paths)) == 4
    assert sorted(read) == [paths[1], paths[2]]


@pytest.mark.parametrize("count", [2, 7, 20, 55])
@pytest.mark.parametrize("seed", range(5))
def test_the_split_of_different_images_knows_nothing_of_copies(tmp_path, count, seed):
    """The first tenth of a random permutation."""
    paths = [tmp_path / str(index) for index in range(count)]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    expected = sorted(order[: max(1, round(0.1 * count))])
    for groups in ([], [[index] for index in range(count)]):
        split = split_validation(paths, seed, groups)
        assert split.validation == [paths[index] for index in expected]
        assert sorted([*split.train, *split.validation]) == sorted(paths)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("sizes", [(2, 2), (3, 1), (1,) * 15 + (5,), (3,) * 10, (9, 9, 9, 3), (2,) * 30 + (1,)])
def test_copies_are_never_on_both_sides(tmp_path, sizes, seed):
    paths = [tmp_path / str(index) for index in range(sum(sizes))]
    numbers = iter(range(len(paths)))
    groups = [[next(numbers) for _ in range(size)] for size in sizes]
    held_out = {paths.index(path) for path in split_validation(paths, seed, groups).validation}
    assert all(held_out.isdisjoint(group) or held_out.issuperset(group) for group in groups)
    wanted = max(1, round(len(paths) / 10))
    assert 0 < len(held_out) <= max(wanted, min(sizes)) < len(paths)


def copy_images(folder, times):
    for path in sorted(folder.iterdir()):
        for number in range(times):
            shutil.copy(path, path.with_stem(f"{path.stem}_{number}"))


def test_copies_of_one_image_only_are_refused(tmp_path):
    fill_folder(tmp_path / "train" / "good", 1)
    copy_images(tmp_path / "train" / "good", 5)
    with pytest.raises(UserError, match="the 6 images in .*good are copies of one image; training needs"):
        find_training_images(Dataset("custom", tmp_path), 42)
    shutil.copytree(tmp_path / "train", tmp_path / "validation")
    with pytest.raises(UserError, match="the 12 images in .*good are copies of one image"):
        find_training_images(Dataset("custom", tmp_path), 42)


def test_copies_are_told_if_they_are_more_than_a_tenth(tmp_path):
    good = tmp_path / "train" / "good"
    fill_folder(good, 18)
    shutil.copy(good / "003.png", good / "copy_0.png")
    shutil.copy(good / "003.png", good / "copy_1.png")
    assert find_training_images(Dataset("custom", tmp_path), 42).notes == []
    shutil.copy(good / "005.png", good / "copy_2.png")
    assert find_training_images(Dataset("custom", tmp_path), 42).notes == [
        f"3 of the 21 good images are copies of others, for example {good / 'copy_0.png'} of {good / '003.png'}; "
        "there is no more to learn than from the other 18"
    ]
    for seed in range(20):
        split = find_training_images(Dataset("custom", tmp_path), seed)
        for side in (split.train, split.validation):
            names = {path.name for path in side}
            assert len(names & {"003.png", "copy_0.png", "copy_1.png"}) in (0, 3)
            assert len(names & {"005.png", "copy_2.png"}) in (0, 2)


def test_images_left_out_are_no_copies(tmp_path):
    fill_folder(tmp_path / "train", 3)
    shutil.copy(tmp_path / "train" / "000.png", tmp_path / "train" / "copy.png")
    assert find_training_images(Dataset("custom", tmp_path), 42).notes
    left_out = {str(tmp_path / "train" / "copy.png")}
    assert find_training_images(Dataset("custom", tmp_path), 42, left_out).notes == []
    draw_part(0).save(tmp_path / "train" / "000.bmp")
    assert find_training_images(Dataset("custom", tmp_path), 42, left_out).notes == []
