import io
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from efficientad.data.folders import describe_others, find_images, is_image_name, leave_out_below, leave_out_written
from efficientad.data.images import UnreadableImageError, check_image, decode_image, read_image, upright_size
from efficientad.preparation.orientation import read_header, turn_point_upright, turn_upright
from efficientad.system.files import write_file_list


def reread(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return np.asarray(decode_image(buffer.getvalue(), "test"))


GRADIENT = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_gray_is_repeated():
    assert (reread(Image.fromarray(GRADIENT)) == GRADIENT[..., None]).all()


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_are_divided_by_a_constant(file_format):
    """257 maps 65535 to 255; a dark image stays dark and is not stretched to the full range."""
    values = np.array([[0, 257, 1000], [5140, 32768, 65535]], dtype=np.uint16)
    read = reread(Image.fromarray(values), file_format)
    assert (read[..., 0] == np.rint(values / 257)).all()
    assert (reread(Image.fromarray(values // 64), file_format)[..., 0] <= 4).all()


def test_float_tiff_is_taken_as_zero_to_one():
    values = np.array([[-1.0, 0.0, 0.25], [0.5, 1.0, 7.0]], dtype=np.float32)
    assert reread(Image.fromarray(values), "TIFF")[..., 0].tolist() == [[0, 0, 64], [128, 255, 255]]


def test_float_tiff_with_nan_is_black_there():
    assert reread(Image.fromarray(np.array([[np.nan, 1.0]], dtype=np.float32)), "TIFF")[..., 0].tolist() == [
        [0, 255]
    ]


def test_transparency_goes_on_black():
    pixels = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 51]]], dtype=np.uint8)
    read = reread(Image.fromarray(pixels))
    assert read[0, :2].tolist() == [[200, 100, 50], [0, 0, 0]]
    assert np.abs(read[0, 2].astype(int) - [40, 20, 10]).max() <= 1


def test_gray_with_transparency_goes_on_black():
    pixels = np.array([[[200, 255], [200, 0]]], dtype=np.uint8)
    assert reread(Image.fromarray(pixels))[0].tolist() == [[200] * 3, [0] * 3]


def test_palette_gives_its_colours():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    assert reread(image)[0].tolist() == [[255, 0, 0], [0, 0, 255]]


def test_transparent_palette_entry_is_black():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    assert reread(image, transparency=0)[0].tolist() == [[0, 0, 0], [0, 0, 255]]


def test_one_bit_is_black_and_white():
    assert reread(Image.fromarray(np.array([[True, False]])))[0].tolist() == [[255] * 3, [0] * 3]


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(reread(image, "JPEG", quality=100)[0, 0].astype(int) - [255, 0, 0]).max() <= 6


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_exif_rotation_is_applied(mode):
    values = np.zeros((4, 8), dtype=np.uint16)
    values[:, :2] = 65535  # white at the left; orientation 6 turns it to the top
    image = Image.fromarray(values) if mode == "I;16" else Image.fromarray((values // 257).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    read = reread(image if mode == "I;16" else image.convert("RGB"), "PNG", exif=exif)
    assert read.shape == (8, 4, 3)
    assert (read[:2] == 255).all() and (read[2:] == 0).all()


def test_an_upright_image_is_not_copied(monkeypatch):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (1, 2, 3)).save(buffer, "PNG")
    monkeypatch.setattr(Image.Image, "copy", lambda image: pytest.fail("the pixels were copied"))
    assert decode_image(buffer.getvalue(), "x").getpixel((5, 3)) == (1, 2, 3)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    assert reread(frames[0], "GIF", save_all=True, append_images=frames[1:])[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n broken"])
def test_what_is_not_an_image_is_named(tmp_path, content):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match="bad.png"):
        read_image(path)


def test_the_error_can_be_sent_to_another_process():
    error = pickle.loads(pickle.dumps(UnreadableImageError("a.png", "empty file")))
    assert (str(error), error.name, error.reason) == ("a.png: empty file", "a.png", "empty file")


def test_truncated_image_is_refused(tmp_path):
    path = tmp_path / "cut.jpg"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UnreadableImageError, match="cut.jpg: .*truncated"):
        read_image(path)


def test_image_names():
    assert all(map(is_image_name, ["a.PNG", "a.b.JpEg", "x.tif", "ü.webp"]))
    assert not any(map(is_image_name, ["a.txt", "png", ".hidden.png", "._a.jpg", "Thumbs.db", ".DS_Store"]))


def test_images_are_found_in_a_fixed_order(tmp_path):
    for name in ("b.png", "a/c.png", "a.png", "__MACOSX/a.png", ".cache/x.png", "B.PNG", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["B.PNG", "a.png", "a/c.png", "b.png"]


def test_folder_that_cannot_be_listed_is_not_taken_as_empty(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        find_images(tmp_path / "nowhere")


def test_a_folder_below_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    listed = os.scandir
    (tmp_path / "lost+found").mkdir()

    def scandir(path):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError):
        find_images(tmp_path)


def test_what_a_command_wrote_is_no_input(tmp_path):
    for name in ("a.png", "out/maps/a.png.jpg", "out/mine.png", "watched/maps/deep/b.jpg", "watched/scores.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    write_file_list(tmp_path / "out", ["maps/a.png.jpg", "scores.csv"])
    write_file_list(tmp_path / "watched", ["maps"])
    others = []
    names = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path, others)]
    assert names == ["a.png", "out/mine.png"]
    assert describe_others(others) == [
        f"The results of earlier runs in {tmp_path / 'out'} and 1 more folders are no input",
        f"1 file is no image: {tmp_path / 'watched' / 'scores.csv'}",
    ]
    matches = []
    assert leave_out_written(sorted(tmp_path.rglob("*.*g")), matches) == [tmp_path / name for name in names]
    assert describe_others(matches) == describe_others(others)[:1]
    assert find_images(tmp_path / "out" / "maps") == [tmp_path / "out/maps/a.png.jpg"]  # asked for


def test_images_below_a_folder_are_left_out_whatever_leads_there(tmp_path):
    (tmp_path / "real" / "maps" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    inside = [tmp_path / "link" / "maps" / "a.png", tmp_path / "real" / "x" / ".." / "maps" / "deep" / "b.png"]
    outside = [tmp_path / "link" / "c.png", tmp_path / "real" / "maps2" / "d.png"]
    assert leave_out_below(tmp_path / "real" / "maps", [*inside, *outside]) == outside


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_header_tells_the_upright_size(file_format, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, file_format, exif=exif)
    (tmp_path / "test").write_bytes(buffer.getvalue())
    assert upright_size(tmp_path / "test") == decode_image(buffer.getvalue(), "test").size
    header = read_header(buffer.getvalue(), "test")
    assert (header.stored_size, header.orientation) == ((30, 20), orientation)
    assert header.upright_size == decode_image(buffer.getvalue(), "test").size


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP"])
def test_the_quick_check_believes_whole_files_and_finds_those_without_an_end(monkeypatch, file_format):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, file_format)
    data = buffer.getvalue()
    with monkeypatch.context() as patch:
        patch.setattr("efficientad.data.images.decode_image", lambda *_: pytest.fail("was decoded"))
        check_image(io.BytesIO(data), "test")
    check_image(io.BytesIO(data + bytes(99)), "test")  # decoded, and well
    for part in (b"", data[:8], *([data[:-300]] if file_format in ("JPEG", "PNG") else [])):
        with pytest.raises(UnreadableImageError, match="test: "):
            check_image(io.BytesIO(part), "test")


def test_header_of_a_damaged_file():
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "PNG")
    assert read_header(buffer.getvalue()[:60], "test").upright_size == (30, 20)  # the pixels are not looked at
    for data in (b"", b"text", buffer.getvalue()[:20]):
        with pytest.raises(UnreadableImageError, match="test: "):
            read_header(data, "test")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_images_and_points_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3))
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=exif)
    upright, header = decode_image(buffer.getvalue(), "test"), read_header(buffer.getvalue(), "test")
    assert turn_upright(stored, orientation).tobytes() == upright.tobytes()
    assert header.stored_size == (4, 6) and header.upright_size == upright.size
    for x in range(4):
        for y in range(6):
            left, top = turn_point_upright(x + 0.5, y + 0.5, header)  # the middle of a pixel
            assert upright.getpixel((int(left), int(top))) == stored.getpixel((x, y))


def test_what_is_no_image_is_counted(tmp_path):
    for name in ("a.png", "b.txt", "deep/c.TXT", "d.db", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    others = []
    assert [path.name for path in find_images(tmp_path, others)] == ["a.png"]
    assert describe_others(others) == ["3 files are no images: .txt (2), .db (1)"]
    assert describe_others(others[:1]) == [f"1 file is no image: {tmp_path / 'b.txt'}"]
    assert describe_others([]) == []
