"""Boards of which every part is whole, but that break the rules of good boards, in MVTec LOCO's layout.

The rules are about the board as a whole: how many LEDs of a kind are in a row, and which lot's symbol is printed.
Whatever is next to whatever on a defective board is so on some good board, too, and light, focus, noise and the
order within the rows hide what is left of a defect in a statistic of the whole image.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from drawn_boards import (
    AMBER,
    BODY,
    DARK,
    DEFECTS,
    JPEG_QUALITY,
    PITCH,
    SIDE,
    SUPERSAMPLING,
    Board,
    Polygon,
    draw_led,
    draw_mark,
    draw_pads,
    draw_particle,
    photograph,
    rectangle,
    start_board,
    tinted,
)

CATEGORY = "led_board"
LOGICAL, STRUCTURAL = "logical_anomalies", "structural_anomalies"
LOGICAL_DEFECTS = ("missing", "extra", "wrong_kind", "swapped", "misplaced", "other_lot_mark")
LOTS = (DARK, AMBER)  # named by the kind of which a lot's boards have more
COLUMNS = 4
# LEDs of the lot's main and of the other kind in each row
ROW_COUNTS = ((2, 1), (1, 1), (2, 1), (1, 1))
SYMBOLS = {DARK: "square", AMBER: "ring"}
RULES = {
    "a board": f"has {len(ROW_COUNTS)} rows of {COLUMNS} places and belongs to the lot dark or the lot amber",
    "rows 1 and 3": "two LEDs of the lot's kind, one of the other kind and an empty place, in any order",
    "rows 2 and 4": "an LED of each kind and two empty places, in any order",
    "the symbol behind the lot number": "a square on boards of the lot dark, a ring on those of the lot amber",
    "free": "the lot number, ground lines above or below a row, tints, position, light, focus and noise",
}
_LED_AREA = BODY[0] * BODY[1]

Row = list[str | None]  # the kind of LED at each place; None: empty


@dataclass
class Layout:
    """What a board consists of, and where the rules are broken.

    Attributes:
        suspects: for each defect the places (row, column) of which one is wrong; as many as it takes.
    """

    lot: str
    rows: list[Row]
    symbol: str
    suspects: list[list[tuple[int, int]]]


def good_layout(rng: np.random.Generator) -> Layout:
    """A board by the rules."""
    lot = LOTS[rng.integers(2)]
    rows = []
    for main, other in ROW_COUNTS:
        row: Row = [lot] * main + [other_kind(lot)] * other
        row += [None] * (COLUMNS - len(row))
        rows.append([row[place] for place in rng.permutation(COLUMNS)])
    return Layout(lot, rows, SYMBOLS[lot], [])


def other_kind(kind: str) -> str:
    return AMBER if kind == DARK else DARK


def break_rules(layout: Layout, defect: str, rng: np.random.Generator) -> None:
    """Change a good layout so that it has a logical defect.

    Where LEDs are too many or of the wrong kind, all of that kind in the row are suspect, since each could be the
    wrong one; where one is missing, all empty places of the row.
    """
    rows = layout.rows
    first, second = rng.permutation(len(rows))[:2].tolist()
    kind = LOTS[rng.integers(2)]

    def put(row: int, new: str | None, old: str | None) -> None:
        places = [column for column in range(COLUMNS) if rows[row][column] == old]
        rows[row][places[rng.integers(len(places))]] = new

    if defect == "missing":
        put(first, None, kind)
        changed = [(first, None)]
    elif defect == "extra":
        put(first, kind, None)
        changed = [(first, kind)]
    elif defect == "wrong_kind":
        put(first, kind, other_kind(kind))
        changed = [(first, kind)]
    elif defect == "swapped":  # between two rows
        put(first, kind, other_kind(kind))
        put(second, other_kind(kind), kind)
        changed = [(first, kind), (second, other_kind(kind))]
    elif defect == "misplaced":  # into another row
        put(first, None, kind)
        put(second, kind, None)
        changed = [(first, None), (second, kind)]
    else:
        layout.symbol = SYMBOLS[other_kind(layout.lot)]
        changed = []
    layout.suspects = [
        [(row, column) for column in range(COLUMNS) if rows[row][column] == kind] for row, kind in changed
    ]


def draw_symbol(board: Board, rng: np.random.Generator, symbol: str, centre: tuple[float, float]) -> Polygon:
    """Print the symbol of a lot; returns its outline."""
    colour = tinted(rng, (112, 114, 120), 0.06)
    outline = rectangle(centre, 22, 22, 0)
    if symbol == "square":
        board.polygon(rectangle(centre, 20, 20, 0), colour)
    else:
        (left, top), _, (right, bottom), _ = [
            (SUPERSAMPLING * x, SUPERSAMPLING * y) for x, y in rectangle(centre, 22, 22, 0)
        ]
        pen = ImageDraw.Draw(board.canvas)
        pen.ellipse((left, top, right, bottom), outline=tuple(map(int, colour)), width=4 * SUPERSAMPLING)
    return outline


def draw_logical_board(
    rng: np.random.Generator, defect: str | None
) -> tuple[Image.Image, list[list[Polygon]], Layout]:
    """A photograph of a board, the outlines of each of its defects, and its layout.

    Args:
        defect: one of LOGICAL_DEFECTS, of DEFECTS (a part is damaged), or None.
    """
    layout = good_layout(rng)
    if defect in LOGICAL_DEFECTS:
        break_rules(layout, defect, rng)
    board, left, top = start_board(rng)
    x, y = left - 24 + rng.uniform(-3, 3), top - 66 + rng.uniform(-3, 3)
    draw_mark(board, rng, x, y)
    symbol = draw_symbol(board, rng, layout.symbol, (x + 150, y + 13))
    places = {(row, column): (left + PITCH * column, top + PITCH * row) for row in range(4) for column in range(4)}
    occupied = [place for place in places if layout.rows[place[0]][place[1]]]
    broken = occupied[rng.integers(len(occupied))] if defect in DEFECTS and "particle" not in defect else None
    for place, centre in places.items():
        kind = layout.rows[place[0]][place[1]]
        if kind:
            draw_led(board, rng, centre, defect if place == broken else None, kind)
        else:
            draw_pads(board, rng, centre)
    if defect in DEFECTS and "particle" in defect:
        draw_particle(board, rng, defect, left, top)
    if defect in DEFECTS:
        regions = [[outline for name, outline in board.annotations if name == defect]]
    elif defect == "other_lot_mark":
        regions = [[symbol]]
    else:
        regions = [[rectangle(places[place], *BODY, 0) for place in some] for some in layout.suspects]
    return photograph(board.canvas, rng), regions, layout


def write_logical_sample(folder: Path, seed: int, good: int, defective: int) -> str:
    """Draw the sample into a new folder; returns the name of its category.

    Args:
        good: images of good boards: a tenth for validation, a fifth for testing, the others for training.
        defective: images of each kind of logical defect; a quarter as many, at least one, of each kind of damage.
    """
    root = folder / CATEGORY
    plan = [("train/good", None, good - good // 10 - good // 5)]
    plan += [("validation/good", None, good // 10), ("test/good", None, good // 5)]
    plan += [(f"test/{LOGICAL}", defect, defective) for defect in LOGICAL_DEFECTS]
    plan += [(f"test/{STRUCTURAL}", defect, max(1, defective // 4)) for defect in DEFECTS]
    for number, (part, defect, count) in enumerate(plan):
        (root / part).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image, regions, _ = draw_logical_board(np.random.default_rng([seed, number, index]), defect)
            name = f"{defect}_{index:03d}" if defect else f"{index:03d}"
            image.save(root / part / f"{name}.jpg", quality=JPEG_QUALITY)
            masks = root / "ground_truth" / Path(part).name / name
            for place, outlines in enumerate(regions):
                masks.mkdir(parents=True, exist_ok=True)
                draw_mask(outlines, pixel_value(defect)).save(masks / f"{place:03d}.png")
    (root / "defects_config.json").write_text(json.dumps(saturations(), indent=2) + "\n")
    (root / "rules.json").write_text(json.dumps(RULES, indent=2) + "\n")
    return CATEGORY


def pixel_value(defect: str) -> int:
    """Of a kind of defect in the masks."""
    return 255 - (*LOGICAL_DEFECTS, *DEFECTS).index(defect)


def draw_mask(outlines: list[Polygon], value: int) -> Image.Image:
    """A mask, 0 outside the outlines."""
    mask = Image.new("L", (SIDE, SIDE))
    for outline in outlines:
        ImageDraw.Draw(mask).polygon(outline, fill=value)
    return mask


def saturations() -> list[dict]:
    """How much of each kind of defect must be found, as MVTec LOCO has it.

    A region of suspects saturates at the area of one LED: no more than one of them is wrong. Other regions have to
    be found as a whole.
    """
    return [
        {
            "defect_name": defect,
            "pixel_value": pixel_value(defect),
            "saturation_threshold": 1.0 if whole else _LED_AREA,
            "relative_saturation": whole,
        }
        for defect in (*LOGICAL_DEFECTS, *DEFECTS)
        for whole in (defect in (*DEFECTS, "other_lot_mark"),)
    ]
