"""Detectors that the runtime of an exported file computes."""

from __future__ import annotations

import importlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efficientad.detector.model import PIXELS_PER_PASS
from efficientad.inference.metadata import METADATA_FILE, OUTPUT_NAMES, SUFFIXES, TEXT_KEYS, Metadata
from efficientad.system.errors import UserError


class MissingPackageError(UserError):
    """An optional package is not installed."""


Answers = tuple[np.ndarray, np.ndarray]  # maps N x H x W and scores N
RunExport = Callable[[dict[str, np.ndarray]], Answers]


class ExportedDetector:
    """A Detector that an exported file computes."""

    def __init__(self, metadata: Metadata, run: RunExport, runtime: str) -> None:
        """
        Args:
            run: inputs by name (see Metadata.inputs) -> maps and scores.
            runtime: its name, version and device, for the description.
        """
        self.model_size, self.view = metadata.model_size, metadata.view
        self.calibration, self.metadata = metadata.calibration, metadata
        self.provenance = {"versions": metadata.versions}  # the file does not say how it was trained
        self.description = f"{runtime}, precision {metadata.precision}"
        self._run = run

    def images_per_pass(self, most: int) -> int:
        return max(1, min(most, PIXELS_PER_PASS // (self.view.height * self.view.width)))

    def answer(self, pixels: Tensor, inspected: Tensor | None = None) -> Answers:
        """The maps and the scores of the file itself."""
        return self._run(self.metadata.inputs(pixels, inspected))

    def __call__(self, pixels: Tensor, inspected: Tensor | None = None) -> Tensor:
        maps, _ = self.answer(pixels, inspected)
        return torch.from_numpy(maps)[:, None]


def load_exported(path: Path, device_name: str, precision_name: str) -> ExportedDetector:
    """Open an exported file, chosen by its suffix.

    Args:
        device_name: auto, cuda or cpu; only ONNX Runtime uses a GPU.
        precision_name: auto, or the file's own.

    Raises:
        UserError: no such file, no export, no runtime installed, or a device or precision it does not support.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; name an exported file or a training's folder")
    if device_name == "cuda" and path.suffix != SUFFIXES["onnx"]:
        raise UserError(f"--device cuda: {path} runs on the CPU only; use model.pt, or export to ONNX")
    if path.suffix == SUFFIXES["onnx"]:
        detector = _load_onnx(path, device_name)
    elif path.suffix == SUFFIXES["openvino"]:
        detector = _load_openvino(path)
    else:
        detector = _load_program(path)
    own = detector.metadata.precision
    if precision_name not in ("auto", own):
        raise UserError(
            f"{path} computes in {own}, not in {precision_name}; leave --precision out, or export again"
        )
    return detector


def import_package(module: str, *packages: str) -> ModuleType:
    """Import an optional package.

    Args:
        packages: to install if it is missing.

    Raises:
        MissingPackageError: with the pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"{error.name or module} is missing; install it with: pip install {' '.join(packages)}"
        ) from None


def _load_onnx(path: Path, device_name: str) -> ExportedDetector:
    onnxruntime = import_package("onnxruntime", "onnxruntime")
    providers = ["CPUExecutionProvider"]
    if device_name != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    elif device_name == "cuda":
        raise UserError("--device cuda: this ONNX Runtime has no CUDA; pip install onnxruntime-gpu instead of it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers)
    except Exception as error:  # its exceptions have no common base
        raise _damaged(path, error) from None
    metadata = Metadata.from_text(session.get_modelmeta().custom_metadata_map, path)

    def run(inputs: dict[str, np.ndarray]) -> Answers:
        return session.run(OUTPUT_NAMES, inputs)

    where = "cuda" if session.get_providers()[0].startswith("CUDA") else "cpu"
    threads = options.intra_op_num_threads
    return ExportedDetector(metadata, run, f"ONNX Runtime {onnxruntime.__version__} on {where}, {threads} threads")


def _load_openvino(path: Path) -> ExportedDetector:
    openvino = import_package("openvino", "openvino")
    core = openvino.Core()
    try:
        model = core.read_model(path)
        places = [["efficientad", key] for key in TEXT_KEYS]
        texts = {place[1]: model.get_rt_info(place).astype(str) for place in places if model.has_rt_info(place)}
    except RuntimeError as error:
        raise _damaged(path, error) from None
    metadata = Metadata.from_text(texts, path)
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # Without it a processor with bf16 arithmetic would round an fp32 model. One without ignores "bf16".
        "INFERENCE_PRECISION_HINT": "bf16" if metadata.precision == "bf16" else "f32",
    }
    compiled = core.compile_model(model, "CPU", settings)

    def run(inputs: dict[str, np.ndarray]) -> Answers:
        answers = compiled(inputs)
        return tuple(answers[name] for name in OUTPUT_NAMES)

    version = openvino.get_version().split("-")[0]
    return ExportedDetector(metadata, run, f"OpenVINO {version} on cpu, {torch.get_num_threads()} threads")


def _load_program(path: Path) -> ExportedDetector:
    texts = {METADATA_FILE: ""}
    if not zipfile.is_zipfile(path):  # torch would print a traceback
        raise _damaged(path, "not a zip file")
    try:
        program = torch.export.load(path, extra_files=texts).module()
    except Exception as error:  # almost any type on a damaged file
        raise _damaged(path, error) from None
    metadata = Metadata.from_text(json.loads(texts[METADATA_FILE] or "{}"), path)

    @torch.inference_mode()
    def run(inputs: dict[str, np.ndarray]) -> Answers:
        return tuple(output.numpy() for output in program(*map(torch.from_numpy, inputs.values())))

    return ExportedDetector(metadata, run, f"torch program on cpu, {torch.get_num_threads()} threads")


def _damaged(path: Path, error: Exception | str) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return UserError(f"{path} is no detector that efficientad.export wrote, or damaged: {reason}")
