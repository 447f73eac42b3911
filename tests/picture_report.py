"""Draws the README's picture of a report, dataset/report.png, from the demo's (dataset/demo.sh):

python tests/picture_report.py output/demo/anomaly_maps/custom/report.html dataset/report.png
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from browser import Browser, find_programs

WIDTH, TOP, IMAGES = 1150, 800, 642  # pixels: the top of the page, then its images
RULE, RULE_COLOUR = 6, (130, 128, 140)


def photograph(browser, report, folder):
    """Screenshots of the top of the page and of its gallery."""
    browser.open(report, WIDTH, TOP)
    browser.screenshot(folder / "top.png")
    browser.open(report, WIDTH, IMAGES + 58)  # the bar at the top stays there
    browser.run("scrollTo(0, document.getElementById('legend').getBoundingClientRect().top - 66)")
    for _ in range(3):  # what comes into view is painted in the next frame
        browser.settle()
    browser.screenshot(folder / "images.png")
    return Image.open(folder / "top.png"), Image.open(folder / "images.png").crop((0, 58, WIDTH, IMAGES + 58))


def main(report, target):
    with tempfile.TemporaryDirectory() as folder:
        browser = Browser(find_programs(), folder)
        try:
            top, images = photograph(browser, report.resolve(), Path(folder))
        finally:
            browser.close()
        picture = Image.new("RGB", (WIDTH, TOP + RULE + IMAGES), RULE_COLOUR)
        picture.paste(top, (0, 0))
        picture.paste(images, (0, TOP + RULE))
        picture = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
        picture.save(target, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
