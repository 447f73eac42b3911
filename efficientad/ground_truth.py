"""Where a data set keeps the masks of its defects."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from efficientad.datasets import Sample
from efficientad.images import is_image_name


def find_masks(sample: Sample) -> list[Path]:
    """The files that show, white on black, where the defects of a test image are; empty where there are none.

    ground_truth/<class>/<image>_mask.png, <image>.png as in VisA, or a folder <image> with one or several as in
    MVTec LOCO, <image> being the name without its suffix.
    """
    name = PurePosixPath(sample.image_name)
    test_folder = sample.path.parents[len(name.parts)]
    place = test_folder.parent / "ground_truth" / sample.class_name / name.parent
    for candidate in (f"{name.stem}_mask.png", f"{name.stem}.png"):
        if (place / candidate).is_file():
            return [place / candidate]
    folder = place / name.stem
    return sorted(path for path in folder.iterdir() if is_image_name(path.name)) if folder.is_dir() else []
