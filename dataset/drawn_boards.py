"""What drawn boards consist of: LEDs on pads, particles, a printed mark; and the microscope above them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 320  # pixels of an image
SUPERSAMPLING = 3  # boards are drawn this much larger and averaged, for smooth edges
PITCH = 62  # between LEDs
BODY = (38, 26)  # width and height of an LED
DEAD_PIXELS = 12  # of the camera, in each image: black, white or of one colour
JPEG_QUALITY = 95
DEFECTS = ("particle", "big_particle", "flipped", "tilted", "damaged_led")
DARK, AMBER = "dark", "amber"  # kinds of LEDs
_LED_COLOURS = {
    DARK: ((92, 91, 92), (116, 112, 98), (132, 150, 134)),
    AMBER: ((228, 214, 186), (214, 158, 62), (96, 74, 40)),
}

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


def start_board(rng: np.random.Generator) -> tuple[Board, float, float]:
    """A board with its traces alone, and the left and top of its 4 x 4 places."""
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
    return board, left, top


def draw_pads(board: Board, rng: np.random.Generator, centre: tuple[float, float]) -> None:
    """Draw the two pads of a place, with an LED or without."""
    for side in (-1, 1):
        pad = (centre[0] + side * (BODY[0] / 2 + 1), centre[1])
        board.polygon(rectangle(pad, 11, 20, 0), tinted(rng, (188, 172, 130), 0.04))


def draw_led(
    board: Board, rng: np.random.Generator, centre: tuple[float, float], defect: str | None, kind: str = DARK
) -> None:
    """Draw one LED on its pads, with its annotation; `defect` is flipped, tilted, damaged_led or None."""
    draw_pads(board, rng, centre)
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
        body, window, corner = _LED_COLOURS[kind]
        board.polygon(outline, tinted(rng, body, 0.04))
        window = tinted(rng, window, 0.04)
        board.polygon(place(rectangle((rng.normal(0, 0.5), 0), 17, 15, 0)), window)
        board.polygon(place([(-17, -11), (-10, -11), (-17, -4)]), tinted(rng, corner, 0.05))
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


def draw_particle(board: Board, rng: np.random.Generator, name: str, left: float, top: float) -> None:
    """Draw a particle or a big_particle between the rows, where dark things show, with its annotation."""
    radius = rng.uniform(10, 17) if name == "big_particle" else rng.uniform(4.5, 7)
    colours = ((26, 18, 14), (28, 36, 112), (112, 24, 20))
    column, row = rng.uniform(-0.2, 3.2), rng.integers(0, 3) + rng.uniform(0.42, 0.58)
    outline = blob(rng, (left + PITCH * column, top + PITCH * row), radius)
    board.polygon(outline, tinted(rng, colours[rng.integers(len(colours))], 0.1))
    board.annotations.append((name, outline))


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
