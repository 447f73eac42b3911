"""Files that cameras, tools and accidents leave in image folders, for test_bad_input.py; written by name."""

import io
import os
import struct
import zlib

import numpy as np
from PIL import Image

from conftest import draw_part

ROOT_USER = os.geteuid() == 0  # can read everything


def jpeg_bytes(image=None, **options):
    buffer = io.BytesIO()
    (image or draw_part(3)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def png_bomb(width, height):
    """A PNG of few bytes that claims to be black and of that size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(100_000), 9))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def gray16():
    return Image.fromarray(np.asarray(draw_part(3).convert("L"), dtype=np.uint16) * 257)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return lambda path: draw_part(3).save(path, exif=exif)


def animated(path):
    draw_part(3).save(path, save_all=True, append_images=[draw_part(4), draw_part(5)])


def unreadable(path):
    draw_part(3).save(path)
    path.chmod(0)


def converted(mode):
    return lambda path: draw_part(3).convert(mode).save(path)


def as_float(path):
    Image.fromarray(np.asarray(draw_part(3).convert("L"), dtype=np.float32) / 255).save(path)


def part(path):
    draw_part(3).save(path)


# file name: how it is written
READABLE = {
    "gray16.tiff": lambda path: gray16().save(path),
    "gray16.png": lambda path: gray16().save(path),
    "float.tif": as_float,
    "palette.png": converted("P"),
    "rgba.png": converted("RGBA"),
    "gray_alpha.png": converted("LA"),
    "cmyk.jpg": converted("CMYK"),
    "one_bit.png": converted("1"),
    "animated.gif": animated,
    **{f"turned_{orientation}.jpg": turned(orientation) for orientation in range(1, 9)},
    "1x1.png": lambda path: Image.new("RGB", (1, 1), "red").save(path),
    "1x20000.png": lambda path: Image.new("RGB", (1, 20_000), "red").save(path),
    "40000x1.png": lambda path: Image.new("RGB", (40_000, 1), "red").save(path),
    "padded.jpg": lambda path: path.write_bytes(jpeg_bytes() + b"\0" * 512),
    "png_inside.jpg": lambda path: draw_part(3).save(path, "PNG"),
    "two words.png": part,
    "quotes'\".png": part,
    "line\nbreak.png": part,
    "\U0001f52c\u2728.png": part,
    os.fsdecode(b"latin1_\xe9\xff.png"): part,
    "=1+1.png": part,
    "-a.png": part,
    "@a.png": part,
    "\x1b[31mred.png": part,
    "a;b,c\td.png": part,
    "%s{0}%.png": part,
    "UPPER.PNG": part,
}
# file name: how it is written, and why it is refused
REFUSED = {
    "truncated.jpg": (lambda path: path.write_bytes(jpeg_bytes()[:-200]), "truncated"),
    "truncated.png": (lambda path: (part(path), path.write_bytes(path.read_bytes()[:-500])), "truncated"),
    "empty.png": (lambda path: path.touch(), "empty file"),
    "text.png": (lambda path: path.write_text("no pixels"), "not an image"),
    "text.jpg": (lambda path: path.write_text("no pixels"), "not an image"),
    "bomb.png": (lambda path: path.write_bytes(png_bomb(60_000, 60_000)), "3600000000 pixels"),
    "broken_link.png": (lambda path: path.symlink_to("nowhere.png"), "No such file"),
    "circular_link.png": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "device.png": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "pipe.png": (os.mkfifo, "not a regular file"),
    "\udcff\n=.png": (lambda path: path.touch(), "empty file"),
    **({} if ROOT_USER else {"forbidden.png": (unreadable, "Permission denied")}),
}
# ignored without a message
IGNORED = {
    "Thumbs.db": lambda path: path.write_bytes(b"\xd0\xcf"),
    ".DS_Store": lambda path: path.write_bytes(b"\0"),
    ".hidden.png": lambda path: path.write_text("x"),
    "._part.png": lambda path: path.write_text("x"),
    "__MACOSX/part.png": lambda path: path.write_text("x"),
    "notes.txt": lambda path: path.write_text("x"),
    "empty_folder.png/none.txt": lambda path: path.write_text("x"),
    "circle": lambda path: path.symlink_to(".."),
}


def write_file(folder, name):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write = REFUSED[name][0] if name in REFUSED else {**READABLE, **IGNORED}[name]
    write(path)
    return path
