"""Draw a small data set to try the toolkit: boards of an LED array under a microscope, with COCO annotations.

Everything is drawn from --seed: light boards with traces, pads, dark LEDs and a printed mark. Light, focus, noise,
position and parts vary between all images, so that a defect does not show in the image's mean, contrast, colour or
edges: it has to be found.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from drawn_boards import (
    DEFECTS,
    JPEG_QUALITY,
    PITCH,
    SIDE,
    Outline,
    Polygon,
    draw_led,
    draw_mark,
    draw_particle,
    photograph,
    start_board,
)
from logical_sample import write_logical_sample

CATEGORIES = ("led", "marked", *DEFECTS)  # ids from 1
# Mislabelled on purpose: good images with defects (chosen from the test images of the demo's split) ...
HIDDEN_DEFECTS = {31: ("big_particle",), 112: ("tilted",)}
CLEAN_BUT_ANNOTATED = ("flipped",)  # ... and annotated defects that do not exist
DEMO, LOGICAL = "demo", "logical"
# --kind: its folder, its --good and its --defective
DEFAULTS = {DEMO: ("sample", 140, 8), LOGICAL: ("logical_sample", 400, 20)}


def draw_board(rng: np.random.Generator, defects: tuple[str, ...]) -> tuple[Image.Image, list[Outline]]:
    """A photograph of a board with the given defects, and its annotations."""
    board, left, top = start_board(rng)
    draw_mark(board, rng, left - 24 + rng.uniform(-3, 3), top - 66 + rng.uniform(-3, 3))
    of_leds = [name for name in defects if "particle" not in name]
    broken = dict(zip(rng.permutation(16)[: len(of_leds)].tolist(), of_leds, strict=True))
    for position in range(16):
        row, column = divmod(position, 4)
        draw_led(board, rng, (left + PITCH * column, top + PITCH * row), broken.get(position))
    for name in defects:
        if "particle" in name:
            draw_particle(board, rng, name, left, top)
    return photograph(board.canvas, rng), board.annotations


@dataclass(frozen=True)
class Photo:
    """An image of the sample: its real defects, and those its annotations claim."""

    name: str  # below the sample's folder
    defects: tuple[str, ...]
    claimed: tuple[str, ...] | None  # None: unlabelled, so claimed to be good

    @property
    def is_mislabelled(self) -> bool:
        return self.defects != (self.claimed or ())


def list_photos(good: int, defective: int) -> list[Photo]:
    """The images of the sample.

    Args:
        good: unlabelled good images; a tenth as many more are annotated.
        defective: images of each kind of defect; two kinds at once are on half as many more.
    """
    annotated: list[tuple[tuple[str, ...], tuple[str, ...]]] = []  # defects there are, and those annotated
    for number, kind in enumerate(DEFECTS):
        annotated += [((kind,), (kind,))] * defective
        if number < defective // 2:
            both = (kind, DEFECTS[(number + 2) % len(DEFECTS)])
            annotated.append((both, both))
    annotated += [((), ())] * (good // 10)
    annotated += [((), (kind,)) for kind in CLEAN_BUT_ANNOTATED]
    photos = [
        Photo(f"images/board_{number:04d}.jpg", defects, claimed)
        for number, (defects, claimed) in enumerate(annotated, start=1)
    ]
    for number in range(1, good + 1):
        defects = HIDDEN_DEFECTS.get(number, ())
        photos.append(Photo(f"normal/B/lot_{1 + number % 3}/board_{5000 + number}.jpg", defects, None))
    return photos


def write_sample(folder: Path, seed: int, good: int, defective: int) -> None:
    """Draw the sample into a new folder: images, annotations/instance.json, mislabelled.csv."""
    photos = list_photos(good, defective)
    coco: dict[str, list] = {"images": [], "annotations": [], "categories": []}
    coco["categories"] = [{"id": number, "name": name} for number, name in enumerate(CATEGORIES, start=1)]
    for index, photo in enumerate(photos):
        rng = np.random.default_rng([seed, index])
        image, outlines = draw_board(rng, photo.defects)
        path = folder / photo.name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=JPEG_QUALITY)
        if photo.claimed is None:
            continue
        if photo.is_mislabelled:  # somebody saw a defect on an LED that has none
            leds = [outline for name, outline in outlines if name == "led"]
            outlines += [(kind, leds[rng.integers(len(leds))]) for kind in photo.claimed]
        entry = {"id": len(coco["images"]) + 1, "file_name": path.name, "width": SIDE, "height": SIDE}
        coco["images"].append(entry)
        for name, outline in outlines:
            number = len(coco["annotations"]) + 1
            coco["annotations"].append(coco_annotation(number, entry["id"], CATEGORIES.index(name) + 1, outline))
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instance.json").write_text(json.dumps(coco) + "\n")
    with (folder / "mislabelled.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "labelled", "shows"])
        for photo in photos:
            if photo.is_mislabelled:
                labels = [" and ".join(kinds) or "good" for kinds in (photo.claimed or (), photo.defects)]
                rows.writerow([photo.name, *labels])


def coco_annotation(number: int, image_id: int, category_id: int, outline: Polygon) -> dict:
    """A COCO annotation with polygon and box."""
    points = np.clip(np.array(outline), 0, SIDE)
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    x, y = points.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [round(value, 1) for value in (left, top, right - left, bottom - top)],
        "area": round(float(area), 1),
        "iscrowd": 0,
        "segmentation": [[round(value, 1) for value in points.ravel().tolist()]],
    }


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make_sample.py", description=__doc__)
    parser.add_argument(
        "--kind",
        choices=DEFAULTS,
        default=DEMO,
        help="demo: damaged boards with annotations; logical: boards of which every part is whole, but that break "
        "the rules by which good boards are made, in MVTec LOCO's layout (default: %(default)s)",
    )
    parser.add_argument(
        "-o",
        "--output_dir",
        type=Path,
        metavar="DIR",
        help="a new or empty folder for the sample (default: sample or, of the logical kind, logical_sample beside "
        "this script)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of everything drawn (default: %(default)s)"
    )
    parser.add_argument(
        "--good",
        type=positive_int,
        metavar="N",
        help="good images: unlabelled ones, 140 by default; of the logical kind all, 400 by default, of which a "
        "tenth is for validation and a fifth for testing",
    )
    parser.add_argument(
        "--defective",
        type=positive_int,
        metavar="N",
        help="images for each kind of defect (default: 8; of the logical kind 20, and a quarter as many for each "
        "kind of damage)",
    )
    return parser


def main(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    name, good, defective = DEFAULTS[args.kind]
    folder = args.output_dir or Path(__file__).resolve().parent / name
    good, defective = args.good or good, args.defective or defective
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        parser.error(f"{folder} is there already; remove it or choose another --output_dir")
    if args.kind == LOGICAL and good < 20:
        parser.error(f"--good {good} is too few to train, validate and test with; at least 20")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{folder} cannot be made ({error.strerror}); choose another --output_dir")
    if args.kind == LOGICAL:
        category = write_logical_sample(folder, args.seed, good, defective)
        flags = f"--dataset mvtec_loco --mvtec_loco_path {folder} --subdataset {category}"
        print(f"Drew the sample into {folder}; for train.py and eval.py it is {flags}")
        return
    write_sample(folder, args.seed, good, defective)
    print(f"Drew the sample into {folder}; {folder / 'mislabelled.csv'} lists the images that are labelled wrongly")


if __name__ == "__main__":
    main(get_parser().parse_args(), get_parser())
