"""Torch files: read without running code, written whole or not at all, compared with the run that goes on."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efficientad.system.errors import UserError
from efficientad.system.files import atomic_file
from efficientad.system.random_streams import VERSION


def read_torch_file(path: Path) -> Any:
    """torch.load on the CPU, without running code from the file, with a one-line message for each way to fail.

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
    """torch never compresses: a file that claims to hold more than its size would only fill the memory."""
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
        raise UserError(f"{path} holds no state_dict of a network, but something else")
    for key, tensor in state.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.is_floating_point()
        if not plain:
            raise UserError(f"{path} holds no state_dict of a network: {key} is not a tensor of plain numbers")
        if not tensor.isfinite().all():
            raise UserError(f"{path} is damaged: {key} has values that are not finite")
    return dict(state)


def write_atomically(contents: Any, path: Path) -> None:
    """torch.save to `path`, which appears complete or not at all."""
    buffer = io.BytesIO()  # torch.save hides behind its own errors that a disk is full
    torch.save(contents, buffer)
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())


def read_state(path: Path, kind: str, part: str, settings: Mapping[str, Any]) -> dict:
    """The saved state of an interrupted run: a dict with a Mapping "settings" and the key `part`.

    Args:
        kind: for people, as in "a training".
        part: a key that every state of that kind has.
        settings: of the run that is to go on; all must be as they were. Compared as text.

    Raises:
        UserError: no such state, damaged, or made with other settings, which are named.
    """
    try:
        state = read_torch_file(path)
    except UserError as error:
        raise UserError(f"{error}; begin anew with --overwrite") from None
    if not isinstance(state, dict) or "settings" not in state or part not in state:
        raise UserError(f"{path} is not the state of {kind}; remove it or choose another output")
    if state.get("streams") != VERSION:
        raise UserError(
            f"{path} was saved by another version of this toolkit, which draws other random numbers; begin anew "
            "with --overwrite"
        )
    then = state["settings"]
    if settings.keys() - then.keys():
        raise UserError(
            f"{path} was saved by another version of this toolkit, which had other settings; begin anew with "
            "--overwrite"
        )
    differing = [
        f"{key} {then.get(key)}, now {value}" for key, value in settings.items() if str(then.get(key)) != str(value)
    ]
    if differing:
        raise UserError(
            f"{path} was made with other settings or images ({'; '.join(differing)}); give the same ones with "
            "--resume, or begin anew with --overwrite"
        )
    return state


def compare_images(then: Mapping[str, str], now: Mapping[str, str], path: Path) -> None:
    """Raise a UserError unless the images are the same.

    Args:
        then, now: digests by name.
        path: of the state that remembers `then`.
    """
    changed = [f"{name} is new" for name in now if name not in then]
    changed += [f"{name} is missing" for name in then if name not in now]
    changed += [f"{name} is another image" for name in then if name in now and then[name] != now[name]]
    if changed:
        more = f" and {len(changed) - 1} more differences" if len(changed) > 1 else ""
        raise UserError(
            f"{path} was made with other images: {changed[0]}{more}; "
            "bring them back, or start again with --overwrite"
        )
