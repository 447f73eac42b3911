"""A detector as a file for ONNX Runtime, OpenVINO or torch.export, in full, half or 8-bit precision."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efficientad.detector.networks import EfficientAD
from efficientad.exportable import ExportableDetector
from efficientad.exported import INPUT_NAME, METADATA_FILE, OUTPUT_NAMES, Metadata, import_package

# Convolutions that int8 leaves alone. The autoencoder has few multiply-adds, which it needs exactly: its bottleneck
# sees every pixel. The first convolutions have fewer still, and filters that add up to nearly nothing: what
# rounding them adds, times the brightness of the pixels, would drown their answers.
_KEPT_EXACT = ("autoencoder.", "teacher.0.", "student.0.")
_OPSET = 20
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def write_export(name: str, model: EfficientAD, metadata: Metadata, path: Path, calibration: np.ndarray) -> None:
    """Write the detector in one of the formats.

    Args:
        name: of the format: onnx, openvino or torch.
        model: in eval mode; it is left as it is.
        metadata: with the precision: fp32; for onnx fp16, int8; for openvino bf16, a hint, int8; for torch bf16.
        path: of the file, with the format's suffix; files may be left beside it if this fails.
        calibration: uint8 good images N x S x S x 3; only int8 looks at them.

    Raises:
        MissingPackageError
    """
    if name == "torch":
        _write_program(model, metadata, path)
        return
    onnx = import_package("onnx", *_ONNX_PACKAGES)
    graph = _graph(model, metadata, path, calibration)
    if name == "onnx":
        for key, text in metadata.as_text().items():
            graph.metadata_props.add(key=key, value=text)
        onnx.save(graph, path)
    else:
        _write_openvino(graph, metadata, path)


def _graph(model: EfficientAD, metadata: Metadata, path: Path, calibration: np.ndarray) -> Any:
    """The ModelProto; the names in it are the networks', and nothing of this machine.

    Only fp16 is in the graph: OpenVINO makes bf16 of fp32 itself.
    """
    import_package("onnxscript", *_ONNX_PACKAGES)
    detector = ExportableDetector(model, torch.float16 if metadata.precision == "fp16" else torch.float32)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        detector,
        (detector.example(),),
        dynamo=True,
        input_names=[INPUT_NAME],
        output_names=list(OUTPUT_NAMES),
        dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("batch")}},
        opset_version=_OPSET,
        external_data=False,
        verbose=False,
    )
    proto = program.model_proto
    graph = proto.graph
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph):
        del item.metadata_props[:]  # torch notes here from which lines of which files each step came
    return _quantize(proto, path, calibration) if metadata.precision == "int8" else proto


def _quantize(proto: Any, path: Path, calibration: np.ndarray) -> Any:
    """8-bit teacher and student, but for their first layers: weights by output channel and in 7 bits.

    Without VNNI, a processor adds two products in 16 bits, which 8-bit weights would overflow.
    """
    import onnx

    quantization = import_package("onnxruntime.quantization", *_ONNX_PACKAGES)
    shape_inference = import_package("onnxruntime.quantization.shape_inference", *_ONNX_PACKAGES)
    plain, prepared = path.with_name("plain.onnx"), path.with_name("prepared.onnx")
    onnx.save(proto, plain)
    shape_inference.quant_pre_process(plain, prepared, skip_symbolic_shape=True)
    nodes = onnx.load(prepared).graph.node
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    into_convolutions = {node.input[0] for node in convolutions}
    kept = [node.name for node in convolutions if any(part in node.input[1] for part in _KEPT_EXACT)]
    # The memory's comparison, too: what is pooled for it is no network's
    kept += [n.name for n in nodes if n.op_type == "AveragePool" and n.output[0] not in into_convolutions]

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._images = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self._images, None)
            return None if image is None else {INPUT_NAME: image[None]}

    quantization.quantize_static(
        prepared,
        path,
        Images(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        op_types_to_quantize=["Conv", "Relu", "AveragePool"],
        nodes_to_exclude=kept,
    )
    plain.unlink()
    prepared.unlink()
    return onnx.load(path)


def _write_openvino(graph: Any, metadata: Metadata, path: Path) -> None:
    """An .xml file and the .bin file beside it, of an ONNX graph.

    So both runtimes share a quantizer: OpenVINO's own, NNCF, lost 4 points of AUROC or more on a part of the
    magnetic tiles' test images, where this one lost 0.3.
    """
    openvino = import_package("openvino", *_ONNX_PACKAGES, "openvino")
    plain = path.with_name("plain.onnx")
    import_package("onnx", *_ONNX_PACKAGES).save(graph, plain)
    model = openvino.Core().read_model(plain)
    for key, text in metadata.as_text().items():
        model.set_rt_info(text, ["efficientad", key])
    openvino.save_model(model, path, compress_to_fp16=False)
    plain.unlink()


def _write_program(model: EfficientAD, metadata: Metadata, path: Path) -> None:
    detector = ExportableDetector(model, torch.bfloat16 if metadata.precision == "bf16" else torch.float32)
    program = torch.export.export(
        detector, (detector.example(),), dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("batch")}}
    )
    torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(metadata.as_text())})
