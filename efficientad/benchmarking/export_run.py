"""An export from a training's folder to a file that answers as the original does, or the fastest of several."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from efficientad.benchmarking import fastest
from efficientad.data.datasets import Dataset
from efficientad.data.views import View
from efficientad.detector.checkpoint import load_model
from efficientad.inference import export_check, exporting
from efficientad.inference.detectors import open_detector
from efficientad.inference.export_check import CheckImages
from efficientad.inference.export_files import unfinished_file
from efficientad.inference.export_options import CALIBRATION_IMAGES, PARITY_IMAGES, PRECISIONS, ExportOptions
from efficientad.inference.exported import load_exported
from efficientad.inference.metadata import SUFFIXES
from efficientad.system.devices import resolve_precision
from efficientad.system.errors import UserError

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class ExportPlan:
    """The flags of the export command, as it explains them."""

    weights_dir: Path
    format: str | None
    precision: str | None
    output: Path | None
    overwrite: bool
    images: Sequence[Path]
    num_workers: int
    options: ExportOptions = field(default_factory=ExportOptions)


def export(plan: ExportPlan) -> None:
    """Write the format that was asked for.

    Raises:
        UserError: it cannot be, or would differ too much from torch.
    """
    name, precision = plan.format or "onnx", plan.precision or "fp32"
    if precision not in PRECISIONS[name]:
        raise UserError(
            f"--format {name} has no --precision {precision}; choose from {', '.join(PRECISIONS[name])}"
        )
    for flag, is_given in (("--input any", plan.options.any_size), ("--opset", plan.options.opset is not None)):
        if is_given and name != "onnx":
            raise UserError(f"{flag} is for --format onnx, not {name}")
    output = plan.output or plan.weights_dir / f"detector{SUFFIXES[name]}"
    with unfinished_file(output, SUFFIXES[name], plan.overwrite) as part:
        model = load_model(plan.weights_dir, _CPU)
        metadata = exporting.describe(model, precision, plan.options)
        images = _read_images(plan, model.view, precision == "int8")
        print(f"Exporting {plan.weights_dir} ({model.model_size}) as {name} in {precision}", flush=True)
        calibration = [metadata.inputs(*export_check.stack([image])) for image in images.to_calibrate]
        exporting.write_export(name, model, metadata, part, calibration, opset=plan.options.opset)
        expected = export_check.answer_as_torch(model, images.to_compare)
        found = export_check.compare_file(expected, part, images, metadata.threshold)
        print(found.format(precision, metadata.threshold))
        if not found.keeps(export_check.BOUNDS[precision]):
            raise UserError(
                f"{output} is not written: it would differ too much from torch; take another --precision"
            )
        reference, exported = open_detector(plan.weights_dir, "cpu"), load_exported(part, "cpu", "auto")
        speed = fastest.measure_speed(reference, exported, images.to_compare[:1], seconds=1.0)
    print(f"Wrote {output}; predict and eval.py take it as --weights_dir {output}")
    print(speed.format())


def export_fastest(plan: ExportPlan, dataset: Dataset | None) -> None:
    """Try what can be computed here, and write the fastest file.

    Args:
        dataset: whose test images the AUROC is measured on; None: that of the training.

    Raises:
        UserError: nothing can be tried, or all that is would differ too much from model.pt.
    """
    candidates = choose_candidates(plan)
    samples = fastest.find_labelled_images(dataset, plan.weights_dir)
    outputs = {name: _name_output(plan, SUFFIXES[name]) for name, _ in candidates}
    with ExitStack() as stack:
        parts = {
            name: stack.enter_context(unfinished_file(output, SUFFIXES[name], plan.overwrite))
            for name, output in outputs.items()
        }
        model = load_model(plan.weights_dir, _CPU)
        exporting.describe(model, "fp32", plan.options)  # what is impossible in any of them is told at once
        images = _read_images(plan, model.view, any(precision == "int8" for _, precision in candidates))
        trials = fastest.Trials(plan.weights_dir, images, samples, plan.num_workers, plan.options)
        for name, precision in candidates:
            print(f"Trying {name} in {precision}", flush=True)
            folder = parts[name].parent / precision
            folder.mkdir()
            trials.add(name, precision, folder / parts[name].name)
        best = trials.fastest()
        print(f"\n{trials.format()}\n")
        was_named = plan.format or (plan.output and plan.output.suffix in SUFFIXES.values())
        if best.speed.factor < 1 and not was_named:
            print("Nothing is written: model.pt is the fastest here; for a file nevertheless name a --format")
            return
        for file in list(best.path.parent.iterdir()):
            file.replace(parts[best.format].with_name(file.name))
    output = outputs[best.format]
    print(f"Wrote {output} ({best.precision}); predict and eval.py take it as --weights_dir {output}")
    print(best.speed.format())


def choose_candidates(plan: ExportPlan) -> list[tuple[str, str]]:
    """The formats and precisions to try.

    Raises:
        UserError: the flags leave none.
    """
    named = {suffix: name for name, suffix in SUFFIXES.items()}.get(plan.output.suffix) if plan.output else None
    only_onnx = plan.options.any_size or plan.options.opset is not None
    wanted = {plan.format, named, "onnx" if only_onnx else None} - {None}
    has_bf16 = resolve_precision("auto", _CPU) == "bf16"
    precisions = [plan.precision] if plan.precision else ["fp32", "int8", *(["bf16"] if has_bf16 else [])]
    found = [
        (name, precision)
        for name in PRECISIONS
        for precision in precisions
        if precision in PRECISIONS[name] and wanted <= {name}
    ]
    if not found:
        raise UserError(
            "no format fits --format, --precision, the ending of --output, and --input any or --opset, which are "
            "for onnx; leave one of them out"
        )
    return found


def _name_output(plan: ExportPlan, suffix: str) -> Path:
    """The file of a format that --fastest may write."""
    output = plan.output or plan.weights_dir / "detector"
    return output if output.suffix == suffix else output.with_name(output.name + suffix)


def _read_images(plan: ExportPlan, view: View, calibrates: bool) -> CheckImages:
    """The images to compare on, and to calibrate int8 with."""
    stored = export_check.find_good_images(plan.images, plan.weights_dir)
    return export_check.read_images(
        stored, PARITY_IMAGES, CALIBRATION_IMAGES if calibrates else 0, view, plan.num_workers
    )
