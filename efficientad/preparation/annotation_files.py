"""Reads the JSON of an annotation file; what is another kind of file is named as what it is. Imports no torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from efficientad.system.errors import UserError

_EXPORT = "export the annotations as COCO JSON (instances)"
_CONTAINERS = {  # first bytes: what the file is
    b"PK\x03\x04": "a ZIP archive; unpack it and name the JSON file in it",
    b"PK\x05\x06": "an empty ZIP archive; export the annotations again",
    b"\x1f\x8b": "compressed with gzip; unpack it, for example with gunzip",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it and name the JSON file in it",
    b"Rar!": "a RAR archive; unpack it and name the JSON file in it",
    b"BZh": "compressed with bzip2; unpack it",
    b"\xfd7zXZ": "compressed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it",
    b"\x89PNG": "an image; name the COCO file",
    b"\xff\xd8\xff": "an image; name the COCO file",
}
_NOT_COCO = "is not a COCO file: it has no images, annotations and categories"


def read_annotation_file(path: Path) -> dict[str, Any]:
    """The contents of a JSON file in UTF-8, UTF-16 or UTF-32.

    Raises:
        UserError: not readable, not JSON, or the file of another tool or format, which is named.
    """
    if path.is_dir():
        names = sorted(inside.name for inside in path.iterdir() if inside.suffix.lower() == ".json")
        example = f", for example {path / names[0]}" if names else ""
        raise UserError(f"{path} is not a file but a folder; name the COCO file with --annotations{example}")
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise UserError(f"{path} {problem}; name the COCO file with --annotations, or use --annotations none")
    data = path.read_bytes()
    for start, kind in _CONTAINERS.items():
        if data.startswith(start):
            raise UserError(f"{path} is not a JSON file: it is {kind}")
    try:
        contents = json.loads(data)  # tells UTF-8, UTF-16 and UTF-32 apart
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a JSON file: {_describe_encoding(data)}") from None
    except (ValueError, RecursionError) as error:  # broken JSON; nested without end
        raise UserError(f"{path} is not a JSON file: {_describe_text(data) or error}") from None
    if not isinstance(contents, dict):
        raise UserError(f"{path} {_describe_list(contents) if isinstance(contents, list) else _NOT_COCO}")
    if kind := _describe_object(contents):
        raise UserError(f"{path} {kind}")
    return contents


def _describe_encoding(data: bytes) -> str:
    if b"\0" in data or data.strip()[:1] not in (b"{", b"["):
        return "it is neither text in UTF-8 nor in UTF-16"
    likely = "it may be in GBK; " if _is_chinese(data) else ""
    return f"its text is not in UTF-8; {likely}save it again in UTF-8"


def _is_chinese(data: bytes) -> bool:
    """Whether all letters beyond ASCII are pairs of bytes from the Chinese national standard."""
    groups = re.findall(rb"[\x80-\xff]+", data)
    try:
        data.decode("gb2312")
    except UnicodeDecodeError:
        return False
    return any(len(group) >= 4 for group in groups) and not any(len(group) % 2 for group in groups)


def _describe_text(data: bytes) -> str:
    """What a text that is no JSON is; empty if that is not known."""
    start = data[:4096].decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    if start.startswith("<"):
        if re.search(r"<annotation>|<annotation\s", start):
            return f"it is XML as of Pascal VOC, one file an image; {_EXPORT} instead"
        return f"it is XML; {_EXPORT} instead"
    lines = [line.split() for line in start.splitlines()[:20] if line.strip()]
    if lines and all(_is_yolo(words) for words in lines[: max(1, len(lines) - 1)]):
        return f"it is a label file of YOLO, one file an image; {_EXPORT} instead"
    if start.startswith("{") and len(lines) > 1 and len(data.splitlines()) > 1 and _is_json(data.splitlines()[0]):
        return f"it has one JSON document a line; {_EXPORT} instead"
    return ""


def _is_yolo(words: list[str]) -> bool:
    """A class number and coordinates from 0 to 1."""
    coordinates = [re.fullmatch(r"[01](\.\d+)?(e-\d+)?|\d\.\d+e-\d+", word) for word in words[1:]]
    return len(words) >= 5 and words[0].isdecimal() and all(coordinates)


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _describe_list(contents: list) -> str:
    first = contents[0] if contents and isinstance(contents[0], dict) else {}
    if "image_id" in first and "category_id" in first:
        return "is a list of detections (COCO results), without images and categories; name the file of annotations"
    if "data" in first and ("annotations" in first or "completions" in first):
        return f"is Label Studio's own JSON; {_EXPORT} there"
    return _NOT_COCO


def _describe_object(contents: dict[str, Any]) -> str:
    """What a JSON object is that is no COCO file; empty if it may be one."""
    if "images" in contents:
        return ""
    if "shapes" in contents:
        return (
            "is a labelme file of one image; convert the folder of them with labelme's own script "
            "examples/instance_segmentation/labelme2coco.py"
        )
    entries = contents.get("_via_img_metadata", contents)
    values = list(entries.values()) if isinstance(entries, dict) else []
    if "_via_img_metadata" in contents or any(isinstance(value, dict) and "regions" in value for value in values):
        return "is a file of the VGG Image Annotator (VIA); export the annotations there in COCO format"
    return "" if "categories" in contents or "annotations" in contents else _NOT_COCO
