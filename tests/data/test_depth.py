"""Files of more than 8 bits: one scale for a data set, and no image that is black, white or inverted in silence."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from conftest import draw_part
from deep_files import deep_png, deep_tiff
from efficientad.data.depth import Depth, Scale, asked_whites
from efficientad.data.images import UnreadableImageError, decode_image, read_deep, to_upright_rgb
from efficientad.data.reading_notes import ReadingNotes
from efficientad.data.views import View
from efficientad.system.arguments import BIT_DEPTHS

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
GRAY = np.asarray(draw_part(3).convert("L"))


def encode(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def integers(white, lowest=None):
    return Depth(integers=Scale(float(white), None if lowest is None else float(lowest)))


def floats(white, lowest=None):
    return Depth(floats=Scale(float(white), None if lowest is None else float(lowest)))


def scaled(white, dtype=np.uint16):
    return np.rint(GRAY / 255 * white).astype(dtype)


def as_int32(values):
    return Image.fromarray(values.astype(np.int32))


WAYS = {
    "8 in 16": (encode(Image.fromarray(scaled(255)), "PNG"), integers(255)),
    "10 in 16": (encode(Image.fromarray(scaled(1023)), "TIFF"), integers(1023)),
    "12 in 16": (encode(Image.fromarray(scaled(4095)), "PNG"), integers(4095)),
    "14 in 16": (encode(Image.fromarray(scaled(16383)), "PNG"), integers(16383)),
    "16": (encode(Image.fromarray(scaled(65535)), "PNG"), integers(65535)),
    "16, other order": (deep_tiff(scaled(65535)[..., None], ">"), integers(65535)),
    "int32": (encode(as_int32(GRAY), "TIFF"), integers(255)),
    "12 in int32": (encode(as_int32(scaled(4095)), "TIFF"), integers(4095)),
    "float 1": (encode(Image.fromarray(GRAY.astype(np.float32) / 255), "TIFF"), floats(1)),
    "float 255": (encode(Image.fromarray(GRAY.astype(np.float32)), "TIFF"), floats(255)),
    "float 4095": (encode(Image.fromarray(scaled(4095, np.float32)), "TIFF"), floats(4095)),
    "inverted": (deep_tiff(65535 - scaled(65535)[..., None], white_is_zero=True), integers(65535)),
    "12, inverted": (deep_tiff(4095 - scaled(4095)[..., None], white_is_zero=True), integers(4095)),
}


@pytest.mark.parametrize("way", WAYS)
def test_one_picture_looks_alike_however_deep_its_file_is(way):
    data, depth = WAYS[way]
    read = np.asarray(decode_image(data, "x", depth))
    assert np.abs(read.astype(int) - GRAY[..., None]).max() <= 1


def test_inverted_8_and_1_bit_files_are_upright_in_light(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "gray.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "gray.tif") as opened:
        assert opened.tag_v2[262] == 0
    assert np.array_equal(decode_image((tmp_path / "gray.tif").read_bytes(), "x", Depth()).convert("L"), GRAY)
    bits = Image.fromarray(GRAY > 100)
    bits.save(tmp_path / "bits.tif", tiffinfo={262: 0})
    read = np.asarray(decode_image((tmp_path / "bits.tif").read_bytes(), "x", Depth()).convert("1"))
    assert np.array_equal(read, GRAY > 100)


COLOURS = np.random.default_rng(0).integers(0, 4096, (20, 30, 4)).astype(np.uint16)


@pytest.mark.parametrize(
    "data",
    [
        deep_png(COLOURS[..., :3]),
        deep_tiff(COLOURS[..., :3]),
        deep_tiff(COLOURS[..., :3], ">"),
        deep_tiff(COLOURS[..., :3], is_packed=True),
        deep_tiff(COLOURS[..., :3], ">", is_packed=True),
    ],
    ids=range(5),
)
def test_colours_of_16_bits_keep_their_low_bytes(data, tmp_path):
    """Pillow alone gives the high ones, which of 12 bits are nearly black."""
    (tmp_path / "x").write_bytes(data)
    assert np.array_equal(read_deep(tmp_path / "x").values, COLOURS[..., :3])
    read = np.asarray(decode_image(data, "x", integers(4095)))
    assert np.array_equal(read, np.rint(COLOURS[..., :3] / np.float32(4095) * 255))


def test_transparency_of_16_bits():
    for data, colours in (
        (deep_png(COLOURS), COLOURS[..., :3]),
        (deep_tiff(COLOURS), COLOURS[..., :3]),
        (deep_png(COLOURS[..., [0, 3]]), COLOURS[..., [0, 0, 0]]),
    ):
        read = np.asarray(decode_image(data, "x", integers(4095))).astype(int)
        expected = (colours / 4095) * 255 * (COLOURS[..., 3:] >> 8) / 255
        assert np.abs(read - expected).max() <= 1
    opaque = COLOURS.copy()
    opaque[..., 3] = 65535
    read = np.asarray(decode_image(deep_png(opaque), "x", integers(4095)))
    assert np.array_equal(read, np.asarray(decode_image(deep_png(opaque[..., :3]), "x", integers(4095))))


def test_colours_in_an_unusual_order_are_refused():
    data = deep_tiff(COLOURS[..., :3], has_planes=True)
    with pytest.raises(UnreadableImageError, match="save it as 16-bit RGB or in 8 bits"):
        decode_image(data, "x", integers(4095))


def ppm(values, white):
    return b"P6\n%d %d\n%d\n" % (values.shape[1], values.shape[0], white) + values.astype(">u2").tobytes()


def test_colours_of_ppm_files_keep_their_low_bytes(tmp_path):
    colours = np.repeat(scaled(4095)[..., None], 3, axis=2)
    path = tmp_path / "a.ppm"
    path.write_bytes(ppm(colours, 65535))
    assert read_deep(path).own_white() == (colours.max(), 4095)
    seen = np.asarray(decode_image(path.read_bytes(), "x", integers(4095))).astype(int)
    assert np.abs(seen - GRAY[..., None]).max() <= 1
    seen = np.asarray(decode_image(ppm(colours, 4095), "x", integers(65535))).astype(int)
    assert np.abs(seen - GRAY[..., None]).max() <= 1  # its header says what is white
    with pytest.raises(UnreadableImageError, match="truncated"):
        decode_image(path.read_bytes()[:-1], "x", integers(4095))
    with pytest.raises(UnreadableImageError, match="unusual kind of PPM"):
        decode_image(b"P3\n1 1\n65535\n1 2 3\n", "x", integers(4095))


def test_floats_with_0_for_white_are_refused():
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[262] = 0
    data = encode(Image.fromarray(np.array([[0, 1]], dtype=np.float32)), "TIFF", tiffinfo=info)
    with pytest.raises(UnreadableImageError, match="0 for white"):
        decode_image(data, "x", floats(1))


def test_turned_deep_files_are_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    for way, white in (("PNG", 4095), ("TIFF", 4095)):
        data = encode(Image.fromarray(scaled(white)), way, exif=exif)
        assert (
            np.abs(
                np.asarray(decode_image(data, "x", integers(white)).convert("L")).astype(int) - np.rot90(GRAY, -1)
            ).max()
            <= 1
        )


def float_tiff(*values):
    return encode(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")


@pytest.mark.parametrize(
    ("data", "depth", "reason"),
    [
        (encode(Image.fromarray(scaled(65535)), "PNG"), integers(4095), "12 bits end at 4095; see --bit_depth"),
        (encode(as_int32(scaled(10**6, np.int32)), "TIFF"), integers(65535), "16 bits end at 65535"),
        (encode(as_int32(GRAY.astype(int) - 200), "TIFF"), integers(255), "values down to -.*, below black"),
        (float_tiff(0, 255), floats(1), "values up to 255 where floats end at 1;"),
        (float_tiff(0, 1e38), floats(65535), r"values up to 1e\+38 where"),
        (float_tiff(0, 1, np.nan), floats(1), "no numbers"),
        (float_tiff(0, 1, np.inf), floats(1), "infinite"),
        (float_tiff(0, -np.inf), floats(1), "infinite"),
        (float_tiff(-0.1, 1), floats(1), "values down to -0.1, below black"),
        (float_tiff(0, 1), Depth(), "a file of floats, but the detector was trained on 8-bit ones"),
        (float_tiff(0, 1), integers(255), "a file of floats, but the detector was trained on others"),
        (deep_png(COLOURS), Depth(), "a file of more than 8 bits, but the detector was trained on 8-bit ones"),
        (deep_png(COLOURS), floats(1), "a file of more than 8 bits, but the detector was trained on others"),
    ],
)  # fmt: skip
def test_what_the_depth_is_not_right_for_is_refused(data, depth, reason):
    with pytest.raises(UnreadableImageError, match=f"^x: .*{reason}"):
        decode_image(data, "x", depth)


def test_rounding_errors_of_filters_are_no_reason():
    read = np.asarray(decode_image(float_tiff(-0.001, 0.5, 1.001), "x", floats(1)))
    assert read[0, :, 0].tolist() == [0, 128, 255]


def test_8_bit_files_are_themselves_whatever_the_depth():
    for file_format in ("PNG", "TIFF", "BMP", "JPEG"):
        data = encode(draw_part(2), file_format)
        plain = decode_image(data, "x").tobytes()
        for depth in (Depth(), integers(255), integers(4095), floats(1)):
            assert decode_image(data, "x", depth).tobytes() == plain


def test_images_in_memory_are_read_alike():
    image = Image.fromarray(scaled(4095))
    expected = decode_image(encode(image, "PNG"), "x", integers(4095))
    assert to_upright_rgb(image, integers(4095)).tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match="trained on 8-bit ones"):
        to_upright_rgb(image, Depth())


@pytest.mark.parametrize(
    ("values", "depth", "is_noted"),
    [
        (scaled(4095), integers(65535, 65535), True),
        (scaled(4095), integers(65535, 4095), False),  # as some image of the training
        (scaled(4095), integers(4095, 4095), False),
        (scaled(255), integers(4095), True),  # by the flag; no such image in the training
        (np.zeros((4, 4), np.uint16), integers(65535, 65535), False),  # as dark as can be
        (GRAY.astype(np.float32) / 255, floats(255, 255), True),
    ],
)
def test_images_of_fewer_bits_are_named(values, depth, is_noted):
    notes, data = ReadingNotes(), encode(Image.fromarray(values), "TIFF")
    for _ in range(2):
        decode_image(data, "part.tif", depth, notes)
    assert len(notes.lines()) == is_noted
    if is_noted:
        assert notes.lines()[0].startswith("Note: 1 image with values of fewer bits than the detector was trained")
        assert notes.lines()[0].endswith(": part.tif")


def test_a_depth_is_the_same_after_it_was_written_as_plain_values():
    for depth in (Depth(), integers(4095, 1023), floats(1), Depth(Scale(65535.0), Scale(255.0, 1.0))):
        view = View(96, 128, depth=depth)
        assert Depth.from_dict(depth.as_dict()) == depth and View.from_dict(view.as_dict()) == view
    old = {name: value for name, value in View(96, 128).as_dict().items() if name != "depth"}
    assert View.from_dict(old).depth is None


@pytest.mark.parametrize(
    "values",
    [
        [],
        "integers",
        {},
        {"integers": None},
        *(
            {"integers": scale, "floats": None}
            for scale in (4095, [4095], [4095.0], [4095, 4095], [1.0, None], "4095")
        ),
        *(
            {"integers": [4095.0, lowest], "floats": None}
            for lowest in (4094.0, True, "255", float("nan"), [255.0])
        ),
        {"integers": [float("nan"), None], "floats": None},
        {"integers": None, "floats": [0.0, None]},
        {"integers": None, "floats": [float("inf"), None]},
        {"integers": None, "floats": [True, None]},
    ],
)
def test_values_that_are_no_depth_are_refused(values):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Depth.from_dict(values)
    with pytest.raises((KeyError, TypeError, ValueError)):
        View.from_dict({**View().as_dict(), "depth": values})


def test_every_choice_of_the_flag_has_its_whites():
    assert [asked_whites(choice) for choice in BIT_DEPTHS] == [
        (None, None),
        *((float(2**bits - 1),) * 2 for bits in (8, 10, 12, 14, 16)),
        (None, 255.0),
        (None, 1.0),
    ]


def test_models_of_before_see_what_they_saw():
    """Without a depth: clipped, not inverted, and colours by their high bytes."""
    inverted, _ = WAYS["inverted"]
    assert np.array_equal(np.asarray(decode_image(inverted, "x").convert("L")), 255 - GRAY)
    assert np.asarray(decode_image(float_tiff(-1, 7, np.nan), "x"))[0, :, 0].tolist() == [0, 255, 0]
    assert np.array_equal(np.asarray(decode_image(deep_png(COLOURS[..., :3]), "x")), COLOURS[..., :3] >> 8)
    clear = draw_part(1).copy()
    clear.putalpha(0)
    assert decode_image(encode(clear, "PNG"), "x").getextrema() == ((0, 0),) * 3


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
def test_one_tile_of_thirteen_files():
    """Each alone, as if the training had seen its like."""
    truth = np.asarray(decode_image((CASES / "reports/depth/00_8bit.png").read_bytes(), "x")).astype(int)
    for path in sorted((CASES / "reports/depth").iterdir()):
        deep, depth = read_deep(path), Depth()
        if deep is not None:
            scale = Scale(deep.own_white()[1])
            depth = Depth(floats=scale) if deep.is_float else Depth(integers=scale)
        read = np.asarray(decode_image(path.read_bytes(), str(path), depth)).astype(int)
        assert np.abs(read - truth).max() <= (3 if path.suffix == ".jpg" else 1), path


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
def test_hostile_files_are_decoded_or_refused():
    for path in sorted((CASES / "hostile/images").iterdir()):
        for view in (View(64, 64, depth=Depth()), View(64, 64, depth=Depth(Scale(65535.0), Scale(1.0)))):
            try:
                assert view.read(path)[0].shape == (3, 64, 64)
            except UnreadableImageError as error:
                assert error.name == str(path) and error.reason
