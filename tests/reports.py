"""Reports of made-up evaluations: scores and names as a test wants them, small drawn pictures."""

import hashlib
import json
import os
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from efficientad.data.datasets import Sample
from efficientad.detector.calibration import calibrate
from efficientad.evaluation.report import ScoredSample, describe_chance, evaluate_scores
from efficientad.evaluation.report_page import REPORT_FILE, ReportFacts, write_report
from efficientad.evaluation.thumbnails import Picture, encode_map, encode_thumbnail, plan_pictures

THRESHOLD = 80.0


def _made_up_rows():
    rng = np.random.default_rng(3)
    rows = [("good", f"g{index:03d}.png", float(np.float32(rng.gamma(3, 15)))) for index in range(90)]
    for kind, mean in (("dent", 200), ("scratch", 90)):
        rows += [(kind, f"{kind}{index}.png", float(np.float32(rng.gamma(3, mean / 3)))) for index in range(30)]
    return rows


ROWS = _made_up_rows()  # class name, image name, score


class Page(HTMLParser):
    """A report as a browser's parser sees it: every tag with its attributes, and the data of its script."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.json, self._in_json = [], "", False
        self.feed(path.read_text(encoding="utf-8"))
        self.data = json.loads(self.json)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in_json = tag == "script" and dict(attrs).get("id") == "data"

    def handle_endtag(self, tag):
        self._in_json = False

    def handle_data(self, data):
        if self._in_json:
            self.json += data


def blob_map(score, centre=(100, 160), radius=40):
    """A 256 x 256 map of that score, whose largest value is higher."""
    rows, columns = np.mgrid[:256, :256]
    distances = np.hypot(rows - centre[0], columns - centre[1])
    blob = np.clip(1.4 - distances / radius, 0.02, 1) + 0.3 * (distances < 3)
    return (score * blob).astype(np.float32)


def scored_images(rows, test_folder, size=(60, 40), mask="20 10 45 10 145"):
    """ScoredSamples with pictures, of (class name, image name, score)."""
    sizes = plan_pictures(len(rows))
    thumbnail = encode_thumbnail(Image.new("RGB", size, (120, 130, 140)), sizes)
    scored = []
    for kind, name, score in rows:
        picture = Picture(
            size,
            thumbnail,
            encode_map(blob_map(score), sizes.map_side),
            mask if kind != "good" else "",
            float(blob_map(score).max()),
        )
        sample = Sample(Path(test_folder, kind, name), kind, name)
        digest = hashlib.sha256(os.fsencode(sample.path)).hexdigest()
        scored.append(ScoredSample(sample, digest, score, picture))
    return scored


def make_report(folder, rows, threshold=THRESHOLD, held_out=(), facts=(), title="parts"):
    """Write report.html into `folder` and return its path."""
    scored = scored_images(rows, folder / "set" / "test")
    maps = {item.sample: f"{item.sample.class_name}/{item.sample.image_name}.tiff" for item in scored}
    calibration = calibrate(held_out, 0.25) if held_out else None
    commands = [("Evaluate again", "python eval.py -o 'a b'")]
    evaluation = evaluate_scores(scored, threshold)
    warning = describe_chance(evaluation, (256, 256))
    shown = ReportFacts(title, folder / "set" / "test", facts, commands, calibration, warning)
    path = folder / REPORT_FILE
    write_report(path, scored, maps, evaluation, shown)
    return path
