"""Torch files: read without running code, written whole or not at all, compared with the run that goes on."""

from __future__ import annotations

import io
import stat
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from efficientad.system.errors import UserError, printable
from efficientad.system.files import atomic_file
from efficientad.system.pickles import ForeignNameError, PickleError, PickleScan, UnsupportedError
from efficientad.system.random_streams import VERSION

MOST_BYTES = 2**32  # of a file: the largest backbones' weights and states of trainings are smaller
_MOST_PICKLE_BYTES = 2**28  # of the part without tensors
_ZIP_START = b"PK\x03\x04"
_TENSOR_MODULES = ("torch", "torch._utils", "torch.storage")
_NO_TENSORS = ("torch.device", "torch.Tensor")
_SAVE_STATE = "save it again as a state_dict: torch.save(model.state_dict(), path)"
_CONVERT = "another tool trained it, use python -m efficientad.convert"


def read_torch_file(path: Path) -> Any:
    """torch.load on the CPU, without running code from the file, with a one-line message for each way to fail.

    Before anything is loaded, PickleScan counts what the file would become. It may hold tensors, numbers and text
    in lists, tuples and dicts, and all of these no more than its size allows.

    Raises:
        UserError: no such file, no torch file, damaged, compressed, too large, or with pickled code.
    """
    return _read(path, None)


class PickledObject:
    """What read_foreign_file makes of an object of any class: its data, and nothing that could run.

    Only of classes that are filled as a dict or a list it makes an OrderedDict or a list.

    Attributes:
        class_name: as in "torch.nn.modules.conv.Conv2d".
        arguments: with which it was to be made.
        state: what it was to get, mostly a dict of its attributes.
    """

    class_name = ""

    def __new__(cls, *arguments: Any) -> PickledObject:
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_foreign_file(path: Path) -> tuple[Any, set[str]]:
    """A file of another tool, in which classes and functions are left as names; see read_torch_file.

    Returns:
        the contents, in which every object of a class is a PickledObject, and every class or function a subclass
        of it, and their names, as in class_name.
    """
    foreign: dict[str, str] = {}
    return _read(path, foreign), set(foreign)


def _read(path: Path, foreign: dict[str, str] | None) -> Any:
    """See PickleScan for `foreign`."""
    refuse_unusual_file(path)
    try:
        with path.open("rb") as file:
            scan_torch_file(file, path, foreign)
            file.seek(0)
            with torch.serialization.safe_globals([_stand_in(*item) for item in (foreign or {}).items()]):
                return torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # the readers behind torch.load raise almost any type on a damaged file
        if isinstance(error, OSError) and error.filename:  # not readable at all
            raise
        raise UserError(f"{path} is not a torch file, or damaged") from None


def _stand_in(name: str, filled_as: str) -> type[PickledObject]:
    """The class that torch takes for "module.name"; see PickleScan for `filled_as`."""
    module, _, attribute = name.rpartition(".")
    facts: dict[str, Any] = {"__module__": module, "__qualname__": attribute, "class_name": name}
    if filled_as != "object":
        made = OrderedDict if filled_as == "dict" else list  # torch's reader fills no others
        facts["__new__"] = lambda cls, *arguments: made()
    return type(PickledObject.__name__, (PickledObject,), facts)


def refuse_unusual_file(path: Path, most_bytes: int = MOST_BYTES) -> None:
    """Raise a UserError unless `path` is a regular file, or a link to one, of at most so many bytes."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except ValueError:  # a NUL in its name
        raise UserError(f"{printable(str(path))} is no name of a file") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise UserError(f"{path} is {kind}; name a file")
    if status.st_size > most_bytes:
        raise UserError(
            f"{path} has {status.st_size:,} bytes and is not opened; no model or teacher has more than "
            f"{most_bytes:,}"
        )


def scan_torch_file(file: BinaryIO, path: Path, foreign: dict[str, str] | None = None) -> None:
    """Raise a UserError unless torch.load can make of the file what it holds, and nothing more.

    Args:
        file: at its beginning.
        path: to name.
        foreign: see PickleScan.
    """
    try:
        if file.read(len(_ZIP_START)) == _ZIP_START:
            _scan_zip(file, path, foreign)
        else:
            file.seek(0)
            _scan_plain(file, path, foreign)
    except ForeignNameError as error:
        if error.name.rpartition(".")[0] in _TENSOR_MODULES and error.name not in _NO_TENSORS:
            raise UserError(
                f"{path} holds tensors of a kind that no detector or teacher has ({error.name}); save it again "
                "with plain float32 tensors"
            ) from None
        advice = _SAVE_STATE if foreign is not None else f"{_SAVE_STATE}, or, if {_CONVERT}"
        raise UserError(
            f"{path} holds pickled Python objects ({printable(error.name[:60])}) and is not opened, since that "
            f"could run any code; {advice}"
        ) from None
    except UnsupportedError as error:
        if foreign is None:
            raise UserError(f"{path} is not a torch file, or damaged: {error}") from None
        raise UserError(f"{path} is not opened: {error}; {_SAVE_STATE}") from None
    except PickleError as error:
        reason = f": {error}" if str(error) else ""
        raise UserError(f"{path} is not a torch file, or damaged{reason}") from None


def _scan_zip(file: BinaryIO, path: Path, foreign: dict[str, str] | None) -> None:
    """A file as torch.save writes it: a zip file, not compressed, with one pickle and a part for each storage."""
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        # torch never compresses: a file that claims to hold more than its size would only fill the memory
        if sum(entry.file_size for entry in entries) > size:
            raise UserError(f"{path} is not a torch file, or damaged: it claims to hold more than its size")
        names = {entry.filename: entry.file_size for entry in entries}
        pickles = [name for name in names if name.endswith("/data.pkl")]
        # so that torch, which reads the zip file in its own way, cannot find another pickle than this one
        plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        plain &= len(names) == len(entries) and len(pickles) == 1 and not archive.comment
        if not plain or min(entry.header_offset for entry in entries) != 0:
            raise PickleError("it is not a zip file as torch.save writes it")
        if names[pickles[0]] > _MOST_PICKLE_BYTES:
            raise PickleError(f"it holds more than {_MOST_PICKLE_BYTES:,} bytes besides tensors")
        if wrong := archive.testzip():  # reads it all; torch itself does not compare
            raise PickleError(f"the checksum of {wrong[:100]} is wrong")
        pickle_bytes = io.BytesIO(archive.read(pickles[0]))
    folder = pickles[0].removesuffix("data.pkl") + "data/"
    storages = {name.removeprefix(folder): count for name, count in names.items() if name.startswith(folder)}
    PickleScan(size, storages, foreign).read(pickle_bytes)
    if foreign:
        file.seek(0)
        # what torch's reader knows by name it makes itself, and not as it has been counted
        made_by_torch = foreign.keys() - torch.serialization.get_unsafe_globals_in_checkpoint(file)
        if made_by_torch:
            raise ForeignNameError(min(made_by_torch))


def _scan_plain(file: BinaryIO, path: Path, foreign: dict[str, str] | None) -> None:
    """A file as torch.save wrote it before version 1.6: five pickles, then the storages."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    scan = PickleScan(size, None)
    if scan.read(file) != torch.serialization.MAGIC_NUMBER:
        raise PickleError("it does not begin like one")
    try:
        for _ in range(4):
            scan.read(file)
    except ForeignNameError as error:
        if foreign is None:
            raise
        raise UserError(
            f"{path} holds pickled Python objects ({printable(error.name[:60])}) in torch's format of before "
            "version 1.6, in which they are not read; save them again in today's, where they were made: "
            "torch.save(torch.load(path, weights_only=False), path)"
        ) from None


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
