"""Views as plain values, from files of others and from flags: nothing of them is believed."""

import base64
import io
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

from bad_inputs import png_bomb
from conftest import draw_part, mask_of
from efficientad.data.ignored import read_ignored
from efficientad.data.views import FIT, View, describe_bad_size, parse_roi
from efficientad.system.errors import UserError


def test_a_view_is_the_same_after_it_was_written_as_plain_values(tmp_path):
    mask = mask_of(tmp_path, (240, 160), (0, 0, 50, 50))
    for view in (
        View(),
        View(96, 128, roi=(60, 30, 100, 80)),
        View(ignored=mask),
        View(64, 4000, FIT, (0.1, 0.2, 0.3, 0.4), mask),
    ):
        assert View.from_dict(view.as_dict()) == view


PLAIN = View(roi=(1, 2, 30, 40)).as_dict()
BAD_VALUES = [
    {},
    [],
    None,
    "size",
    torch.zeros(2, 2),
    {key: value for key, value in PLAIN.items() if key != "size"},
    {key: value for key, value in PLAIN.items() if key != "ignored"},
    *(
        {**PLAIN, "size": size}
        for size in (
            None,
            256,
            "256",
            [256],
            [256, 256, 3],
            ["256", "256"],
            [256.0, 256.0],
            [256, True],
            [256, None],
            [256, float("nan")],
            [256, 258],
            [256, 60],
            [-256, 256],
            [256, 10**9],
            [4 * 10**400, 256],
            [4 * 10**5000, 256],
            [20_000, 20_000],
            {256: 0, 512: 0},
            torch.tensor([256, 256]),
            torch.zeros(2, 2, device="meta"),
            [torch.zeros(0), 256],
        )
    ),
    *({**PLAIN, "resize": resize} for resize in (None, "", "STRETCH", 1, ["fit"], torch.zeros(2))),
    *(
        {**PLAIN, "roi": roi}
        for roi in (
            0,
            "1234",
            [],
            [0.0, 0.0, 1.0],
            [0.0, 0.0, 1.0, True],
            ["0", "0", "5", "5"],
            [0.0, 0.0, 10**400, 1.0],
            [0.0, 0.0, 0.0, 5.0],
            [-1.0, 0.0, 5.0, 5.0],
            [0.5, 0.0, 0.6, 1.0],
            [0.5, 0.5, 7.0, 7.0],
            [0.0, 0.0, 1e300, 5.0],
            *([nan if place == at else 0.5 for place in range(4)] for at in range(4) for nan in [float("nan")]),
            [0.0, 0.0, 5.0, float("nan")],
            [0.0, float("inf"), 5.0, 5.0],
            [None] * 4,
            torch.zeros(4),
        )
    ),
    *(
        {**PLAIN, "ignored": ignored}
        for ignored in (0, True, "", "no base64!", "ümläut", "AAAA", ["AAAA"], {}, b"\xff", torch.zeros(4))
    ),
]


@pytest.mark.parametrize("values", BAD_VALUES, ids=range(len(BAD_VALUES)))
def test_values_that_are_no_view_are_refused(values):
    with pytest.raises((KeyError, TypeError, ValueError)):
        View.from_dict(values)


def test_masks_in_an_untrusted_file_are_not_believed(tmp_path):
    """Damaged anywhere, of other pixels, of another format, or of a size that nobody has."""
    whole = mask_of(tmp_path, (64, 48), (0, 0, 9, 9))
    colours = io.BytesIO()
    draw_part(1).save(colours, "PNG")
    bitmap = io.BytesIO()
    Image.new("1", (8, 8)).save(bitmap, "BMP")
    huge = png_bomb(60_000, 60_000)
    for data in (colours.getvalue(), bitmap.getvalue(), huge, png_bomb(3000, 3000), whole[:-40]):
        with pytest.raises(ValueError, match="the mask of what is ignored is damaged"):
            View.from_dict({**PLAIN, "ignored": base64.b64encode(data).decode()})
    for at in range(len(whole)):
        for data in (whole[:at], whole[:at] + b"\xff" + whole[at + 1 :], whole[:at] + whole[at + 1 :]):
            with suppress(ValueError):  # or it is read
                view = View.from_dict({**PLAIN, "ignored": base64.b64encode(data).decode()})
                assert view.inspected_in_image((64, 48)).shape == (48, 64)


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (258, "multiple of 4 from 64 on, not 258; nearest: 256 and 260"),
        (63, "nearest: 64"),
        (0, "nearest: 64"),
        (-4, "nearest: 64"),
        (66, "nearest: 64 and 68"),
        (32_772, "at most 178,956,970 pixels, 32,768 on a side"),
    ],
)
def test_sizes_that_cannot_be_used(side, message):
    assert message in describe_bad_size(side, 256) and message in describe_bad_size(256, side)


def test_sizes_that_can_be_used():
    assert [describe_bad_size(*size) for size in ((64, 64), (32_768, 64), (2000, 8000))] == [""] * 3
    assert "at most" in describe_bad_size(16_384, 16_384)


def test_regions_as_given_by_a_user():
    assert parse_roi(["1", "2", "30", "40"]) == (1, 2, 30, 40)
    assert parse_roi([0, 0.25, 1, 0.75]) == (0, 0.25, 1, 0.75)
    for values, message in (
        ([0, 0, 0.5, 300], "either whole pixels, or shares"),
        ([0.5, 0, 0.6, 1], "must end at 1"),
        ([-1, 0, 5, 5], "must not be negative"),
        ([0, 0, 5, 0], "must be positive"),
        ([0, 0, "nan", 1], "must be positive"),
        ([0, "nan", 5, 5], "must be positive"),
        ([0, 0, "inf", 5], "must be positive"),
        ([0, 0, 5], "unpack"),
        (["x", 0, 5, 5], "float"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_roi(values)


def test_masks_of_every_kind_are_read(tmp_path):
    """White is what is more than half bright, in the upright image."""
    gray = np.full((20, 30), 100, dtype=np.uint8)
    gray[:, 20:] = 200
    white = gray > 127
    exif = Image.Exif()
    exif[0x0112] = 6
    saved = {
        "gray.png": Image.fromarray(gray),
        "colours.png": Image.fromarray(gray).convert("RGB"),
        "palette.png": Image.fromarray(gray).convert("P"),
        "bits.png": Image.fromarray(white),
        "gray16.png": Image.fromarray(gray.astype(np.uint16) * 257),
        "lossy.jpg": Image.fromarray(np.where(white, 255, 0).astype(np.uint8)),
    }
    for name, image in saved.items():
        image.save(tmp_path / name)
        view = View(ignored=read_ignored(tmp_path / name))
        assert np.array_equal(view.inspected_in_image((30, 20)), ~white), name
    Image.fromarray(gray).save(tmp_path / "turned.png", exif=exif)
    turned = View(ignored=read_ignored(tmp_path / "turned.png")).inspected_in_image((20, 30))
    assert np.array_equal(turned, ~np.rot90(white, -1))


def test_files_that_are_no_mask_are_refused(tmp_path):
    path = tmp_path / "mask.png"
    for gray, message in (
        (np.zeros((20, 30)), "is nowhere white, so it ignores nothing"),
        (np.full((20, 30), 255), "is all white, so nothing would be inspected"),
        (np.eye(20), "is nowhere white, so it ignores nothing"),
        ([[255]], "is all white"),
    ):
        Image.fromarray(np.asarray(gray, dtype=np.uint8)).save(path)
        with pytest.raises(UserError, match=message) as raised:
            read_ignored(path)
        assert str(raised.value).startswith(f"--ignore {path} ") and "\n" not in str(raised.value)
    path.write_text("text")
    with pytest.raises(UserError, match="--ignore .*mask.png: not an image, or damaged"):
        read_ignored(path)
    with pytest.raises(UserError, match="--ignore .*nowhere.png: No such file"):
        read_ignored(tmp_path / "nowhere.png")
