"""Image files of more than 8 bits, as cameras and other tools write them."""

import struct
import zlib

import numpy as np


def deep_png(values):
    """A 16-bit PNG of colours, H x W x 3, of colours and transparency, x 4, or of gray and transparency, x 2."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    kind = {2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_tiff(values, order="<", is_packed=False, has_planes=False, white_is_zero=False):
    """A TIFF of 16 bits: gray, H x W x 1, colours, x 3, or colours and transparency, x 4.

    Args:
        order: of the bytes, as for struct.
    """
    height, width, channels = values.shape
    planes = np.moveaxis(values, 2, 0) if has_planes else values[None]
    strips = [np.ascontiguousarray(plane).astype(f"{order}u2").tobytes() for plane in planes]
    strips = [zlib.compress(strip) for strip in strips] if is_packed else strips
    photometric = 2 if channels > 1 else 0 if white_is_zero else 1
    entries = [(256, "I", [width]), (257, "I", [height]), (258, "H", [16] * channels)]
    entries += [(259, "H", [8 if is_packed else 1]), (262, "H", [photometric]), (273, "I", [0] * len(strips))]
    entries += [(277, "H", [channels]), (278, "I", [height]), (279, "I", [len(strip) for strip in strips])]
    entries += [(284, "H", [2 if has_planes else 1])] + [(338, "H", [2])] * (channels == 4)
    end = 8 + 2 + 12 * len(entries) + 4
    long = sum(struct.calcsize(kind) * len(given) for _, kind, given in entries if _bytes(order, kind, given, 5))
    starts = np.cumsum([end + long, *map(len, strips)])[:-1].tolist()
    directory, behind = struct.pack(f"{order}H", len(entries)), b""
    for tag, kind, given in entries:
        given = starts if tag == 273 else given
        data = struct.pack(f"{order}{len(given)}{kind}", *given)
        if len(data) > 4:
            data, behind = struct.pack(f"{order}I", end + len(behind)), behind + data
        directory += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], len(given)) + data.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return head + directory + bytes(4) + behind + b"".join(strips)


def _bytes(order, kind, given, least):
    data = struct.pack(f"{order}{len(given)}{kind}", *given)
    return data if len(data) >= least else b""
