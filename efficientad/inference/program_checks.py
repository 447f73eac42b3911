"""Whether a .pt2 file holds a program as efficientad.export writes it, before torch.export reads it.

torch.export.load runs code that a file can bring: pickles, conditions as Python source, expressions for sympy. A
file with any that the exporter does not write is refused unread.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from efficientad.inference.graph_checks import ForeignGraphError, check_result_size
from efficientad.inference.metadata import METADATA_FILE, Metadata
from efficientad.system.torch_files import scan_torch_file

_MOST_JSON_BYTES = 2**26
_ATEN = r"torch\.ops\.aten\.({})\.\w+".format(
    "_assert_tensor_metadata|abs|add|alias|amax|avg_pool2d|bitwise_not|clamp|clone|conv2d|detach_?|div|dropout|fill_|flatten|gt|index|"
    "lift_fresh_copy|linear|matmul|max|max_pool2d|maximum|mean|mul|ne|neg|numpy_T|ones|pad|permute|relu_?|select|slice|"
    "split|sqrt|square|squeeze|stack|sub|sum|to|topk|transpose|unbind|unflatten|unsqueeze|upsample_bilinear2d|view|where"
)
_PLAIN_PARTS = r"/(weight|tensor)_\d+$|/(archive_format|archive_version|version|byteorder|serialization_id)$"
_SIDE = r"L\['\w{1,30}'\]\.size\(\)\[\d\]"
_ALLOWED = {  # what these keys may hold, anywhere in the program's JSON
    "target": rf"{_ATEN}|torch\.ops\.higher_order\.wrap_with_autocast",
    "expr_str": r"Symbol\('s\d{1,5}', positive=True, integer=True\)|s\d{1,5}|\d{1,9}",
    "guards_code": rf"{_SIDE} (==|!=|<|>|<=|>=) ({_SIDE}|\d{{1,9}})",
}


def check_program_file(path: Path) -> Metadata:
    """The metadata of a .pt2 file, if nothing else in it can run code or grow.

    Raises:
        ForeignGraphError: it can.
        UserError: the metadata or a torch file within it are not those of an export.
        KeyError, ValueError, zipfile.BadZipFile: it is damaged.
    """
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ForeignGraphError("it is compressed, or claims to hold more than its size")
        if len({entry.filename for entry in entries}) < len(entries) or min(e.header_offset for e in entries):
            raise ForeignGraphError("it is not a zip file as torch writes it")
        (facts,) = (entry for entry in entries if entry.filename.endswith(f"/{METADATA_FILE}"))
        texts = _read_json(archive, facts)
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise ForeignGraphError("its metadata are no texts")
        metadata = Metadata.from_text(texts, path)
        for entry in (entry for entry in entries if entry is not facts):
            with archive.open(entry) as data:
                is_torch_file = data.read(2) == b"PK" or entry.filename.endswith(".pt")
            if entry.filename.endswith(".json"):
                _check_json(_read_json(archive, entry))
            elif is_torch_file:
                scan_torch_file(io.BytesIO(archive.read(entry)), path)
            elif not re.search(_PLAIN_PARTS, entry.filename):
                raise ForeignGraphError(f"it holds {entry.filename[:100]}")
    return metadata


def check_result_sizes(program: Callable[..., Any], metadata: Metadata, file_bytes: int) -> None:
    """Raise a ForeignGraphError if any result for one image is not of bounded size; computes nothing.

    Args:
        program: takes the inputs of the file in their order.
    """

    class CheckResults(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            results = func(*args, **(kwargs or {}))
            for result in results if isinstance(results, list | tuple) else [results]:
                if isinstance(result, Tensor):
                    check_result_size(metadata, str(func), list(map(int, result.shape)), file_bytes)
            return results

    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        inputs = [torch.empty(shape, dtype=torch.uint8) for shape in metadata.shapes_of_one().values()]
        with CheckResults():
            program(*inputs)


def _read_json(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Any:
    if entry.file_size > _MOST_JSON_BYTES:
        raise ForeignGraphError(f"{entry.filename[:100]} is too large")
    return json.loads(archive.read(entry))


def _check_json(contents: Any) -> None:
    for key, value in _pairs(contents):
        if key in _ALLOWED:
            for text in value if isinstance(value, list) else [value]:
                if not isinstance(text, str) or not re.fullmatch(_ALLOWED[key], text):
                    raise ForeignGraphError(f"it has the {key} {str(text)[:100]}")
        if (key in ("use_pickle", "custom_obj_values") and value) or key == "as_custom_obj":
            raise ForeignGraphError("it holds pickled Python objects")


def _pairs(contents: Any) -> Iterator[tuple[str, Any]]:
    """All keys with their values, at any depth."""
    if isinstance(contents, Mapping):
        yield from contents.items()
    for inner in (
        contents.values() if isinstance(contents, Mapping) else contents if isinstance(contents, list) else ()
    ):
        yield from _pairs(inner)
