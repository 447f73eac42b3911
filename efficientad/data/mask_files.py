"""Reads mask files: pixels that are not 0 mark a defect. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from efficientad.data.formats import open_image
from efficientad.system.errors import UserError

_LOSSY = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".avifs"})


def is_lossy(path: Path) -> bool:
    """Whether a mask of this name may have lost its exact values, so that 0 is no longer 0."""
    return path.suffix.lower() in _LOSSY


def read_mask_values(path: Path) -> tuple[np.ndarray, bool]:
    """The values of a mask, H x W as it is stored, and whether they are those of its alpha channel.

    Palette images give their indices, and lossy files 0 up to 127. What is transparent marks nothing. Where all
    that is visible has one colour and the transparency varies, the transparency counts.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open_image(path, str(path)) as opened:
            has_alpha = opened.mode in ("RGBA", "LA", "PA")
            values = np.asarray(opened.convert("RGBA") if has_alpha else opened)
    except Exception as error:  # Pillow's plugins raise almost any type on damaged files
        raise UserError(f"cannot read the mask {path}; repair, replace or remove it") from error
    in_alpha = False
    if has_alpha:
        colours, alpha = values[..., :3], values[..., 3]
        visible = colours[alpha > 0]
        is_plain = not len(visible) or (visible == visible[0]).all()  # what cannot be seen may have any colour
        in_alpha = bool(is_plain and (alpha != alpha[0, 0]).any())
        colours = colours * (alpha > 0)[..., None] if len(visible) else colours
        values = alpha if in_alpha else colours
    values = values.max(axis=2) if values.ndim == 3 else values
    return np.where(values > 127, values, 0) if is_lossy(path) else values, in_alpha
