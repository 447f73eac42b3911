"""The ONNX graph of a detector, in a form that older runtimes open, too."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efficientad.detector.model import EfficientAD
from efficientad.inference.export_options import LOWEST_OPSET
from efficientad.inference.exportable import ExportableDetector
from efficientad.inference.exported import import_package
from efficientad.inference.metadata import INPUT_NAME, Metadata
from efficientad.system.errors import UserError

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_EXPORTED_OPSET = 18  # torch writes none lower
_LOWEST_IR = 8  # of the file; what opsets 15 to 18 came with
# Convolutions that int8 leaves exact. The autoencoder has few multiply-adds but needs them exactly: its bottleneck
# sees every pixel. The first convolutions have fewer still, and filters that sum to nearly zero: their rounding
# errors, times the brightness of the pixels, would drown their outputs.
_KEPT_EXACT = ("autoencoder.", "teacher.0.", "student.0.")


def build_graph(
    model: EfficientAD,
    metadata: Metadata,
    path: Path,
    calibration: Sequence[Mapping[str, np.ndarray]],
    opset: int | None = None,
) -> Any:
    """The ModelProto, which names the networks' layers and nothing of this machine.

    Only fp16 is in the graph: OpenVINO itself computes an fp32 graph in bf16.

    Args:
        path: files are made beside it, and removed.
        calibration: see exporting.write_export.
        opset: None: the lowest that can express it.

    Raises:
        MissingPackageError
        UserError: the opset cannot express it.
    """
    import_package("onnx", *ONNX_PACKAGES)
    import_package("onnxscript", *ONNX_PACKAGES)
    dtype = torch.float16 if metadata.precision == "fp16" else torch.float32
    detector = ExportableDetector(model, dtype, metadata.threshold if metadata.decides else None)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)  # both inputs have the same one
        program = torch.onnx.export(
            detector,
            tuple(detector.example().values()),
            dynamo=True,
            input_names=list(detector.example()),
            output_names=list(metadata.output_shapes()),
            dynamic_shapes=detector.dynamic_shapes(),
            opset_version=max(_EXPORTED_OPSET, opset or 0),
            external_data=False,
            verbose=False,
        )
    proto = program.model_proto
    graph = proto.graph
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph):
        del item.metadata_props[:]  # torch notes here which lines of which files each step came from
    if metadata.precision == "int8":
        proto = _quantize(proto, path, calibration)
    if metadata.any_size:
        _resize_inside(proto, metadata)
    return _lower(proto, opset)


def _quantize(proto: Any, path: Path, calibration: Sequence[Mapping[str, np.ndarray]]) -> Any:
    """8-bit teacher and student, except their first layers; weights by output channel and in 7 bits.

    Processors without VNNI add two products in 16 bits, which 8-bit weights would overflow.
    """
    import onnx

    quantization = import_package("onnxruntime.quantization", *ONNX_PACKAGES)
    shape_inference = import_package("onnxruntime.quantization.shape_inference", *ONNX_PACKAGES)
    plain, prepared = path.with_name("plain.onnx"), path.with_name("prepared.onnx")
    onnx.save(proto, plain)
    shape_inference.quant_pre_process(plain, prepared, skip_symbolic_shape=True)
    nodes = onnx.load(prepared).graph.node
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    into_convolutions = {node.input[0] for node in convolutions}
    kept = [node.name for node in convolutions if any(part in node.input[1] for part in _KEPT_EXACT)]
    # And the memory's comparison: its pooling belongs to no network
    kept += [n.name for n in nodes if n.op_type == "AveragePool" and n.output[0] not in into_convolutions]

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._images = iter(calibration)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            return next(self._images, None)

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


def _resize_inside(proto: Any, metadata: Metadata) -> None:
    """Let the graph take images of any size, and begin with what View.pixels does to them.

    ONNX Runtime resizes uint8 images as Pillow does if their channels come last.
    """
    import onnx

    graph, size, resized = proto.graph, "input_size", f"resized_{INPUT_NAME}"
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == INPUT_NAME:
                node.input[place] = resized
    resize = onnx.helper.make_node(
        "Resize",
        [INPUT_NAME, "", "", size],
        [resized],
        name="resize_images",
        mode="linear",
        coordinate_transformation_mode="half_pixel",
        antialias=1,
        exclude_outside=1,  # pixels beyond the image have no weight
        axes=[1, 2],
    )
    graph.node.insert(0, resize)
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(metadata.view.size), size))
    (images,) = (port for port in graph.input if port.name == INPUT_NAME)
    for side, name in zip(images.type.tensor_type.shape.dim[1:3], ("height", "width"), strict=True):
        side.dim_param = name


def _lower(proto: Any, opset: int | None) -> Any:
    """The graph in an opset, or in the lowest that can express it, and in the file format of that time.

    What newer opsets say otherwise is rewritten first, where it has the same meaning in the older ones; that every
    operator has its form in the opset is then for onnx to check.

    Raises:
        UserError: the opset cannot express it.
    """
    import onnx

    older = onnx.ModelProto()
    older.CopyFrom(proto)
    _write_as_before_18(onnx, older)
    exported = next(entry.version for entry in proto.opset_import if not entry.domain)
    for version in range(LOWEST_OPSET, exported + 1) if opset is None else [opset]:
        lowered = _stamp(onnx, older if version < _EXPORTED_OPSET else proto, version)
        try:
            onnx.checker.check_model(lowered, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
            continue
        return lowered
    if opset is None:
        raise UserError("cannot export this model: no ONNX opset can express it")
    least = _lower(proto, None).opset_import[0].version
    raise UserError(f"--opset {opset}: what this file computes needs {least} at least")


def _write_as_before_18(onnx: Any, proto: Any) -> None:
    """Axes of reductions as attributes, and no attribute of opset 18 that says what is so anyway."""
    graph = proto.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type in ("ReduceMean", "ReduceMax") and len(node.input) == 2 and node.input[1] in values:
            axes = onnx.numpy_helper.to_array(values[node.input.pop()]).tolist()
            node.attribute.append(onnx.helper.make_attribute("axes", axes))
            if "noop_with_empty_axes" in attributes:
                node.attribute.remove(attributes["noop_with_empty_axes"])
        if node.op_type == "Split" and "num_outputs" in attributes:
            node.attribute.remove(attributes["num_outputs"])
        if node.op_type == "Resize" and not ("antialias" in attributes and attributes["antialias"].i):
            for name in attributes.keys() & {"antialias", "keep_aspect_ratio_policy"}:
                node.attribute.remove(attributes[name])
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _stamp(onnx: Any, proto: Any, opset: int) -> Any:
    """A copy that says that it is of this opset, of no other domain, and of the file format that goes with it."""
    stamped = onnx.ModelProto()
    stamped.CopyFrom(proto)
    del stamped.opset_import[:]
    stamped.opset_import.append(onnx.helper.make_opsetid("", opset))
    stamped.ir_version = max(_LOWEST_IR, onnx.helper.find_min_ir_version_for(stamped.opset_import))
    return stamped
