"""Detectors that the runtime of an exported file computes."""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efficientad.detector.model import PIXELS_PER_PASS
from efficientad.inference.graph_checks import check_onnx, check_openvino, check_openvino_file
from efficientad.inference.metadata import OUTPUT_NAMES, SUFFIXES, TEXT_KEYS, Metadata
from efficientad.inference.program_checks import check_program_file, check_result_sizes
from efficientad.system.errors import UserError, is_out_of_memory
from efficientad.system.torch_files import refuse_unusual_file

_MOST_BYTES = 2**31  # of a file; the largest exports have a third of it


class MissingPackageError(UserError):
    """An optional package is not installed."""


Answers = tuple[np.ndarray, np.ndarray]  # maps N x H x W and scores N
RunExport = Callable[[dict[str, np.ndarray]], Answers]


class ExportedDetector:
    """A Detector that an exported file computes."""

    def __init__(
        self, path: Path, metadata: Metadata, run: RunExport, runtime: str, floats: str | None = None
    ) -> None:
        """
        Args:
            path: of the file, for messages.
            run: inputs by name (see Metadata.inputs) -> maps and scores.
            runtime: its name, version and device, for the description.
            floats: fp32 or bf16, in which the runtime computes what is not in int8; None: as the file says, and
                fp32 beside int8.
        """
        self.model_size, self.view = metadata.model_size, metadata.view
        self.calibration, self.metadata = metadata.calibration, metadata
        self.provenance = {"versions": metadata.versions}  # the file does not say how it was trained
        self.description = f"{runtime}, precision {_describe_precision(metadata.precision, floats)}"
        if metadata.given_threshold is not None:  # ours go by the calibration, or by a flag of their own
            self.description += f", made to decide at {metadata.given_threshold:g} in other programs"
        self._path, self._run = path, run

    def images_per_pass(self, most: int) -> int:
        return max(1, min(most, PIXELS_PER_PASS // (self.view.height * self.view.width)))

    def answer(self, pixels: Tensor, inspected: Tensor | None = None) -> Answers:
        """The maps and the scores of the file itself.

        Raises:
            UserError: the file cannot compute them, or they are not of the shapes that it promises.
        """
        try:
            maps, scores = self._run(self.metadata.inputs(pixels, inspected))
        except Exception as error:  # of the runtime's own types
            if is_out_of_memory(error):
                raise
            raise UserError(f"{self._path} cannot compute an answer: {_reason(error)}") from None
        shapes = self.metadata.output_shapes()
        for values, shape in zip((maps, scores), (shapes[name] for name in OUTPUT_NAMES), strict=True):
            if (values.dtype, values.shape) != (np.float32, (len(pixels), *shape[1:])):
                raise UserError(f"{self._path} is damaged: its answer has the shape {values.shape}")
        return maps, scores

    def __call__(self, pixels: Tensor, inspected: Tensor | None = None) -> Tensor:
        maps, _ = self.answer(pixels, inspected)
        return torch.from_numpy(maps)[:, None]


def _describe_precision(own: str, floats: str | None) -> str:
    """The file's precision, and what else is computed in, in words."""
    if own == "int8":
        return f"int8 and {floats or 'fp32'}"
    return own if floats in (None, own) else f"{floats} (the file's {own} is not native here)"


def load_exported(path: Path, device_name: str, precision_name: str) -> ExportedDetector:
    """Open an exported file, chosen by its suffix.

    Args:
        device_name: auto, cpu, cuda or cuda:N; only ONNX Runtime uses a GPU.
        precision_name: auto, or the file's own.

    Raises:
        UserError: no such file, no export, no runtime installed, or a device or precision it does not support.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; name an exported file or a training's folder")
    refuse_unusual_file(path, _MOST_BYTES)
    if device_name == "mps":
        raise UserError(f"--device mps: {path} does not run there; use model.pt, or --device cpu")
    if device_name.startswith("cuda") and path.suffix != SUFFIXES["onnx"]:
        raise UserError(f"--device {device_name}: {path} runs on the CPU only; use model.pt, or export to ONNX")
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
    providers: list[Any] = ["CPUExecutionProvider"]
    number = device_name.partition(":")[2]
    if device_name != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": number or "0"}))
    elif device_name.startswith("cuda"):
        raise UserError(
            f"--device {device_name}: this ONNX Runtime has no CUDA; pip install onnxruntime-gpu instead of it"
        )
    onnx = import_package("onnx", "onnx", "onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # it would print what the file says as it is; errors are raised anyway
    data = path.read_bytes()
    try:
        model = onnx.load_model_from_string(data)
        metadata = Metadata.from_text({item.key: item.value for item in model.metadata_props}, path)
        check_onnx(onnx, model, metadata, len(data))
        del model
        session = onnxruntime.InferenceSession(data, options, providers)
    except UserError:
        raise
    except Exception as error:  # the packages' exceptions have no common base
        raise _damaged(path, error) from None

    def run(inputs: dict[str, np.ndarray]) -> Answers:
        return session.run(OUTPUT_NAMES, inputs)

    where = f"cuda:{number or 0}" if session.get_providers()[0].startswith("CUDA") else "cpu"
    if device_name.startswith("cuda") and where == "cpu":
        raise UserError(f"--device {device_name}: ONNX Runtime cannot use that GPU; check it with nvidia-smi")
    threads = options.intra_op_num_threads
    return ExportedDetector(
        path, metadata, run, f"ONNX Runtime {onnxruntime.__version__} on {where}, {threads} threads"
    )


def _load_openvino(path: Path) -> ExportedDetector:
    openvino = import_package("openvino", "openvino")
    weights = path.with_suffix(".bin")
    if weights.exists():
        refuse_unusual_file(weights, _MOST_BYTES)
    try:
        weight_bytes = weights.stat().st_size if weights.exists() else 0
        check_openvino_file(path, weight_bytes)
        core = openvino.Core()
        model = core.read_model(path)
        places = [["efficientad", key] for key in TEXT_KEYS]
        texts = {place[1]: model.get_rt_info(place).astype(str) for place in places if model.has_rt_info(place)}
        metadata = Metadata.from_text(texts, path)
        check_openvino(model, metadata, path.stat().st_size + weight_bytes)
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": _choose_floats(
                metadata.precision, core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            ),
        }
        compiled = core.compile_model(model, "CPU", settings)
    except (RuntimeError, TypeError, ValueError) as error:
        raise _damaged(path, error) from None

    def run(inputs: dict[str, np.ndarray]) -> Answers:
        answers = compiled(inputs)
        return tuple(answers[name] for name in OUTPUT_NAMES)

    version = openvino.get_version().split("-")[0]
    runtime = f"OpenVINO {version} on cpu, {torch.get_num_threads()} threads"
    floats = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return ExportedDetector(path, metadata, run, runtime, "fp32" if floats == "f32" else floats)


def _choose_floats(precision: str, capabilities: Sequence[str]) -> str:
    """The type in which OpenVINO computes floats, by its own name.

    What a file of int8 leaves exact is faster in bf16, and was no farther from torch. A file of fp32 means fp32:
    left to itself, OpenVINO would round it to bf16, too. A processor without bf16 ignores "bf16".

    Args:
        precision: of the file.
        capabilities: of the processor, as OpenVINO lists them.
    """
    return "bf16" if precision == "bf16" or (precision == "int8" and "BF16" in capabilities) else "f32"


def _load_program(path: Path) -> ExportedDetector:
    try:
        metadata = check_program_file(path)
        program = torch.export.load(path).module()
        check_result_sizes(program, metadata, path.stat().st_size)
    except UserError:
        raise
    except Exception as error:  # almost any type on a damaged file
        raise _damaged(path, error) from None

    @torch.inference_mode()
    def run(inputs: dict[str, np.ndarray]) -> Answers:
        outputs = program(*map(torch.from_numpy, inputs.values()))
        return tuple(output.numpy() for output in outputs[: len(OUTPUT_NAMES)])

    return ExportedDetector(path, metadata, run, f"torch program on cpu, {torch.get_num_threads()} threads")


def _damaged(path: Path, error: Exception | str) -> UserError:
    return UserError(f"{path} is no detector that efficientad.export wrote, or damaged: {_reason(error)}")


def _reason(error: Exception | str) -> str:
    """The last line of a message, since runtimes begin with lines of their own; of bounded length."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return textwrap.shorten(lines[-1], 200)
