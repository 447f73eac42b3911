"""Reading torch files of unknown origin: no code is run, no memory beyond the file's own size is taken."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efficientad.errors import UserError


def read_torch_file(path: Path) -> Any:
    """torch.load on the CPU that never runs code from the file, with a line for each way to fail.

    Raises:
        UserError: no such file, no torch file, damaged, compressed, or with pickled code.
    """
    try:
        _refuse_inflated(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UserError:
        raise
    except Exception as error:  # the readers behind torch.load raise almost any type on a damaged file
        if isinstance(error, OSError) and error.filename:  # not readable at all
            raise
        if isinstance(error, pickle.UnpicklingError) and _looks_pickled(path):
            raise UserError(
                f"{path} holds pickled Python objects and is not opened, since that could run any code; "
                "save it again as a state_dict: torch.save(model.state_dict(), path)"
            ) from None
        raise UserError(f"{path} is not a torch file, or damaged") from None


def _refuse_inflated(path: Path) -> None:
    """torch never compresses: what claims to hold more than the file has would only fill the memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > path.stat().st_size:
            raise UserError(f"{path} is not a torch file, or damaged: it claims to hold more than its size")


def _looks_pickled(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")


def require_weights(state: object, path: Path) -> dict[str, Tensor]:
    """The state_dict, if it is one of plain tensors with finite numbers.

    Raises:
        UserError: it is not; `path` is named.
    """
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{path} holds no state_dict of a network")
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise UserError(f"{path} holds no state_dict of a network, but other things")
    for key, tensor in state.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.is_floating_point()
        if not plain:
            raise UserError(f"{path} holds no state_dict of a network: {key} is not a tensor of plain numbers")
        if not tensor.isfinite().all():
            raise UserError(f"{path} is damaged: {key} has values that are not finite")
    return dict(state)
