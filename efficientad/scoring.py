"""Test images in, scores out, and the map of each written beside: reading, network and writing at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from efficientad.data.datasets import Sample
from efficientad.data.images import UnreadableImageError
from efficientad.inference import Prediction, predict
from efficientad.localization import Localization, LocatedSample
from efficientad.maps import resize_map, write_side_by_side, write_tiff
from efficientad.masks import MaskSet, read_mask
from efficientad.pictures import Picture, PictureSizes, encode_map, encode_mask, encode_thumbnail
from efficientad.report import ScoredSample
from efficientad.runtimes import Detector
from efficientad.system.parallel import parallel_map


def score_samples(
    detector: Detector,
    samples: Sequence[Sample],
    map_files: Mapping[Sample, Path],
    threshold: float,
    batch_size: int,
    workers: int,
    pass_over: Callable[[UnreadableImageError], None] | None = None,
    localization: Localization | None = None,
    sizes: PictureSizes | None = None,
    masks: MaskSet | None = None,
) -> Iterator[ScoredSample]:
    """Scores in the order of the samples; when one is there, its map is written and compared with its masks.

    Args:
        map_files: for every sample the .tiff or .jpg file of its map, or nothing at all.
        threshold: only for the colours of a .jpg.
        workers: threads that read ahead, and as many that write.
        pass_over: see predict.
        localization: takes in every sample.
        sizes: of the pictures to make for a report, or None for none.
        masks: those that the pictures show.

    Raises:
        UserError: see predict, and Localization.count.
    """
    pictures = any(file.suffix == ".jpg" for file in map_files.values())

    def finish(prediction: Prediction) -> tuple[ScoredSample, LocatedSample | None]:
        sample = prediction.sample
        if map_files or localization:
            anomaly_map = resize_map(prediction.anomaly_map, *prediction.image_size)
        if map_files:
            if pictures:
                write_side_by_side(map_files[sample], prediction.decode(), anomaly_map, threshold)
            else:
                write_tiff(map_files[sample], anomaly_map)
        located = localization.count(sample, anomaly_map) if localization else None
        picture = _picture(prediction, sizes, masks) if sizes else None
        return ScoredSample(sample, prediction.digest, prediction.score, picture), located

    make_thumbnail = partial(encode_thumbnail, sizes=sizes) if sizes else None
    predictions = predict(detector, samples, batch_size, workers, pictures, pass_over, make_thumbnail)
    for scored, located in parallel_map(finish, predictions, workers):
        if localization:
            localization.add(scored.sample, located)  # here and not in the threads: sums in a fixed order
        yield scored


def _picture(prediction: Prediction, sizes: PictureSizes, masks: MaskSet | None) -> Picture:
    files = masks.files(prediction.sample) if masks else ()
    return Picture(
        prediction.image_size,
        prediction.thumbnail,
        encode_map(prediction.anomaly_map, sizes.map_side),
        encode_mask([read_mask(file) for file in files], sizes.thumbnail_side // 2),
        float(prediction.anomaly_map.max()),
    )
