"""Exported files that do not come from the exporter are refused in a line before a runtime computes anything."""

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import fail, fill_folder, make_dataset
from efficientad import predict
from efficientad.data.views import FIT, View
from efficientad.detector.calibration import Calibration
from efficientad.detector.model import MIRROR, EfficientAD
from efficientad.inference import exporting
from efficientad.inference.exported import load_exported
from efficientad.inference.metadata import MOST_EXPORTED_PIXELS, Metadata
from efficientad.system.errors import UserError, run_command
from exports import SUFFIXES, random_pixels, skip_without

HOSTILE = Path(__file__).resolve().parents[3] / "shared" / "cases" / "hostile"
CALIBRATION = Calibration((1.0, 2.0, 3.0, 4.0), 0.1, 5.0, (0.0, 0.4), True)
GOOD = Metadata("small", View(), "fp32", CALIBRATION, {"torch": "2"}).as_text()


def changed(**values):
    """The texts of an export with other facts in its calibration, or other texts."""
    calibration = json.loads(GOOD["calibration"])
    facts = {key: value for key, value in values.items() if key in calibration}
    texts = {key: value for key, value in values.items() if key not in calibration}
    return GOOD | {"calibration": json.dumps(calibration | facts)} | texts


NOT_FINITE = [float("nan"), float("inf"), float("-inf"), 1e300]
WRONG_TEXTS = [
    *(changed(threshold=number) for number in [*NOT_FINITE, None, "5", 5, True, [5.0]]),
    *(changed(target_fpr=number) for number in [*NOT_FINITE, 0.0, 1.0, -0.1, "0.1"]),
    *(changed(scores=[1.0, 2.0, 3.0, number]) for number in [*NOT_FINITE, "4", [4.0], None]),
    *(changed(scores=scores) for scores in ([4.0, 3.0, 2.0, 1.0], [1.0], [], 5.0, "1234")),
    *(changed(rate_interval=ends) for ends in ([0.4, 0.0], [0.0], [0.0, 1.5], [float("nan"), 0.4], 0.4)),
    changed(extrapolated="yes"),
    *(GOOD | {"calibration": text} for text in ("[]", "5", "true", "{}", "", "[" * 100_000, "9" * 5000)),
    *(GOOD | {"threshold": text} for text in ("6", "nan", "", "5.0")),
    *(GOOD | {"image_size": text} for text in ("256 512", "256", "-1 -1")),
    *(GOOD | {"efficientad_format": text} for text in ("", "0", "-1", "1e9", "\u0662", "9" * 5000)),
    *(GOOD | {"precision": text} for text in ("", "fp64", "\x1b[2J", "fp32\nModel fine")),
    *(GOOD | {"model_size": text} for text in ("", "large", "small\x1b[31m")),
    *(GOOD | {"versions": text} for text in ("[]", "null", '{"torch": 2}', '{"torch": "\\u001b[2J"}')),
    GOOD | {"versions": json.dumps({"torch": "2" * 1000})},
    GOOD | {"view": json.dumps(View().as_dict() | {"size": [8192, 8192]}), "image_size": "8192 8192"},
    *({key: text for key, text in GOOD.items() if key != missing} for missing in GOOD),
]


@pytest.mark.parametrize("texts", WRONG_TEXTS)
def test_facts_that_no_export_has(texts):
    """A threshold that is not a number, for one, would call every part good."""
    assert Metadata.from_text(GOOD, Path("d.onnx")).calibration == CALIBRATION
    with pytest.raises(UserError, match="^d.onnx is no detector that efficientad.export wrote") as raised:
        Metadata.from_text(texts, Path("d.onnx"))
    assert len(str(raised.value)) < 300


@pytest.fixture(scope="module")
def kept():
    """The files of the tiny detector by format and precision, as bytes by suffix; exporting takes seconds."""
    return {}


@pytest.fixture
def written(tiny_model, tmp_path, kept):
    """Writes the tiny detector, or one of a view, in a format."""

    def write(name, precision="fp32", view=None):
        skip_without(name)
        path = tmp_path / f"d{SUFFIXES[name]}"
        if view is None and (name, precision) in kept:
            for suffix, data in kept[name, precision].items():
                path.with_suffix(suffix).write_bytes(data)
            return path
        model = tiny_model if view is None else EfficientAD("small", view).eval()
        exporting.write_export(name, model, exporting.describe(model, precision), path)
        load_exported(path, "cpu", "auto")  # as it is, it is taken
        if view is None:
            kept[name, precision] = {file.suffix: file.read_bytes() for file in path.parent.glob("d.*")}
        return path

    return write


@pytest.mark.parametrize("name", SUFFIXES)
@pytest.mark.parametrize(("view", "memory"), [(View(640, 1024), 3000), (View(1024, 640, FIT), 0)])
def test_exports_of_large_images_are_taken(tiny_networks, tmp_path, name, view, memory):
    """In them the exporter leaves steps that it computes itself where images are small."""
    skip_without(name)
    model, path = EfficientAD("small", view, MIRROR, True, memory).eval(), tmp_path / f"d{SUFFIXES[name]}"
    exporting.write_export(name, model, exporting.describe(model, "fp32"), path)
    inspected = torch.ones((1, *view.size), dtype=torch.bool)
    assert load_exported(path, "cpu", "auto")(random_pixels(1, view.size), inspected).shape == (1, 1, *view.size)


def change_onnx(path, change):
    import onnx

    model = onnx.load(path)
    change(onnx, model)
    path.write_bytes(model.SerializeToString())


def insert(onnx, model, node):
    """A step whose result nobody uses, or which replaces the score."""
    model.graph.node.append(node)


def loop(onnx, model):
    h, kinds = onnx.helper, onnx.TensorProto
    ports = [h.make_tensor_value_info(name, kinds.BOOL, []) for name in ("more_in", "more_out")]
    count = h.make_tensor_value_info("count", kinds.INT64, [])
    body = h.make_graph([h.make_node("Identity", ["more_in"], ["more_out"])], "b", [count, ports[0]], [ports[1]])
    insert(onnx, model, h.make_node("Loop", ["", ""], [], body=body))


def huge(onnx, model):
    shape = onnx.numpy_helper.from_array(np.array([10**5, 10**5]), "huge_shape")
    one = onnx.numpy_helper.from_array(np.ones((1, 1), "float32"), "one")
    model.graph.initializer.extend([shape, one])
    insert(onnx, model, onnx.helper.make_node("Expand", ["one", "huge_shape"], ["huge"]))


def unknown_size(onnx, model):
    insert(onnx, model, onnx.helper.make_node("NonZero", ["images"], ["places"]))


def outside_file(onnx, model):
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")
    tensor.ClearField("raw_data")


def rename(ports, name):
    ports[0].name = name


def retype(port, kind):
    port.type.tensor_type.elem_type = kind


ONNX_CHANGES = [
    (loop, "it has the operator Loop"),
    (huge, "huge would have 10,000,000,000 values"),
    (unknown_size, "it has the operator NonZero"),
    (outside_file, "its weights are in another file"),
    (lambda o, m: insert(o, m, o.helper.make_node("Evil", [], ["x"], domain="other")), "it has the operator Evil"),
    (lambda o, m: insert(o, m, o.helper.make_node("\x1b[2J", [], ["x"])), r"it has the operator \x1b\[2J"),
    (lambda o, m: m.graph.initializer[0].dims.append(10**12), "more than its size allows"),
    (lambda o, m: rename(m.graph.input, "x"), "its inputs are x, not images"),
    (lambda o, m: rename(m.graph.output, "x"), "its outputs are x, score, not anomaly_map, score"),
    (lambda o, m: m.graph.output.pop(), "its outputs are anomaly_map, not"),
    (lambda o, m: retype(m.graph.input[0], 1), "images is float32 N x 256 x 256 x 3, not uint8"),
    (lambda o, m: retype(m.graph.output[0], 7), "anomaly_map is int64"),
    (lambda o, m: retype(m.graph.output[0], 8), "anomaly_map is another type"),
    (lambda o, m: m.graph.output[0].type.tensor_type.ClearField("shape"), "anomaly_map is float32 of any shape"),
    (lambda o, m: m.graph.input[0].type.tensor_type.shape.dim.pop(), "images is uint8 N x 256 x 256, not"),
    (lambda o, m: m.graph.node.pop(), "no fixed shape|do not fit|damaged"),
    (lambda o, m: m.graph.initializer[0].dims.insert(0, 0), "do not fit|damaged"),
]


@pytest.mark.parametrize(("change", "message"), ONNX_CHANGES)
def test_onnx_graphs_that_the_exporter_does_not_write(written, change, message):
    path = written("onnx")
    change_onnx(path, change)
    with pytest.raises(UserError, match=message) as raised:
        load_exported(path, "cpu", "auto")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500 + len(str(path))


def test_what_a_file_says_is_no_terminal_code(written, tmp_path, monkeypatch, capfd):
    """Neither in our line nor in lines of the runtime."""
    fill_folder(tmp_path / "in", 1)
    path = written("onnx")
    change_onnx(path, lambda o, m: insert(o, m, o.helper.make_node("\x1b[2J", [], ["x"], name="\x1b[31m")))
    words = ["-w", path, "-i", tmp_path / "in", "-o", tmp_path / "out"]
    monkeypatch.setattr("sys.argv", ["predict", *map(str, words)])
    with pytest.raises(SystemExit):
        run_command(predict.main, predict.get_parser())
    printed = capfd.readouterr()
    assert r"it has the operator \x1b[2J" in printed.err and "\x1b" not in printed.out + printed.err


OPENVINO_CHANGES = [
    (lambda text: text.replace('type="ReLU"', 'type="Loop"', 1), "it has the layer Loop"),
    (lambda text: text.replace('version="opset1"', 'version="extension"', 1), "of extension"),
    (lambda text: re.sub(r'offset="\d+"', 'offset="999999999999"', text), "beyond the end of the .bin file"),
    (lambda text: re.sub(r'offset="0" size="\d+"', 'offset="-8" size="8"', text), "nowhere in the .bin file"),
    (lambda text: re.sub(r'element_type="f32"', 'element_type="string"', text), "of another kind"),
    (lambda text: '<!DOCTYPE x [<!ENTITY a "b">]>' + text.split("?>")[1], "document type"),
    (lambda text: "<a>" * 100_000, "nested more than 16 deep"),
    (lambda text: text[: len(text) // 2], "its .xml file is damaged"),
    (lambda text: text.replace('names="score"', 'names="points"'), "its outputs are anomaly_map, points"),
    (
        lambda text: text.replace('output_names="score"', 'output_names="points"'),
        "its outputs are anomaly_map, points, not",
    ),
    (lambda text: text.replace('shape="?,256,256,3"', 'shape="?,?,?,3"'), "images is uint8 N x N x N x 3, not"),
    (lambda text: text.replace("256 256", "512 512"), "image_size is not that"),
]


@pytest.mark.parametrize(("change", "message"), OPENVINO_CHANGES)
def test_openvino_files_that_the_exporter_does_not_write(written, change, message):
    path = written("openvino")
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    with pytest.raises(UserError, match=message) as raised:
        load_exported(path, "cpu", "auto")
    assert "\n" not in str(raised.value)


def test_weights_of_openvino_that_are_not_there(written, tmp_path):
    path = written("openvino")
    weights = tmp_path / "d.bin"
    data = weights.read_bytes()
    weights.write_bytes(data[:100])
    with pytest.raises(UserError, match="beyond the end of the .bin file"):
        load_exported(path, "cpu", "auto")
    weights.unlink()
    with pytest.raises(UserError, match="beyond the end of the .bin file"):
        load_exported(path, "cpu", "auto")
    weights.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="d.bin is a pipe or a device"):
        load_exported(path, "cpu", "auto")


def rewrite(path, name, change):
    """Change an entry of a zip file."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    (found,) = (entry for entry in entries if entry.endswith(name))
    entries[found] = change(entries[found])
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)


class Dangerous:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


def test_a_program_cannot_bring_code(written, tmp_path):
    """Neither as a pickle nor as an expression, a condition or an operator."""
    trace = tmp_path / "trace"
    evil = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    for name, change, message in (
        (
            "model_weights_config.json",
            lambda d: d.replace(b'"use_pickle": false', b'"use_pickle": true'),
            "pickled",
        ),
        ("models/model.json", lambda d: re.sub(rb'Symbol\([^"]*\)', evil.encode(), d), "it has the expr_str __imp"),
        ("models/model.json", lambda d: with_guard(d, evil), "it has the guards_code __import__"),
        (
            "models/model.json",
            lambda d: d.replace(b"aten.permute.default", b"aten.from_file.default"),
            "the target",
        ),
        (
            "models/model.json",
            lambda d: d.replace(b"torch.ops.aten.permute.default", b"os.system"),
            "target os.sys",
        ),
        ("sample_inputs/model.pt", lambda d: pickled(tmp_path, Dangerous(trace)), "holds pickled Python objects"),
        ("metadata.json", lambda d: b'{"efficientad_format": 2}', "metadata are no texts"),
        ("archive_version", lambda d: pickled(tmp_path, Dangerous(trace)), "holds pickled Python objects"),
    ):
        path = written("torch", view=View(64, 64, FIT))
        rewrite(path, name, change)
        with pytest.raises(UserError, match=message):
            load_exported(path, "cpu", "auto")
        assert not trace.exists()


def with_guard(data, code):
    contents = json.loads(data)
    contents["guards_code"] = [code]
    return json.dumps(contents).encode()


def pickled(folder, what):
    torch.save(what, folder / "pickled.pt")
    return (folder / "pickled.pt").read_bytes()


def test_a_program_may_not_compute_results_of_any_size(written, monkeypatch):
    path = written("torch")
    monkeypatch.setattr("efficientad.inference.graph_checks._VALUES_PER_PIXEL", -100)
    with pytest.raises(UserError, match="would have .* values"):
        load_exported(path, "cpu", "auto")


def test_an_answer_of_another_shape_is_an_error(written, monkeypatch):
    detector = load_exported(written("onnx"), "cpu", "auto")
    answer = detector.answer(random_pixels(1))
    monkeypatch.setattr(detector, "_run", lambda inputs: (answer[0][:, :5], answer[1]))
    with pytest.raises(UserError, match=r"is damaged: its answer has the shape \(1, 5, 256\)"):
        detector(random_pixels(1))

    def stop(inputs):
        raise RuntimeError("first line\nno such thing")

    monkeypatch.setattr(detector, "_run", stop)
    with pytest.raises(UserError, match="d.onnx cannot compute an answer: no such thing"):
        detector(random_pixels(1))


def test_large_images_are_for_the_model_itself(tiny_networks):
    view = View(8192, 4096)
    assert view.height * view.width > MOST_EXPORTED_PIXELS
    with pytest.raises(UserError, match="takes at most 16,777,216; use model.pt"):
        exporting.describe(EfficientAD("small", view), "fp32")


CASES = sorted([*HOSTILE.glob("onnx/*.onnx"), *HOSTILE.glob("openvino/*.xml")])


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_collected_files(path, tmp_path, monkeypatch, capsys):
    skip_without("onnx" if path.suffix == ".onnx" else "openvino")
    parts = make_dataset(tmp_path / "parts", test={"good": 1})
    words = ["-w", path, "-i", parts / "test", "-o", tmp_path / "out"]
    assert len(fail(monkeypatch, capsys, predict, *words).splitlines()) == 1
