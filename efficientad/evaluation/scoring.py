"""Test images in, scores out, and on the way each image's map, pixel counts and pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from efficientad.data.datasets import Sample
from efficientad.data.images import UnreadableImageError
from efficientad.evaluation.localization import Localization, LocatedSample
from efficientad.evaluation.masks import MaskSet
from efficientad.evaluation.report import ScoredSample
from efficientad.evaluation.thumbnails import Picture, PictureSizes, encode_map, encode_mask, encode_thumbnail
from efficientad.inference.detectors import Detector
from efficientad.inference.maps import write_side_by_side, write_tiff
from efficientad.inference.prediction import Prediction, limit_workers, predict
from efficientad.system.files import fitting_name
from efficientad.system.parallel import parallel_map


@dataclass(frozen=True)
class ScoringWork:
    """The images to score, and the results wanted besides scores."""

    detector: Detector
    samples: Sequence[Sample]
    threshold: float  # only for the colours of .jpg maps
    batch_size: int
    workers: int  # threads that read ahead, and as many that write
    map_files: Mapping[Sample, Path]  # the .tiff or .jpg file of each sample's map, or nothing at all
    on_unreadable: Callable[[UnreadableImageError], None] | None = None  # see predict
    localization: Localization | None = None  # takes in every sample
    picture_sizes: PictureSizes | None = None  # of the pictures for a report; None: make none
    masks: MaskSet | None = None  # for those pictures


def score_samples(work: ScoringWork) -> Iterator[ScoredSample]:
    """Scores in the order of the samples; each map is written and compared with its masks on the way.

    Raises:
        UserError: see predict, and Localization.count.
    """
    map_files, localization, sizes = work.map_files, work.localization, work.picture_sizes
    shows_image = any(file.suffix == ".jpg" for file in map_files.values())

    def finish(prediction: Prediction) -> tuple[ScoredSample, LocatedSample | None]:
        sample, is_whole = prediction.sample, prediction.view.is_whole
        if map_files or localization or (sizes and not is_whole):
            anomaly_map, inspected = prediction.full_map(), prediction.inspected()
        if map_files:
            if shows_image:
                write_side_by_side(map_files[sample], prediction.decode(), anomaly_map, work.threshold, inspected)
            else:
                write_tiff(map_files[sample], anomaly_map)
        located = localization.count(sample, anomaly_map, inspected) if localization else None
        picture = None
        if sizes:
            shown = prediction.anomaly_map if is_whole else anomaly_map
            picture = make_picture(prediction, shown, sizes, work.masks)
        return ScoredSample(sample, prediction.digest, prediction.score, picture), located

    make_thumbnail = partial(encode_thumbnail, sizes=sizes) if sizes else None
    predictions = predict(
        work.detector,
        work.samples,
        work.batch_size,
        work.workers,
        shows_image,
        work.on_unreadable,
        make_thumbnail,
    )
    workers, batch = limit_workers(work.workers, work.detector.view), work.detector.images_per_pass(work.batch_size)
    for scored, located in parallel_map(finish, predictions, workers, more_ahead=batch):
        if localization:
            localization.add(scored.sample, located)  # here and not in the threads: sums in a fixed order
        yield scored


def make_picture(
    prediction: Prediction, anomaly_map: np.ndarray, sizes: PictureSizes, masks: MaskSet | None = None
) -> Picture:
    """The pictures of an image for a report.

    Args:
        prediction: with a thumbnail.
        anomaly_map: of the whole image, of any size.
    """
    defects = masks.values(prediction.sample) if masks else []
    return Picture(
        prediction.image_size,
        prediction.thumbnail,
        encode_map(anomaly_map, sizes.map_side),
        encode_mask(defects, sizes.thumbnail_side // 2),
        float(prediction.anomaly_map.max()),
    )


def map_names(samples: Sequence[Sample], suffix: str) -> list[str]:
    """The file of each sample's map, below MAPS_FOLDER: <class>/<image without its suffix><suffix>.

    In a class where two images differ only in the suffix (a.jpg, a.png), all keep theirs (a.jpg.tiff). Names that
    are too long are shortened by fitting_name.
    """
    stems: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        stems[sample.class_name].append(_stem(sample).casefold())
    keeps_suffix = {name for name, inside in stems.items() if len(set(inside)) < len(inside)}
    names = [sample.image_name if sample.class_name in keeps_suffix else _stem(sample) for sample in samples]
    return [
        fitting_name(f"{sample.class_name}/{name}{suffix}") for sample, name in zip(samples, names, strict=True)
    ]


def _stem(sample: Sample) -> str:
    return PurePosixPath(sample.image_name).with_suffix("").as_posix()
