"""Which image files are read: the raster formats that the installed Pillow decodes, and how large they may be."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError, features

# Formats with first bytes of their own. Others, such as EPS, which Pillow hands to Ghostscript, are never tried,
# whatever the file is called.
_RECOGNIZED = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")
_NAMED = ("TGA", "DIB")  # almost any bytes may begin such a file, so that its name has to say so
_NEEDS = {"PNG": "zlib", "JPEG": "jpg", "WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}  # Pillow's features
DESCRIPTION = "PNG, JPEG, TIFF, BMP, WebP and others, see dataset/README.md"  # for messages
_UNUSUAL_TIFF = "a TIFF of a kind that is not read, or damaged; save it as PNG, or as TIFF of 8 or 16 bits"
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257  # tags
_PLAUSIBLE = 10_000  # megapixels


def _readable(kind: str) -> bool:
    return kind in Image.OPEN and (kind not in _NEEDS or features.check(_NEEDS[kind]))


Image.init()  # so that all of Pillow's formats are known
_FORMATS = tuple(filter(_readable, _RECOGNIZED))
DEEP_FORMATS = tuple(kind for kind in _FORMATS if kind in ("PNG", "TIFF", "PPM", "JPEG2000"))  # of more than 8 bits
_FOREIGN = (".icb", ".vda", ".vst")  # Pillow takes them for TGA; today they are other programs' files
_KINDS = {suffix: "JPEG" if kind == "MPO" else kind for suffix, kind in Image.registered_extensions().items()}
IMAGE_SUFFIXES = frozenset(
    suffix for suffix, kind in _KINDS.items() if (kind in _FORMATS or kind in _NAMED) and suffix not in _FOREIGN
)
_OTHER_KINDS = """
    3fr ai arw avif cr2 cr3 dcm dng emf eps exr fit fits hdr heic heif ico j2k jp2 jpx jxl jxr kdc nef nrw orf pcx
    pef psb psd qoi raf raw rw2 sgi sr2 srw svg webp wmf x3f xcf
"""
PICTURE_SUFFIXES = frozenset(f".{kind}" for kind in _OTHER_KINDS.split()) - IMAGE_SUFFIXES  # which are not read


def open_image(file: BinaryIO | Path, name: str) -> Image.Image:
    """Pillow's Image.open for files that are read here; the pixels are not yet decoded.

    Args:
        name: of the file; its suffix counts only for formats that cannot be told by their first bytes.

    Raises:
        almost anything on damaged files; see failure_reason.
    """
    kind = _KINDS.get(Path(name).suffix.lower())
    try:
        return Image.open(file, formats=[*_FORMATS, *([kind] if kind in _NAMED else [])])
    except UnidentifiedImageError as error:
        if _starts_like_tiff(file):
            raise UnidentifiedImageError(_UNUSUAL_TIFF) from error
        raise


def _starts_like_tiff(file: BinaryIO | Path) -> bool:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return _starts_like_tiff(opened)
    file.seek(0)
    return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def stored_size(opened: Image.Image) -> tuple[int, int]:
    """Width and height of an opened file before EXIF rotation."""
    if opened.format == "TIFF":  # newer Pillow versions give the upright size
        return opened.tag_v2[_TIFF_WIDTH], opened.tag_v2[_TIFF_HEIGHT]
    return opened.size


def failure_reason(error: Exception, empty: bool) -> str:
    """What is wrong with a file, from the error that Pillow raised on it.

    Args:
        empty: whether the file is.
    """
    if empty:
        return "empty file"
    if isinstance(error, UnidentifiedImageError):
        return _UNUSUAL_TIFF if str(error) == _UNUSUAL_TIFF else "not an image, or damaged"
    if isinstance(error, Image.DecompressionBombError) and (found := re.search(r"\((\d+) pixels\)", str(error))):
        megapixels = math.ceil(int(found[1]) / 1e6)
        advice = f"allow it with --max_megapixels {megapixels}" if megapixels <= _PLAUSIBLE else "probably damaged"
        return f"{found[1]} pixels, {megapixels} megapixels; {advice}"
    return str(error) or type(error).__name__


def limit_megapixels(megapixels: float) -> None:
    """Refuse larger images from now on, in the whole process."""
    Image.MAX_IMAGE_PIXELS = max(1, int(megapixels * 1e6 / 2))  # beyond twice that Pillow refuses
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
