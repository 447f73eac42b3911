"""The pictures and the contents of a report; test_report_page.py opens it in a browser."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from conftest import draw_part
from efficientad.evaluation import report_page
from efficientad.evaluation.report_page import visible
from efficientad.evaluation.thumbnails import (
    MAP_FLOOR,
    MAP_LEVELS,
    REPORT_BYTES,
    PictureSizes,
    encode_map,
    encode_mask,
    encode_thumbnail,
    plan_pictures,
)
from reports import Page, make_report, scored_images


def decode_map(text, score):
    levels = np.array([MAP_LEVELS.index(letter) for letter in text])
    side = int(len(text) ** 0.5)
    return MAP_FLOOR * ((1 + score / MAP_FLOOR) ** (levels.reshape(side, side) / 63) - 1)


@pytest.mark.parametrize(("height", "side"), [(256, 64), (256, 32), (100, 25)])
def test_maps_keep_their_peaks_and_about_their_values(height, side):
    rng = np.random.default_rng(0)
    anomaly_map = rng.gamma(1.0, 10, (height, height)).astype(np.float32)
    anomaly_map[17, 71] = 900.0
    decoded = decode_map(encode_map(anomaly_map, side), 900.0)
    assert decoded.shape == (side, side)
    assert np.unravel_index(decoded.argmax(), decoded.shape) == (17 * side // height, 71 * side // height)
    cell = anomaly_map[: height // side, : height // side].max()
    assert decoded[0, 0] == pytest.approx(cell, rel=0.1)
    assert encode_map(np.zeros((64, 64), np.float32), 32) == "A" * 1024


@pytest.mark.parametrize("shape", [(128, 320), (40, 60), (3, 200)])
def test_maps_of_any_shape_lie_on_a_square_grid(shape):
    anomaly_map = np.zeros(shape, dtype=np.float32)
    row, column = shape[0] // 3, 2 * shape[1] // 3
    anomaly_map[row, column] = 900.0
    decoded = decode_map(encode_map(anomaly_map, 64), 900.0)
    rows, columns = np.nonzero(decoded > 800)
    assert rows.min() * shape[0] // 64 <= row <= rows.max() * shape[0] // 64 + shape[0] // 64
    assert columns.min() * shape[1] // 64 <= column <= columns.max() * shape[1] // 64 + shape[1] // 64
    assert (decoded > 800).sum() <= np.prod([max(1, 64 // length + 1) for length in shape])


def test_thumbnails_keep_the_aspect_ratio_and_their_size_in_bytes():
    sizes = PictureSizes(thumbnail_side=96, thumbnail_bytes=1200, map_side=32)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8))
    data = encode_thumbnail(noise, sizes)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (64, 96) and image.format == "WEBP"
    assert len(data) <= 1200
    with Image.open(io.BytesIO(encode_thumbnail(draw_part(1, size=(60, 40)), sizes))) as image:
        assert image.size == (60, 40)  # never enlarged
    with Image.open(io.BytesIO(encode_thumbnail(Image.new("RGB", (2000, 3)), sizes))) as image:
        assert image.size == (96, 1)


def test_pictures_shrink_with_the_number_of_images():
    few, many, most = plan_pictures(10), plan_pictures(2000), plan_pictures(10_000)
    assert few.thumbnail_side > many.thumbnail_side > most.thumbnail_side >= 80
    assert few.map_side > most.map_side
    assert plan_pictures(1_000_000).thumbnail_side > 0


def test_masks_are_joined_and_a_single_pixel_survives():
    point, square = np.zeros((2, 100, 200), dtype=np.uint8)
    point[0, 0], square[20:40, 80:100] = 1, 255
    width, height, *runs = map(int, encode_mask([point, square], 50).split())
    cells = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
    expected = np.zeros((25, 50), dtype=int)
    expected[0, 0] = 1
    expected[5:10, 20:25] = 1
    assert (cells == expected).all()
    assert encode_mask([], 50) == ""


def test_long_masks_get_a_coarser_grid():
    text = encode_mask([np.random.default_rng(0).random((400, 400)) > 0.99], 160)
    assert len(text) <= 1200 and int(text.split()[0]) < 160


def test_hostile_names_stay_text(tmp_path):
    broken = os.fsdecode(b"caf\xe9.png")
    names = [
        "</script><script>alert(1)</script>.png",
        "\"><img src=x onerror=alert(1)>'.png",
        broken,
        "a\u202egnp.exe",
    ]
    plain = Page(make_report(tmp_path, [("good", "a.png", 1.0), ("dent", "b.png", 90.0)]))
    rows = [("good", "a.png", 1.0), *(("<b>&amp;{{ 7 * 7 }}", name, 90.0) for name in names)]
    page = Page(make_report(tmp_path, rows, title="<i>" + names[0], facts=[("Model", f"{names[1]}\n{broken}")]))
    assert [tag for tag, _ in page.tags if tag not in ("dt", "dd", "bdi")] == [
        tag for tag, _ in plain.tags if tag not in ("dt", "dd", "bdi")
    ]
    shown = [row[1] for row in page.data["images"]][1:]
    assert shown == [*names[:2], r"caf\xe9.png", r"a\u202egnp.exe"]
    assert page.data["classes"][1][0] == "<b>&amp;{{ 7 * 7 }}"
    links = [row[3] for row in page.data["images"]]
    assert links[3].endswith("/caf%E9.png")
    assert not set("<>\"' ") & set("".join(links))


@pytest.mark.parametrize(
    "name", ["плата 7.png", "基板\u3000一.png", "لوحة.png", "می\u200cخواهم.png", "👩\u200d🔧.png"]
)
def test_names_of_any_language_are_kept(name):
    assert visible(name) == name


def test_the_page_needs_no_other_file_and_no_network(tmp_path):
    path = make_report(tmp_path, [("good", "a.png", 1.0), ("dent", "b.png", 90.0)], held_out=[1.0, 2.0, 3.0, 4.0])
    page = Page(path)
    references = [
        attributes.get(key) for _, attributes in page.tags for key in ("src", "href") if key in attributes
    ]
    assert references == ["data:,", "#gallery"]
    assert "http://" not in (text := path.read_text()).replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text and "@import" not in text and "url(" not in text.replace("url(#", "")
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "'unsafe-inline'" not in policy.split("script-src")[1]
    assert page.data["calibration"] == [1.0, 2.0, 3.0, 4.0]


def test_a_page_that_would_be_too_large_drops_the_least_suspicious_pictures(tmp_path, monkeypatch):
    rows = [("good", f"{index}.png", float(index)) for index in range(100)]
    folder = tmp_path / "set"
    size = len(scored_images(rows[:1], folder)[0].picture.anomaly_map)
    room = report_page.PAGE_BYTES + 100 * report_page.TEXT_BYTES + 10 * size
    monkeypatch.setattr(report_page, "REPORT_BYTES", room)
    data = Page(make_report(tmp_path, rows, threshold=50.0)).data
    illustrated = [index for index, row in enumerate(data["images"]) if len(row) > 5]
    assert 5 <= len(illustrated) < 10 and illustrated == list(range(100 - len(illustrated), 100))
    assert (tmp_path / "report.html").stat().st_size < room


def test_ten_thousand_images_stay_within_the_promise():
    """The largest pictures that the plan allows, counted without writing them."""
    for count in (10, 600, 1500, 3000, 10_000):
        sizes = plan_pictures(count)
        each = 4 * ((sizes.thumbnail_bytes + 2) // 3) + sizes.map_side**2 + report_page.TEXT_BYTES
        assert count * each + report_page.PAGE_BYTES <= REPORT_BYTES
