"""A detector as a file for ONNX Runtime, OpenVINO or torch.export, in full, half or 8-bit precision."""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import efficientad
from efficientad.data.ignored import decode_ignored
from efficientad.data.images import UnreadableImageError
from efficientad.data.views import FIT, View
from efficientad.detector.model import EfficientAD, anomaly_score
from efficientad.inference.exported import import_package
from efficientad.inference.metadata import (
    INPUT_NAME,
    INSPECTED_NAME,
    METADATA_FILE,
    MOST_EXPORTED_PIXELS,
    OUTPUT_NAMES,
    Metadata,
)
from efficientad.system.errors import UserError


class ExportableDetector(nn.Module):
    """A detector with its normalizations folded into its convolutions where that is exact.

    ImageNet's mean and standard deviation go into the first convolutions of teacher and student, which do not pad,
    and the teacher's statistics into its last one. The autoencoder pads its normalized input with zeros, so its
    normalization remains a separate step. Images are resized for it, and maps combined, always in float32.

    What a mask ignores is part of the graph, unless the view keeps the aspect ratio: then the pixels that count
    depend on the image, and are a second input. The whole grid is computed at once, without tiles.
    """

    def __init__(self, model: EfficientAD, dtype: torch.dtype = torch.float32) -> None:
        """
        Args:
            model: in eval mode; it is left as it is.
            dtype: of the networks' arithmetic.
        """
        super().__init__()
        self.detector = copy.deepcopy(model).cpu().float().requires_grad_(False).eval()
        self.dtype = dtype
        mean, std = 255 * self.detector.image_mean, 255 * self.detector.image_std
        padding_free = [
            network for network in (self.detector.teacher, self.detector.student) if network is not None
        ]
        for network in padding_free:
            _fold_input(network, mean, std)
        _fold_output(self.detector.teacher, self.detector.teacher_mean, self.detector.teacher_std)
        view = self.detector.view
        self.takes_inspected = view.resize == FIT
        always_ignores = view.ignored is not None and not self.takes_inspected
        self.register_buffer("inspected", _inspected_always(view)[None] if always_ignores else None)
        self.register_buffer("pixel_mean", mean.to(dtype))
        self.register_buffer("pixel_std", std.to(dtype))
        for network in (*padding_free, *filter(None, [self.detector.autoencoder])):
            network.to(dtype, memory_format=torch.channels_last)
        self.eval()

    def forward(self, images: Tensor, inspected: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Anomaly maps N x H x W, 0-255 scale, and scores N, both float32, of uint8 RGB images N x H x W x 3.

        Args:
            inspected: uint8, N x H x W, not 0 where the map is not 0; only with takes_inspected.
        """
        detector, pixels = self.detector, images.permute(0, 3, 1, 2).to(self.dtype)
        seen = detector.cut(pixels)
        teacher = detector.teacher(seen).float()
        student = autoencoder = None
        if detector.student is not None:
            student = detector.student(seen).float()
            overview = ((detector.overview(pixels) - self.pixel_mean) / self.pixel_std).to(self.dtype)
            autoencoder = detector.autoencoder(overview).float()
        raw = detector.compare(teacher, student, autoencoder)
        counted = inspected != 0 if inspected is not None else self.inspected
        anomaly_maps = detector.combine_maps(raw, counted)
        return anomaly_maps[:, 0], anomaly_score(anomaly_maps)

    def example(self, batch_size: int = 2) -> dict[str, Tensor]:
        """Inputs to trace with, by name."""
        shape = (batch_size, *self.detector.view.size)
        inputs = {INPUT_NAME: torch.zeros((*shape, 3), dtype=torch.uint8)}
        if self.takes_inspected:
            inputs[INSPECTED_NAME] = torch.ones(shape, dtype=torch.uint8)
        return inputs

    def dynamic_shapes(self) -> dict[str, Any]:
        """Of these inputs: only the number of images is free."""
        batch = torch.export.Dim("batch")
        return {name: {0: batch} for name in self.example()}


def _inspected_always(view: View) -> Tensor:
    """Which pixels of any input count, for images as large as the mask: bools, height x width.

    Raises:
        UserError: the mask is smaller than the images that it was made for, so that the region is not within it.
    """
    try:
        return view.inspected(decode_ignored(view.ignored).size)
    except UnreadableImageError as error:
        raise UserError(f"cannot export this model: {error}; give train.py a mask of the images' size") from None


def _convolutions(network: nn.Sequential) -> list[int]:
    return [index for index, layer in enumerate(network) if isinstance(layer, nn.Conv2d)]


@torch.no_grad()
def _fold_input(network: nn.Sequential, mean: Tensor, std: Tensor) -> None:
    """Make the network take x instead of (x - mean) / std; its first convolution must not pad."""
    layer = network[_convolutions(network)[0]]
    if any(layer.padding):
        raise ValueError("the normalization of its input cannot be folded into a padded convolution")
    weight = layer.weight.double() / std
    layer.bias.copy_(layer.bias.double() - (weight * mean).sum(dim=(1, 2, 3)))
    layer.weight.copy_(weight)


@torch.no_grad()
def _fold_output(network: nn.Sequential, mean: Tensor, std: Tensor) -> None:
    """Make the network return (y - mean) / std instead of y."""
    layer = network[_convolutions(network)[-1]]
    layer.weight.copy_(layer.weight.double() / std.view(-1, 1, 1, 1))
    layer.bias.copy_((layer.bias.double() - mean.flatten()) / std.flatten())


# Convolutions that int8 leaves exact. The autoencoder has few multiply-adds but needs them exactly: its bottleneck
# sees every pixel. The first convolutions have fewer still, and filters that sum to nearly zero: their rounding
# errors, times the brightness of the pixels, would drown their outputs.
_KEPT_EXACT = ("autoencoder.", "teacher.0.", "student.0.")
_OPSET = 20
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def describe(model: EfficientAD, precision: str) -> Metadata:
    """The metadata of an export.

    Raises:
        UserError: the model's images are too large for a file.
    """
    if model.view.height * model.view.width > MOST_EXPORTED_PIXELS:
        raise UserError(
            f"cannot export this model: a file computes its {model.view.height} x {model.view.width} pixels in one "
            f"pass and takes at most {MOST_EXPORTED_PIXELS:,}; use model.pt, which computes one tile after another"
        )
    versions = {"efficientad": efficientad.__version__, "torch": str(torch.__version__)}
    return Metadata(model.model_size, model.view, precision, model.calibration, versions)


def write_export(
    name: str,
    model: EfficientAD,
    metadata: Metadata,
    path: Path,
    calibration: Sequence[Mapping[str, np.ndarray]] = (),
    graphs: MutableMapping[str, Any] | None = None,
) -> None:
    """Write the detector in a format.

    Args:
        name: of the format: onnx, openvino or torch.
        model: in eval mode; it is left as it is.
        metadata: its precision is fp32; for onnx also fp16, int8; for openvino bf16 (a hint), int8; for torch bf16.
        path: with the format's suffix; files may be left beside it if this fails.
        calibration: inputs of single good images, as Metadata.inputs makes them; used by int8 only.
        graphs: what earlier calls with the same model have worked out for other formats; added to here.

    Raises:
        MissingPackageError
    """
    if name == "torch":
        _write_program(model, metadata, path)
        return
    onnx = import_package("onnx", *_ONNX_PACKAGES)
    graphs = {} if graphs is None else graphs
    arithmetic = "fp32" if metadata.precision == "bf16" else metadata.precision
    if arithmetic not in graphs:
        graphs[arithmetic] = _graph(model, metadata, path, calibration)
    graph = graphs[arithmetic]
    if name == "onnx":
        for key, text in metadata.as_text().items():
            graph.metadata_props.add(key=key, value=text)
        onnx.save(graph, path)
        del graph.metadata_props[:]
    else:
        _write_openvino(graph, metadata, path)


def _graph(
    model: EfficientAD, metadata: Metadata, path: Path, calibration: Sequence[Mapping[str, np.ndarray]]
) -> Any:
    """The ModelProto, which names the networks' layers and nothing of this machine.

    Only fp16 is in the graph: OpenVINO itself computes an fp32 graph in bf16.
    """
    import_package("onnxscript", *_ONNX_PACKAGES)
    detector = ExportableDetector(model, torch.float16 if metadata.precision == "fp16" else torch.float32)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)  # both inputs have the same one
        program = torch.onnx.export(
            detector,
            tuple(detector.example().values()),
            dynamo=True,
            input_names=list(detector.example()),
            output_names=list(OUTPUT_NAMES),
            dynamic_shapes=detector.dynamic_shapes(),
            opset_version=_OPSET,
            external_data=False,
            verbose=False,
        )
    proto = program.model_proto
    graph = proto.graph
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph):
        del item.metadata_props[:]  # torch notes here which lines of which files each step came from
    return _quantize(proto, path, calibration) if metadata.precision == "int8" else proto


def _quantize(proto: Any, path: Path, calibration: Sequence[Mapping[str, np.ndarray]]) -> Any:
    """8-bit teacher and student, except their first layers; weights by output channel and in 7 bits.

    Processors without VNNI add two products in 16 bits, which 8-bit weights would overflow.
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


def _write_openvino(graph: Any, metadata: Metadata, path: Path) -> None:
    """Write an ONNX graph as an .xml file and the .bin file beside it.

    Both runtimes share a quantizer: OpenVINO's own, NNCF, lost 4 points of AUROC or more on some of the magnetic
    tiles' test images, where this one lost 0.3.
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
    inputs = tuple(detector.example().values())
    program = torch.export.export(detector, inputs, dynamic_shapes=detector.dynamic_shapes())
    buffer = io.BytesIO()  # writing to the file itself, torch aborts the process when the disk is full
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)  # of weights on the CPU
        torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(metadata.as_text())})
    path.write_bytes(buffer.getbuffer())
