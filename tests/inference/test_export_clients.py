"""Files for other clients: old runtimes, images of any size, decisions, and a program in C++."""

import os
import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_export_views import KINDS, build

from conftest import draw_part, fail
from efficientad import export
from efficientad.benchmarking import fastest
from efficientad.data.views import View
from efficientad.detector.calibration import calibrate
from efficientad.inference import export_check, exporting, load_detector, onnx_graphs
from efficientad.inference.export_options import ExportOptions
from efficientad.inference.exportable import decide
from efficientad.inference.exported import load_exported
from efficientad.system.errors import UserError
from exports import SUFFIXES, save_training, skip_without

THRESHOLD = 45.5
WITH_ALL = ExportOptions(decides=True, threshold=THRESHOLD)


def run(*words):
    export.main(export.get_parser().parse_args([str(word) for word in words]))


@pytest.fixture
def trained(tiny_networks, tmp_path):
    """The folder of a training on images of 96 x 160 pixels."""
    model = build(View(96, 160), "none", False, 32)
    model.calibration = calibrate([10.0, 20.0, 30.0, 40.0, 55.0], 0.4)
    return save_training(model, tmp_path)


_written = {}


@pytest.fixture
def client_file(trained, tmp_path, capsys):
    """The training as an ONNX file for other clients, and what export printed; made once."""
    skip_without("onnx")
    path = tmp_path / "detector.onnx"
    if not _written:
        run("-w", trained, "-o", path, "--input", "any", "--outputs", "all", "--threshold", THRESHOLD)
        _written["onnx"], _written["printed"] = path.read_bytes(), capsys.readouterr().out
    path.write_bytes(_written["onnx"])
    return path, _written["printed"]


def versions(graph):
    return [(entry.domain, entry.version) for entry in graph.opset_import], graph.ir_version


@pytest.mark.parametrize("kind", ["border and memory", "fit"])
def test_graphs_are_of_the_lowest_opset(tiny_networks, tmp_path, kind):
    """And only the operators that need it ask for a higher one."""
    skip_without("onnx")
    import onnx

    model = build(*KINDS[kind])
    metadata = exporting.describe(model, "fp32")
    exporting.write_export("onnx", model, metadata, tmp_path / "d.onnx")
    graph = onnx.load(tmp_path / "d.onnx")
    assert versions(graph) == ([("", 15)], 8)
    used = {name for node in graph.graph.node for name in node.input}
    assert all(tensor.name in used for tensor in graph.graph.initializer)
    with pytest.raises(UserError, match="^--opset 14: what this file computes needs 15 at least$"):
        onnx_graphs._lower(graph, 14)


def test_8_bit_graphs_are_old_ones_too_and_an_opset_may_be_named(trained, tmp_path):
    skip_without("onnx")
    import onnx

    for precision, words, expected in (("int8", [], (15, 8)), ("fp32", ["--opset", 20], (20, 9))):
        path = tmp_path / f"{precision}.onnx"
        run("-w", trained, "--precision", precision, "-o", path, *words)
        assert versions(onnx.load(path)) == ([("", expected[0])], expected[1])


def test_a_file_that_resizes_answers_as_predict_does(client_file, trained):
    """To whole images, of several sizes; and so do our commands with it, which resize before."""
    import onnx
    import onnxruntime

    path, printed = client_file
    assert "of 10 decisions agree" in printed
    assert versions(onnx.load(path)) == ([("", 18)], 8)
    session, detector = onnxruntime.InferenceSession(path), load_detector(path, device="cpu")
    original = load_detector(trained, device="cpu", precision="fp32")
    shape = [None if isinstance(side, str) else side for side in session.get_inputs()[0].shape]
    assert shape == [None, None, None, 3]
    for size in ((60, 40), (431, 77), (900, 1201)):
        image = draw_part(3, True, size)
        expected = original(image)
        maps, scores = session.run(["anomaly_map", "score"], {"images": np.asarray(image)[None].repeat(2, 0)})
        assert maps.shape == (2, 96, 160)
        assert scores.tolist() == pytest.approx(2 * [expected.score], rel=1e-3)
        assert detector(image).score == pytest.approx(expected.score, rel=1e-4)


def test_the_resize_within_is_that_of_the_toolkit(tmp_path):
    """By at most one of 255 levels, where a resize without antialiasing is far off."""
    skip_without("onnx")
    import onnx
    import onnxruntime

    h, uint8 = onnx.helper, onnx.TensorProto.UINT8
    ports = [h.make_tensor_value_info(name, uint8, ["n", 96, 160, 3]) for name in ("images", "seen")]
    graph = h.make_graph([h.make_node("Identity", ["images"], ["seen"])], "g", ports[:1], ports[1:])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=8)
    view = View(96, 160)
    onnx_graphs._resize_inside(model, exporting.Metadata("small", view, "fp32", None, {}, True))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for size in ((60, 40), (160, 96), (1000, 700), (333, 2001)):
        noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        (seen,) = session.run(None, {"images": noise[None]})
        expected = view.pixels(Image.fromarray(noise)).permute(1, 2, 0).numpy()
        assert abs(seen[0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("name", SUFFIXES)
def test_decisions_of_every_format(tiny_networks, tmp_path, name):
    """Beside the same maps and scores; our own commands take the file."""
    skip_without(name)
    model = build(*KINDS["memory alone, odd grid"])
    path = tmp_path / f"d{SUFFIXES[name]}"
    exporting.write_export(name, model, exporting.describe(model, "fp32", WITH_ALL), path)
    images = torch.randint(0, 256, (2, 3, *model.view.size), dtype=torch.uint8)
    maps, scores = load_exported(path, "cpu", "auto").answer(images)
    array = images.permute(0, 2, 3, 1).contiguous().numpy()
    if name == "torch":
        answers = [output.numpy() for output in torch.export.load(path).module()(torch.from_numpy(array))]
    elif name == "onnx":
        import onnxruntime

        answers = onnxruntime.InferenceSession(path).run(None, {"images": array})
    else:
        import openvino

        found = openvino.Core().compile_model(path, "CPU")({"images": array})
        answers = [found[key] for key in ("anomaly_map", "score", "pred_score", "pred_label", "pred_mask")]
    np.testing.assert_allclose(answers[0], maps, rtol=1e-4, atol=1e-3)
    pred_score, pred_label, pred_mask = answers[2:]
    assert pred_label.dtype == pred_mask.dtype == bool
    assert (pred_label == (scores > THRESHOLD)).all() and (pred_mask == (answers[0] > THRESHOLD)).all()
    distance = scores - THRESHOLD
    np.testing.assert_allclose(pred_score, 0.5 + 0.5 * distance / (abs(distance) + THRESHOLD), rtol=1e-4)


@pytest.mark.parametrize("threshold", [-3.0, 0.0, 40.0, 900.0])
def test_pred_score_grows_with_the_score_and_is_half_at_the_threshold(threshold):
    scores = torch.tensor([-1000.0, -1.0, 0.0, threshold, threshold + 1, 1e4]).sort().values
    pred_score, pred_label, _ = decide(torch.zeros(6, 2, 2), scores, threshold)
    assert (pred_score.diff()[scores.diff() > 0] > 0).all() and pred_score.min() > 0 and pred_score.max() < 1
    assert (pred_score[scores == threshold] == 0.5).all()
    assert torch.equal(pred_label, pred_score > 0.5)


def test_the_file_says_what_it_decides_at(client_file):
    detector = load_exported(client_file[0], "cpu", "auto")
    assert detector.metadata.as_text()["threshold"] == str(THRESHOLD) and detector.calibration.threshold == 40
    assert "made to decide at 45.5 in other programs" in detector.description


@pytest.mark.parametrize(
    "change", [{"any_size": "1"}, {"decides": "null"}, {"given_threshold": "NaN"}, {"decides": ""}]
)
def test_facts_of_the_interface_that_no_export_has(change):
    texts = exporting.Metadata("small", View(), "fp32", None, {}).as_text()
    with pytest.raises(UserError, match="is no detector that efficientad.export wrote"):
        exporting.Metadata.from_text(texts | change, Path("d.onnx"))
    fitting = exporting.Metadata("small", View(128, 128, "fit"), "fp32", None, {}, any_size=True).as_text()
    with pytest.raises(UserError, match="images of its view cannot have any size"):
        exporting.Metadata.from_text(fitting, Path("d.onnx"))


@pytest.mark.parametrize("kind", ["fit", "ignored"])
def test_views_that_a_file_cannot_express(tiny_networks, kind):
    model = EfficientADStub(KINDS[kind][0])
    with pytest.raises(UserError, match="--input any: this model has .*--(resize fit|roi|ignore)") as raised:
        exporting.describe(model, "fp32", ExportOptions(any_size=True))
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="no calibration; give the threshold with --threshold"):
        exporting.describe(model, "fp32", ExportOptions(decides=True))


class EfficientADStub:
    """What describe() reads of a model."""

    model_size, calibration = "small", None

    def __init__(self, view):
        self.view = view


def test_flags_for_onnx_alone(trained, tmp_path, monkeypatch, capsys):
    words = ["-w", trained, "--format", "torch", "-o", tmp_path / "d.pt2"]
    assert "--input any is for --format onnx" in fail(monkeypatch, capsys, export, *words, "--input", "any")
    assert "--opset is for --format onnx" in fail(monkeypatch, capsys, export, *words, "--opset", "17")
    assert "no format fits" in fail(monkeypatch, capsys, export, *words, "--opset", "17", "--fastest")


def test_torch_answers_once_for_all_files(trained, tmp_path, monkeypatch):
    """However many are compared with it."""
    asked, answer = [], export_check.answer_as_torch
    monkeypatch.setattr(export_check, "answer_as_torch", lambda *args: asked.append(1) or answer(*args))
    monkeypatch.setattr(fastest, "_SECONDS", 0.0)
    images = export_check.read_images(
        export_check.find_good_images([tmp_path / "parts" / "train"], trained), 2, 0, View(96, 160), 0
    )
    trials = fastest.Trials(trained, images, [], 0)
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        trials.add("torch", "fp32", tmp_path / str(number) / "d.pt2")
    assert len(trials.candidates) == 2 and len(asked) == 1


@pytest.mark.parametrize(("value", "text"), [(0.98512, "0.985"), (48.06, "48.1"), (999.0, "999"), (1154.6, "1155")])
def test_figures_are_printed_without_exponents(value, text):
    assert fastest._three(value) == text


def code_in_readme(word):
    """The indented block of the page that holds a word."""
    readme = (Path(export.__file__).resolve().with_name("README.md")).read_text(encoding="utf-8")
    (block,) = re.findall(rf"(?:^(?:    .*)?\n)*^    .*{word}.*\n(?:^(?:    .*)?\n)*", readme, flags=re.MULTILINE)
    return textwrap.dedent(block).strip() + "\n"


def find_onnxruntime():
    """ONNX Runtime's folder of headers and its library: of ORT_ROOT, the library also of the Python package."""
    root = Path(os.environ.get("ORT_ROOT", "/nowhere"))
    headers = next(root.rglob("onnxruntime_cxx_api.h"), None)
    if headers is None or not shutil.which("g++"):
        pytest.skip("needs g++ and ORT_ROOT, the folder of ONNX Runtime's headers")
    package = Path(pytest.importorskip("onnxruntime").__file__).parent
    libraries = [*root.rglob("libonnxruntime.so*"), *package.rglob("libonnxruntime.so*")]
    if not libraries:
        pytest.skip("needs libonnxruntime.so, of ORT_ROOT or of the package onnxruntime")
    return headers.parent, libraries[0]


def test_the_program_in_cpp(client_file, trained, tmp_path):
    """As printed on the page, it decides as predict does."""
    headers, library = find_onnxruntime()
    code = code_in_readme("onnxruntime_cxx_api")
    assert len(code.splitlines()) < 60
    (tmp_path / "inspect.cpp").write_text(code)
    (tmp_path / "libonnxruntime.so.1").symlink_to(library)  # the name that the library gives itself
    words = ["g++", "-std=c++17", "-Wall", "-Werror", "-isystem", headers, "inspect.cpp", library, "-o", "inspect"]
    built = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for defective in (False, True):
        image = draw_part(3, defective, (133, 77))
        image.save(tmp_path / "part.ppm")
        done = subprocess.run(
            ["./inspect", "detector.onnx", "part.ppm"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        decision, score = done.stdout.split()
        expected = load_detector(trained, device="cpu", precision="fp32")(image).score
        assert float(score) == pytest.approx(expected, rel=1e-3)
        assert decision == ("anomalous" if expected > THRESHOLD else "good")


def test_the_program_in_csharp_is_short():
    assert len(code_in_readme("using Microsoft.ML.OnnxRuntime;").splitlines()) < 60
