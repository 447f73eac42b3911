"""Draw a small data set to try the toolkit: boards of an LED array under a microscope, with COCO annotations.

Everything is drawn from --seed: light boards with traces, pads, dark LEDs and a printed mark. Light, focus, noise,
position and parts vary between all images, so that a defect does not show in the image's mean, contrast, colour or
edges: it has to be found.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 320  # pixels of an image
SUPERSAMPLING = 3  # boards are drawn this much larger and averaged, for smooth edges
PITCH = 62  # between LEDs
BODY = (38, 26)  # width and height of an LED
CATEGORIES = ("led", "marked", "particle", "big_particle", "flipped", "tilted", "damaged_led")  # ids from 1
DEFECTS = CATEGORIES[2:]
DEAD_PIXELS = 12  # of the camera, in each image: black, white or of one colour
JPEG_QUALITY = 95
# Mislabelled on purpose: good images with defects (chosen from the test images of the demo's split) ...
HIDDEN_DEFECTS = {31: ("big_particle",), 112: ("tilted",)}
CLEAN_BUT_ANNOTATED = ("flipped",)  # ... and annotated defects that do not exist

Polygon = list[tuple[float, float]]
Outline = tuple[str, Polygon]  # category and where it is


@dataclass
class Board:
    """What is drawn, in pixels of the final image, and its annotations."""

    canvas: Image.Image
    annotations: list[Outline] = field(default_factory=list)

    def polygon(self, points: Polygon, colour: np.ndarray | tuple[int, int, int]) -> None:
        scaled = [(SUPERSAMPLING * x, SUPERSAMPLING * y) for x, y in points]
        ImageDraw.Draw(self.canvas).polygon(scaled, fill=tuple(int(value) for value in colour))


def rectangle(centre: tuple[float, float], width: float, height: float, angle: float) -> Polygon:
    """The corners of a rectangle turned by `angle` radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    corners = ((-width, -height), (width, -height), (width, height), (-width, height))
    return [(centre[0] + (x * cos - y * sin) / 2, centre[1] + (x * sin + y * cos) / 2) for x, y in corners]


def blob(rng: np.random.Generator, centre: tuple[float, float], radius: float) -> Polygon:
    """An irregular closed outline around `centre`, longer than wide."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    waves = sum(rng.normal(0, 0.16 / n) * np.cos(n * angles + rng.uniform(0, 6.3)) for n in range(1, 6))
    stretch, turn = rng.uniform(1.0, 1.7), rng.uniform(0, np.pi)
    x, y = radius * (1 + waves) * np.cos(angles) * stretch, radius * (1 + waves) * np.sin(angles)
    return [
        (centre[0] + a * math.cos(turn) - b * math.sin(turn), centre[1] + a * math.sin(turn) + b * math.cos(turn))
        for a, b in zip(x.tolist(), y.tolist(), strict=True)
    ]


def tinted(rng: np.random.Generator, colour: tuple[int, int, int], spread: float) -> np.ndarray:
    """A colour a little brighter or darker than the given one."""
    return np.clip(np.array(colour) * (1 + rng.normal(0, spread)), 0, 255)


def draw_led(board: Board, rng: np.random.Generator, centre: tuple[float, float], defect: str | None) -> None:
    """Draw one LED on its pads, with its annotation; `defect` is flipped, tilted, damaged_led or None."""
    for side in (-1, 1):
        pad = (centre[0] + side * (BODY[0] / 2 + 1), centre[1])
        board.polygon(rectangle(pad, 11, 20, 0), tinted(rng, (188, 172, 130), 0.04))
    angle = math.radians(rng.normal(0, 1.2))
    if defect == "tilted":
        angle += math.radians(rng.uniform(14, 32)) * rng.choice((-1, 1))
    x, y = (value + rng.normal(0, 0.8) for value in centre)
    cos, sin = math.cos(angle), math.sin(angle)

    def place(points: Polygon) -> Polygon:
        return [(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in points]

    outline = place(rectangle((0, 0), *BODY, 0))
    if defect == "tilted":  # it stands up on one side: a hard shadow, and its solder shines
        board.polygon([(a + 3.5, b + 4) for a, b in outline], tinted(rng, (24, 22, 22), 0.1))
        for side in (-1, 1):
            solder = place(rectangle((side * (BODY[0] / 2 + 1), 0), 5, 20, 0))
            board.polygon(solder, tinted(rng, (240, 236, 222), 0.02))
    if defect == "flipped":  # the underside: ceramic with two terminals and a thermal pad
        board.polygon(outline, tinted(rng, (236, 234, 228), 0.03))
        for side in (-1, 1):
            board.polygon(place(rectangle((side * 13, 0), 7, 20, 0)), tinted(rng, (208, 140, 44), 0.06))
        board.polygon(place(rectangle((0, 0), 11, 17, 0)), tinted(rng, (96, 84, 66), 0.06))
        board.polygon(place([(-5, 8), (0, 2), (5, 8)]), tinted(rng, (40, 128, 66), 0.06))
    else:
        board.polygon(outline, tinted(rng, (92, 91, 92), 0.04))
        window = tinted(rng, (116, 112, 98), 0.04)
        board.polygon(place(rectangle((rng.normal(0, 0.5), 0), 17, 15, 0)), window)
        board.polygon(place([(-17, -11), (-10, -11), (-17, -4)]), tinted(rng, (132, 150, 134), 0.05))
    if defect == "damaged_led":
        for shape, colour in damage(rng):
            board.polygon(place(shape), colour)
    board.annotations.append(("led", outline))
    if defect:
        board.annotations.append((defect, outline))


def damage(rng: np.random.Generator) -> list[tuple[Polygon, np.ndarray]]:
    """A corner broken off an LED and a crack from there, from the LED's centre, with their colours."""
    x, y = rng.choice((-1, 1)) * BODY[0] / 2, rng.choice((-1, 1)) * BODY[1] / 2
    wide, high = math.copysign(rng.uniform(13, 20), x), math.copysign(rng.uniform(11, 16), y)
    chip = [(x, y), (x - wide, y), (x - wide * 0.4, y * 0.55), (x, y - high)]
    crack = [(x * 0.5, y * 0.5), (x * 0.1, y * 0.3), (-x * 0.3, -y * 0.4), (-x * 0.5, -y * 0.9)]
    crack += [(a + 1.6, b + 0.8) for a, b in reversed(crack)]
    return [(chip, tinted(rng, (246, 240, 228), 0.02)), (crack, tinted(rng, (26, 22, 20), 0.1))]


def draw_mark(board: Board, rng: np.random.Generator, left: float, top: float) -> None:
    """The printed type and lot number, which differs from board to board, with its annotation."""
    text = f"LA{rng.integers(10, 99)}-{rng.integers(1000, 9999)}"
    font = ImageFont.load_default(size=17 * SUPERSAMPLING)
    pen = ImageDraw.Draw(board.canvas)
    corner = (SUPERSAMPLING * left, SUPERSAMPLING * top)
    pen.text(corner, text, font=font, fill=tuple(int(value) for value in tinted(rng, (120, 122, 126), 0.06)))
    x0, y0, x1, y1 = (value / SUPERSAMPLING for value in pen.textbbox(corner, text, font=font))
    board.annotations.append(("marked", [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]))


def draw_board(rng: np.random.Generator, defects: tuple[str, ...]) -> tuple[Image.Image, list[Outline]]:
    """A photograph of a board with the given defects, and its annotations."""
    colour = tuple(int(value) for value in tinted(rng, (190, 187, 176), 0.03))
    board = Board(Image.new("RGB", (SIDE * SUPERSAMPLING, SIDE * SUPERSAMPLING), colour))
    left, top = 67 + rng.uniform(-7, 7), 82 + rng.uniform(-7, 7)
    trace = tinted(rng, (174, 168, 148), 0.03)
    for column in range(4):
        x = left + PITCH * column
        for side in (-1, 1):
            board.polygon(rectangle((x + side * 20, top + PITCH * 1.5), 3.5, 4 * PITCH + 60, 0), trace)
    for row in range(4):  # a board has its ground line above or below the LEDs of a row
        y = top + PITCH * row + 26 * rng.choice((-1, 1))
        board.polygon(rectangle((left + PITCH * 1.5, y), 3 * PITCH + 52, 3, 0), trace)
    draw_mark(board, rng, left - 24 + rng.uniform(-3, 3), top - 66 + rng.uniform(-3, 3))
    of_leds = [name for name in defects if "particle" not in name]
    broken = dict(zip(rng.permutation(16)[: len(of_leds)].tolist(), of_leds, strict=True))
    for position in range(16):
        row, column = divmod(position, 4)
        draw_led(board, rng, (left + PITCH * column, top + PITCH * row), broken.get(position))
    for name in defects:
        if "particle" in name:
            radius = rng.uniform(10, 17) if name == "big_particle" else rng.uniform(4.5, 7)
            colours = ((26, 18, 14), (28, 36, 112), (112, 24, 20))
            # between the rows, where dark things show
            column, row = rng.uniform(-0.2, 3.2), rng.integers(0, 3) + rng.uniform(0.42, 0.58)
            centre = (left + PITCH * column, top + PITCH * row)
            outline = blob(rng, centre, radius)
            board.polygon(outline, tinted(rng, colours[rng.integers(len(colours))], 0.1))
            board.annotations.append((name, outline))
    return photograph(board.canvas, rng), board.annotations


def photograph(canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The drawn board with a microscope's light, focus and noise."""
    image = canvas.resize((SIDE, SIDE), Image.Resampling.BOX)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    pixels = np.asarray(image).astype(np.float64)
    x, y = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE))
    slope = rng.normal(0, 0.05, 2)
    light = rng.uniform(0.92, 1.1) * (1 + slope[0] * x + slope[1] * y - rng.uniform(0, 0.06) * (x * x + y * y))
    warmth = rng.normal(0, 0.02)
    pixels *= light[..., None] * np.array([1 + warmth, 1.0, 1 - warmth])
    contrast = rng.uniform(0.85, 1.1)
    pixels = 128 + contrast * (pixels - 128) + rng.normal(0, rng.uniform(1.5, 4.5), pixels.shape)
    for row, column in rng.integers(0, SIDE, (DEAD_PIXELS, 2)):  # so that extreme pixels do not reveal a defect
        pixels[row, column] = 255 * rng.integers(0, 2, 3)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


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
        "-o",
        "--output_dir",
        type=Path,
        default=Path(__file__).resolve().parent / "sample",
        metavar="DIR",
        help="a new or empty folder for the sample (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of everything drawn (default: %(default)s)"
    )
    parser.add_argument(
        "--good", type=positive_int, default=140, metavar="N", help="unlabelled good images (default: %(default)s)"
    )
    parser.add_argument(
        "--defective",
        type=int,
        default=8,
        metavar="N",
        help="images for each kind of defect (default: %(default)s)",
    )
    return parser


def main(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    folder = args.output_dir
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        parser.error(f"{folder} is there already; remove it or choose another --output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    write_sample(folder, args.seed, args.good, args.defective)
    print(f"Drew the sample into {folder}; {folder / 'mislabelled.csv'} lists the images that are labelled wrongly")


if __name__ == "__main__":
    main(get_parser().parse_args(), get_parser())
