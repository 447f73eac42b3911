"""The folder an evaluation writes into: it replaces its own files of last time, and touches no others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from efficientad.data.datasets import Sample


def map_names(samples: Sequence[Sample], suffix: str) -> list[str]:
    """The file below the output folder for each sample's map: <class>/<image without its suffix><suffix>.

    A class with two images that differ only in the suffix (a.jpg, a.png) keeps all suffixes (a.jpg.tiff).
    """
    stems: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        stems[sample.class_name].append(_stem(sample).casefold())
    keeps_suffix = {name for name, inside in stems.items() if len(set(inside)) < len(inside)}
    return [
        f"{sample.class_name}/"
        + (sample.image_name if sample.class_name in keeps_suffix else _stem(sample))
        + suffix
        for sample in samples
    ]


def _stem(sample: Sample) -> str:
    return PurePosixPath(sample.image_name).with_suffix("").as_posix()
