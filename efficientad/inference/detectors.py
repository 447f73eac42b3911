"""A detector behind one call, computed by torch or by the runtime of an exported file."""

from __future__ import annotations

import importlib
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from efficientad.data.transforms import to_unit_range
from efficientad.detector.calibration import DEFAULT_THRESHOLD, Calibration
from efficientad.detector.checkpoint import load_model
from efficientad.detector.networks import EfficientAD
from efficientad.system.devices import (
    autocast,
    describe_device,
    keep_freed_memory,
    resolve_device,
    resolve_precision,
)
from efficientad.system.errors import UserError

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
INPUT_NAME = "images"  # uint8 RGB, N x S x S x 3
OUTPUT_NAMES = ("anomaly_map", "score")  # float32, N x S x S and N
METADATA_FILE = "metadata.json"  # within a .pt2
_FORMAT_VERSION = 1


class MissingPackageError(UserError):
    """An optional package is not installed."""


Answers = tuple[np.ndarray, np.ndarray]  # maps and scores
RunExport = Callable[[np.ndarray], Answers]


@dataclass(frozen=True)
class Metadata:
    """The facts in an exported file."""

    model_size: str
    image_size: int
    precision: str
    calibration: Calibration | None
    versions: dict[str, str]  # of this toolkit and of torch

    @property
    def threshold(self) -> float:
        return self.calibration.threshold if self.calibration else DEFAULT_THRESHOLD

    def as_text(self) -> dict[str, str]:
        """Texts by name, which every format can hold."""
        return {
            "efficientad_format": str(_FORMAT_VERSION),
            "model_size": self.model_size,
            "image_size": str(self.image_size),
            "precision": self.precision,
            "threshold": f"{self.threshold:.9g}",
            "calibration": json.dumps(asdict(self.calibration) if self.calibration else None),
            "versions": json.dumps(self.versions),
        }

    @classmethod
    def from_text(cls, text: Mapping[str, str], path: Path) -> Metadata:
        """Read texts that as_text made.

        Raises:
            UserError: a newer version wrote them, or they are not those of efficientad.export.
        """
        version = text.get("efficientad_format", "")
        if version.isdecimal() and int(version) > _FORMAT_VERSION:  # whatever else is new in it
            raise UserError(f"{path} was written by a newer version of this toolkit; update, or export again")
        try:
            calibration = json.loads(text["calibration"]) or {}
            lists = {key: tuple(value) for key, value in calibration.items() if isinstance(value, list)}
            return cls(
                text["model_size"],
                int(text["image_size"]),
                text["precision"],
                Calibration(**calibration | lists) if calibration else None,
                json.loads(text["versions"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(f"{path} is no detector that efficientad.export wrote") from None


class ExportedDetector:
    """A Detector that an exported file computes."""

    def __init__(self, metadata: Metadata, run: RunExport, runtime: str) -> None:
        """
        Args:
            run: uint8 images N x S x S x 3 -> maps and scores.
            runtime: its name, version and device, for the description.
        """
        self.model_size, self.image_size = metadata.model_size, metadata.image_size
        self.calibration, self.metadata = metadata.calibration, metadata
        self.provenance = {"versions": metadata.versions}  # the file does not say how it was trained
        self.description = f"{runtime}, precision {metadata.precision}"
        self.answer = run

    def __call__(self, pixels: Tensor) -> Tensor:
        maps, _ = self.answer(pixels.permute(0, 2, 3, 1).contiguous().numpy())
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

    def run(images: np.ndarray) -> Answers:
        return session.run(OUTPUT_NAMES, {INPUT_NAME: images})

    where = "cuda" if session.get_providers()[0].startswith("CUDA") else "cpu"
    threads = options.intra_op_num_threads
    return ExportedDetector(metadata, run, f"ONNX Runtime {onnxruntime.__version__} on {where}, {threads} threads")


def _load_openvino(path: Path) -> ExportedDetector:
    openvino = import_package("openvino", "openvino")
    core = openvino.Core()
    try:
        model = core.read_model(path)
        places = [["efficientad", key] for key in _TEXT_KEYS]
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

    def run(images: np.ndarray) -> Answers:
        answers = compiled(images)
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
    def run(images: np.ndarray) -> Answers:
        return tuple(output.numpy() for output in program(torch.from_numpy(images)))

    return ExportedDetector(metadata, run, f"torch program on cpu, {torch.get_num_threads()} threads")


_TEXT_KEYS = tuple(Metadata("", 0, "", None, {}).as_text())


def _damaged(path: Path, error: Exception | str) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return UserError(f"{path} is no detector that efficientad.export wrote, or damaged: {reason}")


class Detector(Protocol):
    """The interface that the commands use.

    Attributes:
        image_size: side S of its square input images.
        calibration: its own threshold, if the training found one.
        provenance: how and with what it was trained, if its file says so; see checkpoint.save_model.
        description: runtime, device and precision, in words.
    """

    model_size: str
    image_size: int
    calibration: Calibration | None
    provenance: Mapping[str, Any]
    description: str

    def __call__(self, pixels: Tensor) -> Tensor:
        """Anomaly maps N x 1 x S x S, float32, 0-255 scale, of uint8 RGB images N x 3 x S x S on the host.

        The maps may be on a GPU that is still computing them.
        """


class TorchDetector:
    """A Detector that torch computes."""

    def __init__(self, model: EfficientAD, device: torch.device, precision: str) -> None:
        """
        Args:
            model: in eval mode, on `device`.
            precision: resolved: fp32, bf16 or fp16.
        """
        self.model_size, self.image_size, self.calibration = model.model_size, model.image_size, model.calibration
        self.provenance, self.description = model.provenance, describe_device(device, precision)
        self._model, self._device, self._precision = model, device, precision

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        if self._device.type == "cuda":
            pixels = pixels.pin_memory()  # otherwise the copy would wait for the previous batch
        with autocast(self._device, self._precision):
            return self._model(to_unit_range(pixels.to(self._device, non_blocking=True)))


def load_detector(path: str | Path, device_name: str = "auto", precision_name: str = "auto") -> Detector:
    """The detector of a training's folder or of an exported file; see prediction.inspect for its use.

    Args:
        device_name: auto, cuda or cpu.
        precision_name: auto, fp32, bf16 or fp16.

    Raises:
        UserError: see load_model, resolve_device, resolve_precision and load_exported.
    """
    path = Path(path)
    if path.suffix in SUFFIXES.values() and not path.is_dir():
        return load_exported(path, device_name, precision_name)
    device = resolve_device(device_name)
    keep_freed_memory(device)
    precision = resolve_precision(precision_name, device)
    return TorchDetector(load_model(path, device), device, precision)
