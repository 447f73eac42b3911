"""A training's folder from what another tool has trained: networks taken, and fitted what they lack."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from efficientad.data.datasets import Dataset, TrainingSplit, list_good_images
from efficientad.data.views import View
from efficientad.detector.calibration import describe_calibration
from efficientad.detector.checkpoint import MODEL_FILE, save_model
from efficientad.detector.model import NO_BORDER, EfficientAD
from efficientad.detector.other_tools import ForeignDetector, build, read_foreign_detector, require_sound
from efficientad.system.devices import describe_device, resolve_device, resolve_precision
from efficientad.system.errors import UserError, count_of, printable, require_folder
from efficientad.system.files import require_no_links, write_text_atomically
from efficientad.system.runs import lock_folder
from efficientad.training.cache import ImageSet, TeacherFeatures
from efficientad.training.depths import choose_depth
from efficientad.training.fitting import (
    fit_calibration,
    fit_map_quantiles,
    fit_teacher_statistics,
    map_held_out,
    score_held_out,
)
from efficientad.training.options import PAPER
from efficientad.training.resuming import SETTINGS_FILE, STATE_FILE, refuse_foreign_settings

_SPLIT_SEED = 42  # as the script that leaves networks alone splits the images of its training
_LEARNT_SHARE = 0.9
_CACHE_BYTES = 2e9


@dataclass(frozen=True)
class ConversionOptions:
    """The user's choices; the names are those of the flags of efficientad.convert."""

    input: Path
    images: Path
    output: Path
    target_fpr: float
    overwrite: bool
    device: str
    precision: str
    num_workers: int


def convert(options: ConversionOptions) -> Path:
    """Write model.pt and args.json; returns the model's file.

    Raises:
        UserError: the networks are no EfficientAD or would compute something else here, the images cannot be used,
            or a model is in the way.
    """
    device = resolve_device(options.device)
    precision = resolve_precision(options.precision, device)
    found = read_foreign_detector(options.input)
    model = build(found)
    require_sound(model, f"{options.input} holds statistics that are degenerate; train it again")
    require_folder(options.images, "name a folder of good images with --images")
    require_no_links(options.output, [MODEL_FILE, SETTINGS_FILE])
    with lock_folder(options.output, "--output"):
        _refuse_existing(options.output, options.overwrite)
        split = split_images(options.images, found.statistics is None)
        depth, about_depth = choose_depth("auto", [*split.train, *split.validation], options.num_workers)
        model.view = replace(View(), depth=depth)
        notes = (*found.notes, *split.notes, *about_depth)
        print("\n".join([f"EfficientAD {model.model_size} in {options.input}", *map(printable, notes)]))
        print(f"Using {describe_device(device, precision)}", flush=True)
        facts = _fit(model, found, split, options, device, precision)
        settings = _describe(model, split, options, facts, describe_device(device, precision))
        write_text_atomically(options.output / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
        save_model(model, options.output / MODEL_FILE, settings)
    return options.output / MODEL_FILE


def split_images(folder: Path, fits_statistics: bool) -> TrainingSplit:
    """The images to fit the teacher's statistics on, if any, and those for the quantiles and the threshold.

    A tenth is held out at random. If the folder is that of nelson1425's training, with all its images, these are
    the ones that the training has held out, too.

    Args:
        folder: of good images, or of a data set with train/good.

    Raises:
        UserError: too few images.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        raise UserError(f"{folder} is empty; name a folder of good images with --images")
    good = list_good_images(Dataset("custom", folder))
    if good.validation:
        return TrainingSplit(good.train if fits_statistics else [], good.validation, good.notes)
    if len(good.train) < 1 + fits_statistics:
        raise UserError(f"{good.folder} holds {count_of(len(good.train), 'image')}; name more good images")
    if not fits_statistics:
        return TrainingSplit([], good.train, good.notes)
    order = torch.randperm(len(good.train), generator=torch.Generator().manual_seed(_SPLIT_SEED)).tolist()
    learnt = int(_LEARNT_SHARE * len(order))
    train, validation = ([good.train[index] for index in part] for part in (order[:learnt], order[learnt:]))
    return TrainingSplit(train, validation, good.notes)


def _refuse_existing(output: Path, overwrite: bool) -> None:
    if (output / STATE_FILE).exists():
        raise UserError(f"{output} holds an interrupted training; choose another --output")
    if (output / MODEL_FILE).exists() and not overwrite:
        raise UserError(f"{output} already holds a model; add --overwrite, or choose another --output")
    if not overwrite:
        refuse_foreign_settings(output, "choose another --output")


def _fit(
    model: EfficientAD,
    found: ForeignDetector,
    split: TrainingSplit,
    options: ConversionOptions,
    device: torch.device,
    precision: str,
) -> dict[str, str]:
    """Fit what the other tool has not, and say so; returns what was taken and what was fitted."""
    model.to(device, memory_format=torch.channels_last).eval()
    paths = [*split.train, *split.validation]
    images = ImageSet(paths, model.view, _CACHE_BYTES, options.num_workers, device)
    learnt, held_out = range(len(split.train)), range(len(split.train), len(paths))
    if copies := len(held_out) - len(set(images.digests[len(learnt) :]) - set(images.digests[: len(learnt)])):
        print(f"Note: {copies} of the {len(held_out)} images for the threshold are copies of others")
    kept = "taken from the files"
    facts = {"networks": kept, "statistics": kept, "quantiles": kept}
    if found.statistics is None:
        fit_teacher_statistics(model, images, learnt, TeacherFeatures(model, 0, device, precision))
        facts["statistics"] = f"fitted on {_of(len(learnt), paths)}"
    maps = map_held_out(model, images, held_out, precision)
    if found.statistics is None or found.quantiles is None:
        fit_map_quantiles(model, maps)
        facts["quantiles"] = f"fitted on {_of(len(held_out), paths)}"
    fit_calibration(model, score_held_out(model, maps), 0, options.target_fpr)
    facts["threshold"] = (
        f"fitted on {_of(len(held_out), paths)}" if model.calibration else "none, for lack of images"
    )
    print("\n".join(f"{name.capitalize()}: {origin}" for name, origin in facts.items()))
    print(describe_calibration(model.calibration, len(held_out)))
    advice = "; name all images of that training, or only others" if split.train else ""
    print(
        f"Note: the threshold is too low if the networks have learned from the images that it is fitted on{advice}"
    )
    return facts


def _of(count: int, paths: Sequence[Path]) -> str:
    return f"{count} of {count_of(len(paths), 'image')}" if count < len(paths) else count_of(count, "image")


def _describe(
    model: EfficientAD, split: TrainingSplit, options: ConversionOptions, facts: dict[str, str], machine: str
) -> dict[str, Any]:
    """What model.pt says of its origin, and where its images are."""
    return {
        "recipe": PAPER,
        "converted_from": str(options.input.resolve()),
        **{f"{name}_origin": origin for name, origin in facts.items()},
        "model_size": model.model_size,
        "dataset": "custom",
        "subdataset": "",
        "custom_dataset_path": str(options.images.resolve()),
        "seed": _SPLIT_SEED,
        "train_images": len(split.train),
        "validation_images": len(split.validation),
        "target_fpr": options.target_fpr,
        "image_size": list(model.view.size),
        "border": NO_BORDER,
        "machine": machine,
    }
