"""report.html of images without labels: those that predict scores, the highest scores first."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image

from efficientad.data.datasets import Sample
from efficientad.data.labels import GOOD
from efficientad.evaluation.image_metrics import Row
from efficientad.evaluation.report import Decisions, ScoredSample
from efficientad.evaluation.report_page import ReportFacts, model_facts, now, training_facts, write_report
from efficientad.evaluation.scoring import make_picture
from efficientad.evaluation.thumbnails import PictureSizes, encode_thumbnail, plan_pictures
from efficientad.inference.batches import Batch
from efficientad.inference.prediction import Prediction
from efficientad.system.errors import count_of


class BatchReport:
    """The Report of inference.batches: collects a batch while it is scored, and writes its page."""

    def __init__(self, command: str) -> None:
        """
        Args:
            command: the command line that scores the batch again.
        """
        self._command = command
        self._sizes: PictureSizes | None = None
        self._scored: dict[str, ScoredSample] = {}  # by name; each is added in one step, which threads need

    def begin(self, count: int) -> None:
        """See inference.batches.Report."""
        self._sizes = plan_pictures(count)

    def make_thumbnail(self, image: Image.Image) -> bytes:
        """See inference.batches.Report."""
        return encode_thumbnail(image, self._sizes)

    def add(self, prediction: Prediction) -> None:
        """See inference.batches.Report."""
        shown = prediction.anomaly_map if prediction.view.is_whole else prediction.full_map()
        picture = make_picture(prediction, shown, self._sizes)
        name = prediction.sample.image_name
        self._scored[name] = ScoredSample(prediction.sample, prediction.digest, prediction.score, picture)

    def write(self, path: Path, batch: Batch) -> None:
        """See inference.batches.Report."""
        # For a page without labels all images are of one class, see ReportFacts
        scored = [
            ScoredSample(Sample(batch.folder / name, GOOD, name), item.digest, item.score, item.picture)
            for name, item in sorted(self._scored.items())
        ]
        maps = {item.sample: batch.map_files[item.sample.image_name] for item in scored
                if item.sample.image_name in batch.map_files}  # fmt: skip
        row = Row(GOOD, math.nan, math.nan, math.nan, len(scored), math.nan)
        decisions = Decisions(
            batch.threshold, classes=[row], overall=row, distinct=None, sweep=[], sweep_recalls={}
        )
        write_report(path, scored, maps, decisions, self._facts(batch, len(scored)))

    def _facts(self, batch: Batch, count: int) -> ReportFacts:
        facts = [
            ("Scored", now()),
            ("Images", f"{count}, from {batch.folder}"),
            *model_facts(batch.detector, batch.weights, f"{batch.threshold:g} ({batch.threshold_origin})"),
            *training_facts(batch.detector),
        ]
        if batch.unreadable:
            facts.insert(2, ("Unreadable images", f"{batch.unreadable}, not in this report"))
        return ReportFacts(
            f"{batch.folder.name}, {count_of(count, 'image')}",
            batch.folder,
            facts,
            [("Score again", self._command)],
            batch.detector.calibration,
            has_labels=False,
        )
