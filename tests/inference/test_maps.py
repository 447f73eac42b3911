import warnings

import numpy as np
import pytest
from PIL import Image

from efficientad.inference import maps
from efficientad.inference.maps import heat_levels, jet, write_overlay, write_side_by_side, write_tiff


def test_sigmoid_is_centred_on_the_threshold():
    levels = heat_levels(np.array([25.0, 25 + 25 / 3, 0.0], dtype=np.float32), 25.0)
    assert levels == pytest.approx([0.5, 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(3))], rel=1e-5)
    assert levels.dtype == np.float32


@pytest.mark.parametrize("threshold", [0.0, 1e-3, 25.0])
def test_sigmoid_does_not_overflow(threshold):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        levels = heat_levels(np.array([-1e30, -1e4, threshold, 1e4, 1e30], dtype=np.float32), threshold)
    assert levels == pytest.approx([0, 0, 0.5, 1, 1])


def test_jet_runs_from_blue_to_red():
    colours = jet(np.array([0.0, 0.125, 0.375, 0.5, 0.625, 0.875, 1.0], dtype=np.float32))
    assert colours.dtype == np.uint8
    blue, full_blue, cyan, green, yellow, red, dark_red = colours.tolist()
    assert blue == [0, 0, 128] and full_blue == [0, 0, 255] and cyan == [0, 255, 255]
    assert green == [128, 255, 128]
    assert yellow == [255, 255, 0] and red == [255, 0, 0] and dark_red == [128, 0, 0]


def test_tiff_keeps_every_bit(tmp_path):
    values = np.array([[-3.25, 0.1, 255.0], [300.7, 70000.5, 1e-8]], dtype=np.float32)
    write_tiff(tmp_path / "map.tiff", values)
    with Image.open(tmp_path / "map.tiff") as image:
        assert image.mode == "F"
        assert (np.asarray(image) == values).all()


def test_colours_do_not_depend_on_the_strips(monkeypatch):
    anomaly_map = np.random.default_rng(0).random((37, 50), dtype=np.float32) * 60
    exact = jet(heat_levels(anomaly_map, 25.0)).astype(int)
    whole = np.asarray(maps.heat_map(anomaly_map, 25.0))
    assert np.abs(whole - exact).max() <= 2 and np.abs(whole - exact).mean() < 1  # 256 levels are told apart
    for pixels in (1, 50, 333, 2**18):
        monkeypatch.setattr(maps, "_STRIP_PIXELS", pixels)
        assert np.array_equal(maps.heat_map(anomaly_map, 25.0), whole)


@pytest.mark.parametrize("write", [write_overlay, write_side_by_side])
def test_pictures_longer_than_a_jpg_can_be_are_made_smaller(tmp_path, write):
    write(tmp_path / "map.jpg", Image.new("RGB", (66_000, 10)), np.zeros((10, 66_000), dtype=np.float32), 25.0)
    with Image.open(tmp_path / "map.jpg") as image:
        assert image.size[0] == 65_500


def test_overlay_covers_the_image_where_the_map_is_high(tmp_path):
    anomaly_map = np.zeros((600, 600), dtype=np.float32)
    anomaly_map[:, 300:] = 200
    write_overlay(tmp_path / "map.jpg", Image.new("RGB", (600, 600), (10, 200, 10)), anomaly_map, 25.0)
    with Image.open(tmp_path / "map.jpg") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    for row in (10, 590):
        assert np.abs(pixels[row, 100] - [10, 190, 16]).max() < 20
        assert pixels[row, 500].argmax() == 0 and pixels[row, 500, 1] < 60


def test_jpg_shows_the_image_beside_its_heat_map(tmp_path):
    anomaly_map = np.zeros((40, 60), dtype=np.float32)
    anomaly_map[:, 30:] = 200
    write_side_by_side(tmp_path / "map.jpg", Image.new("RGB", (60, 40), (10, 200, 10)), anomaly_map, 25.0)
    with Image.open(tmp_path / "map.jpg") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (40, 120, 3)
    assert np.abs(pixels[20, 20] - [10, 200, 10]).max() < 12
    assert pixels[20, 70].argmax() == 2 and pixels[20, 110].argmax() == 0  # blue, then red


@pytest.mark.parametrize("write", [write_overlay, write_side_by_side])
def test_what_is_not_inspected_shows_the_image_and_the_image_stays_as_it_is(tmp_path, write):
    image = Image.new("RGB", (64, 48), (10, 200, 10))
    inspected = np.zeros((48, 64), dtype=bool)
    inspected[:, :32] = True
    write(tmp_path / "map.jpg", image, np.full((48, 64), 500, dtype=np.float32), 25.0, inspected)
    with Image.open(tmp_path / "map.jpg") as written:
        shown = np.asarray(written.convert("RGB")).astype(int)[:, -64:]
    assert np.abs(shown[:, 40:] - [10, 200, 10]).max() < 12
    assert np.abs(shown[:, 8:24] - [128, 0, 0]).max() < 12
    assert image.getcolors() == [(64 * 48, (10, 200, 10))]


def test_overlay_blends_as_the_formula_says(tmp_path, monkeypatch):
    """Read back before the JPG rounds it."""
    rng = np.random.default_rng(1)
    anomaly_map, below = rng.random((37, 50), dtype=np.float32) * 60, rng.integers(0, 256, (37, 50, 3), np.uint8)
    pictures = []
    monkeypatch.setattr(maps, "_save", lambda picture, *_: pictures.append(np.asarray(picture).astype(int)))
    write_overlay(tmp_path / "map.jpg", Image.fromarray(below), anomaly_map, 25.0)
    levels = heat_levels(anomaly_map, 25.0)
    expected = below + levels[..., None] * (jet(levels).astype(float) - below)
    assert np.abs(pictures[0] - expected).max() <= 3 and np.abs(pictures[0] - expected).mean() < 1
