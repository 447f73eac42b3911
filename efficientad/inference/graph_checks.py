"""Whether an ONNX or OpenVINO file holds a graph as efficientad.export writes it, before a runtime computes it.

A runtime computes whatever a file says: loops without end, results of any size, files beside it as weights. Of a
detector's file only the operators that the exporter needs are taken, and results in proportion to the image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.parsers import expat

from efficientad.inference.metadata import Metadata

_MOST_STEPS = 20_000  # of a graph; one with the largest memory has a few thousand
# A result may have so many values for each pixel: 256 channels of the medium teacher's first layer, some more for
# what rounding adds, on the image with its border, and what the autoencoder computes of 256 x 256 pixels.
_VALUES_PER_PIXEL, _BORDER, _FIXED_VALUES = 300, 64, 2**22

# What torch and ONNX Runtime's quantizer write for a detector of any size, view, border, memory and precision, and
# a few that say the same in other versions of them. None of them branches, repeats, or reads anything.
_ONNX_OPERATORS = re.findall(
    r"\w+",
    "Abs Add ArgMax AveragePool Cast Clip Concat Conv DequantizeLinear Div Equal Gather GatherND Greater MatMul "
    "Max MaxPool Mul Neg Not Pad Pow QuantizeLinear ReduceMax ReduceMean ReduceSum Relu Reshape Resize ScatterND "
    "Shape Slice Split Sqrt Sub TopK Transpose Unsqueeze Where Constant Expand Flatten Gemm Identity Squeeze",
)
_ONNX_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}
_OPENVINO_LAYERS = re.findall(
    r"\w+",
    "Abs Add AvgPool Broadcast Clamp Concat Const Convert Convolution Divide Equal FakeQuantize Gather GatherND "
    "Greater Interpolate LogicalNot MatMul MaxPool Maximum Minimum Multiply Negative Pad Parameter Power ReLU "
    "ReduceMax ReduceMean ReduceSum Reshape Result ScatterNDUpdate Select ShapeOf Slice Split Sqrt Squeeze "
    "Subtract TopK Transpose Unsqueeze VariadicSplit",
)
_OPENVINO_TYPES = {"f32", "f16", "i64", "u64", "i32", "u8", "i8", "boolean"}
_ONNX_SHAPE_BYTES = 1024  # of numbers that shapes may depend on
_DEEPEST_ELEMENT = 16  # of an .xml file; the exporter's have 7

Shape = Sequence[int | None]  # None: any number


class ForeignGraphError(ValueError):
    """The graph is not one of efficientad.export; the message says why."""


def check_ports(
    metadata: Metadata,
    inputs: Mapping[str, tuple[str, Shape | None]],
    outputs: Mapping[str, tuple[str, Shape | None]],
) -> None:
    """Raise a ForeignGraphError unless inputs and outputs are those of an export.

    Args:
        inputs, outputs: their types, as numpy names them, and shapes, by their names.
    """
    for kind, found, expected in (
        ("inputs", inputs, metadata.input_shapes()),
        ("outputs", outputs, metadata.output_shapes()),
    ):
        if found.keys() != expected.keys():
            raise ForeignGraphError(f"its {kind} are {', '.join(found)}, not {', '.join(expected)}")
        for name, (dtype, shape) in found.items():
            wanted = metadata.port_type(name)
            if dtype != wanted or shape is None or tuple(shape) != expected[name]:
                raise ForeignGraphError(
                    f"{name} is {dtype} {_describe(shape)}, not {wanted} {_describe(expected[name])}"
                )


def check_result_size(metadata: Metadata, name: str, shape: Shape | None, file_bytes: int) -> None:
    """Raise a ForeignGraphError unless a result for one image has a fixed shape, and not too large a one.

    Args:
        shape: None: not even its length is known.
        file_bytes: size of the file; what is computed of weights alone has at most as many values.
    """
    if shape is None or any(side is None or side < 0 for side in shape):
        raise ForeignGraphError(f"{name} has no fixed shape")
    pixels = (metadata.view.height + _BORDER) * (metadata.view.width + _BORDER)
    if math.prod(shape) > _VALUES_PER_PIXEL * pixels + _FIXED_VALUES + file_bytes:
        raise ForeignGraphError(f"{name} would have {math.prod(shape):,} values")


def _describe(shape: Shape | None) -> str:
    return "of any shape" if shape is None else " x ".join("N" if side is None else str(side) for side in shape)


def check_onnx(onnx: Any, model: Any, metadata: Metadata, file_bytes: int) -> None:
    """Raise a ForeignGraphError unless the model is one that the exporter may have written.

    Args:
        onnx: the package.
        model: a ModelProto; its large weights are removed.
        file_bytes: its size in the file.
    """
    graph = model.graph
    if model.functions or graph.sparse_initializer or len(graph.node) > _MOST_STEPS:
        raise ForeignGraphError("it has functions or sparse weights, or too many steps")
    tensors = list(graph.initializer)
    for node in graph.node:
        if node.domain or node.op_type not in _ONNX_OPERATORS:
            raise ForeignGraphError(f"it has the operator {node.op_type[:50]}")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs or attribute.HasField("sparse_tensor"):
                raise ForeignGraphError(f"its operator {node.op_type} has a graph of its own")
            tensors += [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
    for tensor in tensors:
        if tensor.external_data or tensor.data_location:
            raise ForeignGraphError("its weights are in another file")
        if tensor.data_type not in _ONNX_TYPES or not 0 <= math.prod(tensor.dims) <= file_bytes:
            raise ForeignGraphError("it has weights of another kind, or more than its size allows")
    check_ports(
        metadata, *({port.name: _onnx_port(port) for port in ports} for ports in (graph.input, graph.output))
    )
    of_one = metadata.shapes_of_one()
    for port in (*graph.input, *graph.output):
        for side, value in zip(port.type.tensor_type.shape.dim, of_one.get(port.name, (1,)), strict=False):
            side.dim_value = value
    del graph.value_info[:]  # whatever the file says of its results
    for tensor in tensors:
        if len(tensor.raw_data) > _ONNX_SHAPE_BYTES:
            tensor.ClearField("raw_data")
    try:
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except Exception as error:  # its own types
        raise ForeignGraphError(f"its results do not fit each other ({error})") from None
    shapes = {port.name: _onnx_port(port)[1] for port in (*graph.value_info, *graph.output)}
    for name in (name for node in graph.node for name in node.output if name):
        check_result_size(metadata, name, shapes.get(name), file_bytes)


def _onnx_port(port: Any) -> tuple[str, Shape | None]:
    tensor = port.type.tensor_type
    sides = [side.dim_value if side.HasField("dim_value") else None for side in tensor.shape.dim]
    return _ONNX_TYPES.get(tensor.elem_type, "another type"), sides if tensor.HasField("shape") else None


def check_openvino_file(path: Path, bin_bytes: int) -> None:
    """Raise a ForeignGraphError unless an .xml file has only the exporter's layers, with weights in the .bin."""
    parser = expat.ParserCreate()
    open_elements: list[str] = []
    layers = 0

    def refuse_doctype(*_: Any) -> None:
        raise ForeignGraphError("it has a document type")

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal layers
        open_elements.append(name)
        if len(open_elements) > _DEEPEST_ELEMENT:
            raise ForeignGraphError(f"elements in it are nested more than {_DEEPEST_ELEMENT} deep")
        if name == "layer":
            layers += 1
            kind, version = attributes.get("type", ""), attributes.get("version", "")
            if kind not in _OPENVINO_LAYERS or not re.fullmatch("opset[0-9]{1,2}", version) or layers > _MOST_STEPS:
                raise ForeignGraphError(f"it has the layer {kind[:50]} of {version[:50]}, or too many layers")
        if name == "data" and "offset" in attributes:
            numbers = [attributes["offset"], attributes.get("size", "")]
            if not all(re.fullmatch("[0-9]{1,15}", number) for number in numbers):
                raise ForeignGraphError("its weights are nowhere in the .bin file")
            if sum(map(int, numbers)) > bin_bytes or attributes.get("element_type") not in _OPENVINO_TYPES:
                raise ForeignGraphError("its weights lie beyond the end of the .bin file, or are of another kind")

    parser.StartDoctypeDeclHandler = refuse_doctype
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda name: open_elements.pop()
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except expat.ExpatError as error:
        raise ForeignGraphError(f"its .xml file is damaged ({error})") from None


def check_openvino(model: Any, metadata: Metadata, file_bytes: int) -> None:
    """Raise a ForeignGraphError unless inputs, outputs and the sizes of all results are those of an export.

    Args:
        model: openvino.Model.
        file_bytes: of both files.
    """
    ports = []
    for found in (model.inputs, model.outputs):
        named = {name: port for port in found for name in (port.get_names() or {""})}
        ports.append({name: _openvino_port(port) for name, port in named.items()})
    check_ports(metadata, *ports)
    of_one = model.clone()
    of_one.reshape({name: list(shape) for name, shape in metadata.shapes_of_one().items()})
    for step in of_one.get_ops():
        for output in step.outputs():
            check_result_size(metadata, step.get_friendly_name(), _openvino_port(output)[1], file_bytes)


def _openvino_port(port: Any) -> tuple[str, Shape | None]:
    kind, shape = port.get_element_type().get_type_name(), port.get_partial_shape()
    if shape.rank.is_dynamic:
        return kind, None
    sides = [side.get_length() if side.is_static else None for side in shape]
    return {"u8": "uint8", "f32": "float32", "boolean": "bool"}.get(kind, kind), sides
