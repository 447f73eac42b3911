"""The fastest export: what is tried, what is kept, and in what OpenVINO computes."""

import re
import sys

import pytest
import torch

from conftest import fail, make_dataset
from efficientad import export
from efficientad.benchmarking import fastest
from efficientad.benchmarking.export_run import ExportPlan, choose_candidates
from efficientad.benchmarking.fastest import Candidate, Speed, Trials
from efficientad.inference import export_check, exported, exporting
from efficientad.inference.export_options import ExportOptions
from efficientad.inference.exported import load_exported
from efficientad.system import arguments
from exports import save_training, skip_without


def run(*words):
    export.main(export.get_parser().parse_args([str(word) for word in words]))


@pytest.fixture
def weights(tmp_path, tiny_model):
    return save_training(tiny_model, tmp_path)


@pytest.fixture
def tried(monkeypatch):
    """Milliseconds of a file, its AUROC and whether it is near torch, by format and precision; model.pt takes 100.

    No file is computed.
    """
    facts = {}

    def measure(trials, name, precision, path):
        path.write_text(f"{name} {precision}")
        if name == "openvino":
            path.with_suffix(".bin").write_text("weights")
        milliseconds, auroc, is_near = facts.get(f"{name} {precision}", (200, 0.9, True))
        difference = export_check.Differences(0.5, 2.0, *(2 * [0.0 if is_near else 1.0]))
        trials._model_speeds.append((0.1, 12.0))
        speed = Speed(milliseconds / 1000, 0.1)
        parity = export_check.Parity(difference, difference, 10, 10)
        return Candidate(name, precision, path, 1.5, parity, speed, 1200 / milliseconds, auroc)

    monkeypatch.setattr(Trials, "_measure", measure)
    monkeypatch.setattr(fastest, "image_auroc", lambda y_true, y_score: 0.9)
    return facts


def rows_of(printed):
    """The first three words of each row of the table."""
    return re.findall(r"^((?:onnx|openvino|torch) \w+|model\.pt) +(\S+) +(\S+x) ", printed, flags=re.MULTILINE)


def files_in(folder):
    return {path.name for path in folder.iterdir()}


def test_the_fastest_is_written_and_the_others_are_not(weights, tried, capsys):
    tried |= {"openvino int8": (25, 0.9, True), "onnx fp32": (50, 0.9, True)}
    run("-w", weights, "--fastest")
    printed = capsys.readouterr().out
    rows = rows_of(printed)
    assert rows[:3] == [
        ("openvino int8", "25", "4.00x"),
        ("onnx fp32", "50", "2.00x"),
        ("model.pt", "100", "1.00x"),
    ]
    assert {"onnx int8", "openvino fp32", "torch fp32"} <= {name for name, *_ in rows[3:]}
    assert re.search(r"^openvino int8 .* 48 +0.5 +2 +90.00 +1.5$", printed, flags=re.MULTILINE)
    assert "AUROC: on 7 of 7 test images" in printed
    assert f"Wrote {weights / 'detector.xml'} (int8)" in printed
    assert "On this machine's CPU: 25 ms per image (model.pt: 100 ms)\n" in printed
    assert files_in(weights) == {"model.pt", "detector.xml", "detector.bin"}
    assert (weights / "detector.xml").read_text() == "openvino int8"


def test_nothing_is_written_if_model_pt_is_the_fastest(weights, tmp_path, tried, capsys):
    """Unless a format was named: then a file is wanted."""
    run("-w", weights, "--fastest")
    assert "Nothing is written: model.pt is the fastest here" in capsys.readouterr().out
    assert files_in(weights) == {"model.pt"}
    run("-w", weights, "--fastest", "--format", "torch", "-o", tmp_path / "here")
    assert "(model.pt: 100 ms), so model.pt is faster here" in capsys.readouterr().out
    run("-w", weights, "--fastest", "-o", tmp_path / "there.pt2", "--precision", "fp32")
    assert rows_of(capsys.readouterr().out)[1:] == [("torch fp32", "200", "0.50x")]
    assert (tmp_path / "here.pt2").exists() and (tmp_path / "there.pt2").exists()


def test_a_fast_file_that_answers_otherwise_is_not_kept(weights, tmp_path, tried, monkeypatch, capsys):
    """Nor one that ranks worse by more than 0.3 points."""
    tried |= {"onnx fp32": (25, 0.9, False), "openvino int8": (30, 0.896, True), "onnx int8": (50, 0.8975, True)}
    run("-w", weights, "--fastest")
    printed = capsys.readouterr().out
    assert re.search("^onnx fp32 .* differs$", printed, flags=re.MULTILINE)
    assert re.search("^openvino int8 .* 89.60 .* AUROC low$", printed, flags=re.MULTILINE)
    assert (weights / "detector.onnx").read_text() == "onnx int8"
    words = ["-w", weights, "--fastest", "--format", "onnx", "--precision", "fp32", "-o", tmp_path / "d.onnx"]
    message = fail(monkeypatch, capsys, export, *words)
    assert "every format would differ too much from model.pt" in message
    assert not list(tmp_path.glob("*d.onnx*"))


def test_it_is_measured(weights, monkeypatch, capsys):
    """Without anything made up: the one format that needs no package."""
    monkeypatch.setattr(fastest, "_SECONDS", 0.01)
    run("-w", weights, "--fastest", "--format", "torch", "--precision", "fp32")
    printed = capsys.readouterr().out
    row = r"^torch fp32 +[\d.e+]+ +[\d.]+x +[\d.e+]+ +[\d.e-]+ +[\d.e-]+ +(\S+) +[\d.]+$"
    (auroc,) = re.findall(row, printed, flags=re.MULTILINE)
    (expected,) = re.findall(r"^model.pt +\S+ +1.00x +\S+ +- +- +(\S+) +[\d.]+$", printed, flags=re.MULTILINE)
    assert float(auroc) == pytest.approx(float(expected), abs=0.01)
    detector = load_exported(weights / "detector.pt2", "cpu", "auto")
    assert detector.metadata.precision == "fp32"
    assert files_in(weights) == {"model.pt", "detector.pt2"}


def test_the_test_images_may_be_others_or_missing(weights, tmp_path, tried, monkeypatch, capsys):
    words = ["-w", weights, "--fastest", "--format", "torch", "--precision", "fp32", "--overwrite"]
    other = make_dataset(tmp_path / "other", test={"good": 2, "defect_type_1": 1})
    run(*words, "-d", "custom", "-c", other)
    assert "AUROC: on 3 of 3 test images" in capsys.readouterr().out
    for path in (other / "test" / "good").iterdir():
        path.unlink()
    message = fail(monkeypatch, capsys, export, *words, "-d", "custom", "-c", other)
    assert "needs good and defective images for an AUROC" in message
    message = fail(monkeypatch, capsys, export, "-w", weights, "-d", "custom", "-c", other)
    assert "--dataset is for --fastest" in message
    (tmp_path / "parts").rename(tmp_path / "moved")
    run(*words, "--images", tmp_path / "moved" / "train")
    assert "AUROC: not measured" in capsys.readouterr().out


def test_nothing_is_overwritten_unasked(weights, tried, monkeypatch, capsys):
    (weights / "detector.pt2").write_text("mine")
    message = fail(monkeypatch, capsys, export, "-w", weights, "--fastest", "--precision", "fp32")
    assert "detector.pt2 is there already; add --overwrite" in message
    assert files_in(weights) == {"model.pt", "detector.pt2"}
    assert (weights / "detector.pt2").read_text() == "mine"


def test_missing_packages_are_told(weights, tried, monkeypatch, capsys):
    def measure(trials, name, precision, path):
        if name == "torch":
            return measure_made_up(trials, name, precision, path)
        return exporting.write_export(name, None, exporting.describe(trials._model, precision), path)

    measure_made_up = Trials._measure
    monkeypatch.setattr(Trials, "_measure", measure)
    monkeypatch.setitem(sys.modules, "onnx", None)
    tried["torch fp32"] = (50, 0.9, True)
    run("-w", weights, "--fastest")
    printed = capsys.readouterr().out
    assert (
        "\nNot tried: onnx fp32, onnx int8, openvino fp32, openvino int8" in printed
        and ": onnx is missing" in printed
    )
    assert files_in(weights) == {"model.pt", "detector.pt2"}
    message = fail(monkeypatch, capsys, export, "-w", weights, "--fastest", "--format", "onnx")
    assert "no format could be tried: onnx is missing; install it with" in message
    message = fail(monkeypatch, capsys, export, "-w", weights, "--fastest", "--format", "onnx", "-o", "d.xml")
    assert "no format fits" in message


def test_bf16_is_tried_where_the_processor_has_it(weights, monkeypatch):
    def candidates(*words):
        plan = arguments.read_options(
            ExportPlan,
            export.get_parser().parse_args(["-w", str(weights), "--fastest", *words]),
            options=ExportOptions(any_size="any" in words, opset=17 if "17" in words else None),
        )
        return choose_candidates(plan)

    everywhere = [("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "int8"), ("torch", "fp32")]
    for native, more in (("fp32", []), ("bf16", [("openvino", "bf16"), ("torch", "bf16")])):
        monkeypatch.setattr(
            "efficientad.benchmarking.export_run.resolve_precision", lambda name, device, n=native: n
        )
        assert sorted(candidates()) == sorted([*everywhere, *more])
    assert candidates("--precision", "fp16") == [("onnx", "fp16")]
    assert candidates("--input", "any") == candidates("--opset", "17") == [("onnx", "fp32"), ("onnx", "int8")]
    assert candidates("-o", "d.xml", "--precision", "int8") == [("openvino", "int8")]


def test_an_export_says_how_fast_it_is(weights, capsys):
    """Measured, whatever the result."""
    run("-w", weights, "--format", "torch")
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(
        r"On this machine's CPU: [\d.e+]+ ms per image \(model\.pt: [\d.e+]+ ms\)(, so model\.pt is faster here)?",
        last,
    )


def test_graphs_are_shared_between_formats(weights, tiny_model, tmp_path, monkeypatch):
    """And each file has the facts of its own precision."""
    skip_without("openvino")
    made, make = [], exporting.build_graph
    monkeypatch.setattr(exporting, "build_graph", lambda *args: made.append(args[1].precision) or make(*args))
    graphs = {}
    for name, precision, file in (
        ("onnx", "fp32", "a.onnx"),
        ("openvino", "bf16", "b.xml"),
        ("onnx", "fp32", "c.onnx"),
    ):
        exporting.write_export(
            name, tiny_model, exporting.describe(tiny_model, precision), tmp_path / file, (), graphs
        )
        assert load_exported(tmp_path / file, "cpu", "auto").metadata.precision == precision
    assert made == ["fp32"]


def capabilities():
    import openvino

    return openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.mark.parametrize(
    ("precision", "with_bf16", "without"),
    [("fp32", "f32", "f32"), ("bf16", "bf16", "f32"), ("int8", "bf16", "f32")],
)
def test_openvino_computes_floats_in_what_the_processor_has(
    tiny_model, tmp_path, monkeypatch, precision, with_bf16, without
):
    """Except in an fp32 file; what it computes in is in the description."""
    skip_without("openvino")
    import openvino

    compiled, core = [], openvino.Core

    class Core(core):
        def compile_model(self, *args):
            compiled.append(super().compile_model(*args))
            return compiled[-1]

    metadata = exporting.describe(tiny_model, precision)
    pixels = torch.zeros(1, 3, 256, 256, dtype=torch.uint8)
    exporting.write_export("openvino", tiny_model, metadata, tmp_path / "d.xml", [metadata.inputs(pixels, None)])
    monkeypatch.setattr(openvino, "Core", Core)
    detector = load_exported(tmp_path / "d.xml", "cpu", "auto")
    expected = with_bf16 if "BF16" in capabilities() else without
    assert compiled[0].get_property("INFERENCE_PRECISION_HINT").get_type_name() == expected
    name = {"f32": "fp32", "bf16": "bf16"}[expected]
    described = {"fp32": "fp32", "bf16": name, "int8": f"int8 and {name}"}[precision]
    assert f", precision {described}" in detector.description
    assert exported._choose_floats(precision, ["FP32", "BF16", "INT8"]) == with_bf16
    assert exported._choose_floats("int8", ["FP32", "INT8"]) == "f32"
