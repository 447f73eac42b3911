"""What every command that computes needs first: torch, imported quickly."""

from __future__ import annotations

import gc
import sys


def import_torch() -> None:
    """Import torch with the garbage collector off, and keep what torch consists of from it afterwards.

    The import makes hundreds of thousands of objects, and all of them stay. The collector would look through them
    over and over while they are made, and again when Python ends.
    """
    if "torch" in sys.modules:
        return
    was_on = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401

        gc.freeze()
    finally:
        if was_on:
            gc.enable()
