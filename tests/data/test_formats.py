"""Which files are images, and that nothing else is opened, whatever it is called."""

import io
import subprocess
import warnings

import numpy as np
import pytest
from PIL import Image, features

from bad_inputs import png_bomb
from conftest import draw_part
from efficientad.data import formats
from efficientad.data.depth import Depth
from efficientad.data.folders import IMAGE_SUFFIXES, describe_others, find_images
from efficientad.data.images import UnreadableImageError, check_file, decode_image, read_image, upright_size
from efficientad.data.reading_notes import ReadingNotes
from efficientad.evaluation.masks import read_mask
from efficientad.preparation.orientation import read_header
from efficientad.system.errors import UserError

ALWAYS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".mpo": "MPO",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".dib": "DIB",
    ".gif": "GIF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pnm": "PPM",
    ".tga": "TGA",
}
WHERE_DECODED = {".webp": ("WEBP", "webp"), ".jp2": ("JPEG2000", "jpg_2000"), ".avif": ("AVIF", "avif")}


def is_here(suffix):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return features.check(WHERE_DECODED[suffix][1])


@pytest.mark.parametrize("suffix", [*ALWAYS, *WHERE_DECODED])
def test_every_raster_format_that_pillow_decodes_is_read(tmp_path, suffix):
    if suffix in WHERE_DECODED and not is_here(suffix):
        assert suffix not in IMAGE_SUFFIXES
        pytest.skip("this Pillow does not decode it")
    path = tmp_path / f"part{suffix.upper()}"
    file_format = ALWAYS.get(suffix) or WHERE_DECODED[suffix][0]
    image = draw_part(1).convert("L" if suffix == ".pgm" else "P" if suffix == ".gif" else "RGB")
    image.save(path, file_format)
    assert find_images(tmp_path) == [path]
    check_file(path)
    assert upright_size(path) == image.size == read_header(path.read_bytes(), str(path)).upright_size
    read = np.asarray(read_image(path)).astype(int)
    assert np.abs(read - np.asarray(image.convert("RGB"))).mean() < 4
    assert read_mask(path).shape == (40, 60)


def test_kinds_that_are_no_raster_images_are_not_taken():
    others = {
        ".eps",
        ".ps",
        ".pdf",
        ".wmf",
        ".emf",
        ".fits",
        ".svg",
        ".psd",
        ".ico",
        ".h5",
        ".mpg",
        ".txt",
        ".vst",
        ".db",
    }
    assert not IMAGE_SUFFIXES & others


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
OTHERS = {
    "eps": EPS,
    "fits": b"SIMPLE  =                    T / x".ljust(80) + b"END".ljust(2800),
    "xbm": b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {\n0x01};\n",
    "text": b"no pixels",
    "tga": b"\0\0\2\0\0\0\0\0\0\0\0\0\4\0\4\0\x18\0" + bytes(48),
    "dib": b"\x28\0\0\0\4\0\0\0\4\0\0\0\1\0\x18\0" + bytes(24) + bytes(48),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_are_not_opened_under_an_images_name(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a program was started"))
    path = tmp_path / "part.png"
    path.write_bytes(OTHERS[kind])
    for read in (read_image, check_file, upright_size, lambda path: read_header(path.read_bytes(), str(path))):
        with pytest.raises(UnreadableImageError, match="part.png: not an image, or damaged"):
            read(path)
    with pytest.raises(UserError, match="part.png"):
        read_mask(path)


def test_a_name_does_not_decide_what_has_a_beginning_of_its_own(tmp_path):
    for name in ("part.tga", "part.dib", "part.jpg"):
        draw_part(1).save(tmp_path / name, "PNG")
        assert read_image(tmp_path / name).tobytes() == draw_part(1).tobytes()


def test_files_that_are_not_taken_are_counted_by_what_they_are(tmp_path):
    names = ["a.heic", "b.HEIC", "c.cr2", "d.txt"]
    for name in names:
        (tmp_path / name).touch()
    others = []
    assert find_images(tmp_path, others) == []
    assert describe_others(others) == [
        "3 files are pictures of kinds that are not read: .heic (2), .cr2 (1); convert to PNG",
        f"1 file is no image: {tmp_path / 'd.txt'}",
    ]
    one = f"1 file is a picture of a kind that is not read: {tmp_path / 'c.cr2'}; convert to PNG"
    assert describe_others([tmp_path / "c.cr2"]) == [one]


@pytest.fixture
def limit():
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        yield formats.limit_megapixels
    Image.MAX_IMAGE_PIXELS = before


def test_images_above_the_limit_are_refused_with_the_way_on(tmp_path, limit):
    limit(0.0023)
    path = tmp_path / "part.png"
    draw_part(1).save(path)  # 2,400 pixels
    for read in (read_image, check_file, upright_size):
        with pytest.raises(
            UnreadableImageError, match="2400 pixels, 1 megapixels; allow it with --max_megapixels 1$"
        ):
            read(path)
    limit(0.0024)
    with warnings.catch_warnings(record=True) as warned:
        read_image(path)
    assert not warned
    path.write_bytes(png_bomb(30_000, 30_000))
    limit(200)
    with pytest.raises(UnreadableImageError, match="allow it with --max_megapixels 900$"):
        check_file(path)
    limit(900)
    check_file(path)
    path.write_bytes(png_bomb(2**31 - 1, 2**31 - 1))
    with pytest.raises(UnreadableImageError, match="megapixels; probably damaged"):
        check_file(path)


def saved(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("alpha", [0, 100, 255])
def test_transparency_that_is_the_same_everywhere_is_ignored(alpha):
    image, notes = draw_part(1).copy(), ReadingNotes()
    image.putalpha(alpha)
    assert decode_image(saved(image), "a.png", Depth(), notes).tobytes() == draw_part(1).tobytes()
    kinds = [] if alpha == 255 else ["Note: 1 image with the same transparency everywhere, which is ignored: a.png"]
    assert notes.lines() == kinds


def test_transparency_that_varies_goes_on_black_and_is_said():
    image, notes = draw_part(1).copy(), ReadingNotes()
    image.putalpha(255)
    image.paste((0, 0, 0, 0), (0, 0, 10, 40))
    read = np.asarray(decode_image(saved(image), "a.png", Depth(), notes))
    assert not read[:, :10].any() and np.array_equal(read[:, 10:], np.asarray(draw_part(1))[:, 10:])
    assert notes.lines() == ["Note: 1 image with transparent parts, which are put on black: a.png"]


def test_several_pages_are_said_once_with_a_count():
    notes, pages = ReadingNotes(), {"save_all": True, "append_images": [draw_part(2)]}
    for name in ("b.tif", "a.tif", "b.tif", "c.tif", "d.tif"):
        read = decode_image(saved(draw_part(1), "TIFF", **pages), name, Depth(), notes)
        assert read.tobytes() == draw_part(1).tobytes()
    decode_image(saved(draw_part(1), "TIFF"), "single.tif", Depth(), notes)
    decode_image(saved(draw_part(1), "MPO", **pages), "phone.jpg", Depth(), notes)  # a preview, or another eye
    line = "Note: 4 images with several pages or frames: the first one counts: a.tif, b.tif, c.tif, ..."
    assert notes.lines() == [line] and notes.new_lines() == [line] and notes.new_lines() == []
    other = ReadingNotes()
    other.merge(notes)
    assert other.lines() == [line]


def test_a_tiff_of_an_unusual_kind_is_not_called_damaged_only(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x02\x01\x03\0\x01\0\0\0\x20\0", b"\x02\x01\x03\0\x01\0\0\0\x40\0"))  # 64 bits
    assert path.read_bytes() != data
    for read in (read_image, check_file, upright_size):
        with pytest.raises(UnreadableImageError, match="a TIFF of a kind that is not read, or damaged; save it as"):
            read(path)
