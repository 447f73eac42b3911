"""A detector as a file for ONNX Runtime, OpenVINO or torch.export, in full, half or 8-bit precision."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import efficientad
from efficientad.detector.model import EfficientAD
from efficientad.inference.export_options import ExportOptions
from efficientad.inference.exportable import ExportableDetector
from efficientad.inference.exported import import_package
from efficientad.inference.metadata import METADATA_FILE, MOST_EXPORTED_PIXELS, Metadata
from efficientad.inference.onnx_graphs import ONNX_PACKAGES, build_graph
from efficientad.system.errors import UserError


def describe(model: EfficientAD, precision: str, options: ExportOptions | None = None) -> Metadata:
    """The metadata of an export.

    Raises:
        UserError: the model's images are too large for a file, or need more than to be resized, or there is no
            threshold to decide with.
    """
    options = options or ExportOptions()
    if model.view.height * model.view.width > MOST_EXPORTED_PIXELS:
        raise UserError(
            f"cannot export this model: a file computes its {model.view.height} x {model.view.width} pixels in one "
            f"pass and takes at most {MOST_EXPORTED_PIXELS:,}; use model.pt, which computes one tile after another"
        )
    if options.any_size and not model.view.is_whole:
        raise UserError(
            f"--input any: this model has {model.view.describe()}, which a file cannot do; take --input model, and "
            "prepare the images before"
        )
    if options.decides and options.threshold is None and model.calibration is None:
        raise UserError("--outputs all: this model has no calibration; give the threshold with --threshold")
    versions = {"efficientad": efficientad.__version__, "torch": str(torch.__version__)}
    return Metadata(
        model.model_size,
        model.view,
        precision,
        model.calibration,
        versions,
        options.any_size,
        options.decides,
        options.threshold,
    )


def write_export(
    name: str,
    model: EfficientAD,
    metadata: Metadata,
    path: Path,
    calibration: Sequence[Mapping[str, np.ndarray]] = (),
    graphs: MutableMapping[str, Any] | None = None,
    opset: int | None = None,
) -> None:
    """Write the detector in a format.

    Args:
        name: of the format: onnx, openvino or torch.
        model: in eval mode; it is left as it is.
        metadata: its precision is fp32; for onnx also fp16, int8; for openvino bf16 (a hint), int8; for torch bf16.
        path: with the format's suffix; files may be left beside it if this fails.
        calibration: inputs of single good images, as Metadata.inputs makes them; used by int8 only.
        graphs: what earlier calls with the same model have worked out for other formats; added to here.
        opset: of ONNX; None: the lowest that can express the graph.

    Raises:
        MissingPackageError
        UserError: the opset cannot.
    """
    if name == "torch":
        _write_program(model, metadata, path)
        return
    onnx = import_package("onnx", *ONNX_PACKAGES)
    graphs = {} if graphs is None else graphs
    arithmetic = "fp32" if metadata.precision == "bf16" else metadata.precision
    if arithmetic not in graphs:
        graphs[arithmetic] = build_graph(model, metadata, path, calibration, opset)
    graph = graphs[arithmetic]
    if name == "onnx":
        for key, text in metadata.as_text().items():
            graph.metadata_props.add(key=key, value=text)
        onnx.save(graph, path)
        del graph.metadata_props[:]
    else:
        _write_openvino(graph, metadata, path)


def _write_openvino(graph: Any, metadata: Metadata, path: Path) -> None:
    """Write an ONNX graph as an .xml file and the .bin file beside it.

    Both runtimes share a quantizer: OpenVINO's own, NNCF, lost 4 points of AUROC or more on some of the magnetic
    tiles' test images, where this one lost 0.3.
    """
    openvino = import_package("openvino", *ONNX_PACKAGES, "openvino")
    plain = path.with_name("plain.onnx")
    import_package("onnx", *ONNX_PACKAGES).save(graph, plain)
    model = openvino.Core().read_model(plain)
    for key, text in metadata.as_text().items():
        model.set_rt_info(text, ["efficientad", key])
    openvino.save_model(model, path, compress_to_fp16=False)
    plain.unlink()


def _write_program(model: EfficientAD, metadata: Metadata, path: Path) -> None:
    dtype = torch.bfloat16 if metadata.precision == "bf16" else torch.float32
    detector = ExportableDetector(model, dtype, metadata.threshold if metadata.decides else None)
    inputs = tuple(detector.example().values())
    program = torch.export.export(detector, inputs, dynamic_shapes=detector.dynamic_shapes())
    buffer = io.BytesIO()  # writing to the file itself, torch aborts the process when the disk is full
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)  # of weights on the CPU
        torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(metadata.as_text())})
    path.write_bytes(buffer.getbuffer())
