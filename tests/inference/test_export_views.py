"""Exports of detectors of any size and view."""

import json

import pytest
import torch
from test_predicting_at_any_size import ignored_corner

from conftest import draw_part, fill_folder
from efficientad import export
from efficientad.data.views import View
from efficientad.detector.model import EfficientAD
from efficientad.inference import export_check, exporting, load_detector
from efficientad.inference.export_check import SeenImage
from efficientad.inference.exportable import ExportableDetector
from efficientad.inference.exported import load_exported
from efficientad.inference.metadata import Metadata
from efficientad.system.errors import UserError
from exports import SUFFIXES, add_global_score, compare_with_torch, save_training, skip_without

VARIANTS = [("onnx", "fp16"), ("onnx", "int8"), ("openvino", "fp32"), ("torch", "fp32")]
KINDS = {  # view, border, student, patches of a memory, global score
    "rectangle": (View(384, 640), "none", True, 0, False),
    "border and memory": (View(128, 192), "mirror", True, 32, True),
    "memory alone, odd grid": (View(100, 140), "none", False, 32, True),
    "fit": (View(128, 128, "fit"), "mirror", True, 0, True),
    "ignored": (View(96, 160, "stretch", (0.0, 0.0, 1.0, 0.9), ignored_corner()), "none", True, 0, True),
}


@torch.inference_mode()
def build(view, border, has_student, memory_patches, has_global_score=False):
    """A detector whose statistics and quantiles are those of random images."""
    torch.manual_seed(0)
    model = EfficientAD("small", view, border, has_student, memory_patches).eval()
    images = torch.rand(2, 3, *view.size)
    features = model.teacher(model.normalize(model.cut(images)))
    model.teacher_mean.copy_(features.mean((0, 2, 3), keepdim=True))
    model.teacher_std.copy_(features.std((0, 2, 3), keepdim=True) + 0.1)
    if memory_patches:
        model.memory.copy_(0.2 * torch.randn(memory_patches, 384))
        model.map_weights.copy_(torch.tensor((0.3, 0.3, 0.4) if has_student else (0.0, 0.0, 1.0)))
    for row, raw in enumerate(model.raw_maps(images).local):
        if raw is not None:
            model.quantiles[row] = torch.stack([raw.min(), raw.max()])
    if has_global_score:
        add_global_score(model, images)
    return model


def images_of(view, count=2):
    """Wide ones and tall ones, as a view that fits sees them differently."""
    sizes = [(60, 40)] * count if view.ignored else [(60, 40), (40, 60)] * count
    images = [draw_part(number, size=size) for number, size in enumerate(sizes[:count])]
    return [SeenImage(view.pixels(image), view.inspected(image.size)) for image in images]


CASES = [("onnx", "fp32", kind) for kind in KINDS]
CASES += [(*variant, kind) for variant in VARIANTS for kind in ("fit", "ignored")]


@pytest.mark.parametrize(("name", "precision", "kind"), CASES)
def test_exports_of_any_view_answer_as_torch_does(tiny_networks, tmp_path, name, precision, kind):
    skip_without(name)
    model = build(*KINDS[kind])
    metadata, images = exporting.describe(model, precision), images_of(model.view)
    path = tmp_path / f"d{SUFFIXES[name]}"
    calibration = [metadata.inputs(*export_check.stack([image])) for image in images]
    exporting.write_export(name, model, metadata, path, calibration)
    found = compare_with_torch(model, path, images)
    bound = export_check.BOUNDS[precision]
    assert found.keeps(bound), found
    detector = load_exported(path, "cpu", "auto")
    assert detector.view == model.view and detector.metadata.takes_inspected == (kind == "fit")
    maps = detector(*export_check.stack(images))
    assert maps.shape == (2, 1, *model.view.size)
    if images[0].inspected is not None:
        inspected = torch.stack([image.inspected for image in images])[:, None]
        assert (maps[~inspected] == 0).all() and (maps[inspected] != 0).any()


@pytest.mark.parametrize("kind", [kind for kind, facts in KINDS.items() if facts[-1]])
def test_a_file_without_the_global_score_would_differ_too_much(tiny_networks, kind):
    """So that the bounds of every precision tell whether it is there."""
    model = build(*KINDS[kind])
    images = images_of(model.view)
    answer = export_check.answer_as_torch(model, images)
    model.global_score = None
    found = export_check.compare(answer, export_check.answer_as_torch(model, images), 80.0)
    assert not found.keeps(export_check.BOUNDS["int8"]), found


def test_the_real_networks_at_384_x_640(tmp_path):
    """With a border, and a memory beside the student."""
    skip_without("openvino")
    model, path = build(View(384, 640), "mirror", True, 32, True), tmp_path / "d.xml"
    exporting.write_export("openvino", model, exporting.describe(model, "fp32"), path)
    found = compare_with_torch(model, path, images_of(model.view, 1))
    assert found.keeps(export_check.Bound(1e-5, 1e-5)), found


def test_the_command_and_its_file(tiny_networks, tmp_path, capsys):
    """Calibration, parity check and inspection of images of different shapes."""
    skip_without("onnx")
    model = build(*KINDS["fit"])
    save_training(model, tmp_path)
    draw_part(50, size=(40, 60)).save(tmp_path / "parts" / "train" / "good" / "tall.png")
    path = tmp_path / "d.onnx"
    words = ["-w", tmp_path / "trained", "--precision", "int8", "-o", path]
    export.main(export.get_parser().parse_args([str(word) for word in words]))
    assert "of 11 decisions agree" in capsys.readouterr().out
    original, exported = load_detector(tmp_path / "trained", precision="fp32"), load_detector(path)
    for size in ((60, 40), (40, 60)):
        image = draw_part(3, True, size)
        expected, found = original(image), exported(image)
        assert found.anomaly_map.shape == size[::-1]
        assert found.score == pytest.approx(expected.score, rel=0.2)


def test_few_large_images_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(export_check, "_MOST_PIXELS", 5 * 64 * 96)
    fill_folder(tmp_path / "good", 12)
    stored = export_check.find_good_images([tmp_path / "good"], tmp_path)
    images = export_check.read_images(stored, 32, 48, View(64, 96), 0)
    assert len(images.to_compare) == len(images.to_calibrate) == 5
    images = export_check.read_images(stored, 32, 0, View(640, 960), 0)
    assert len(images.to_compare) == 4 and not images.to_calibrate


def as_version_1(metadata, size="256"):
    texts = metadata.as_text() | {"efficientad_format": "1", "image_size": size}
    return {key: text for key, text in texts.items() if key != "view"}


def test_metadata_of_version_1(tmp_path):
    metadata = Metadata("small", View(), "fp32", None, {"torch": "2"})
    assert Metadata.from_text(as_version_1(metadata), tmp_path) == metadata
    assert Metadata.from_text(metadata.as_text(), tmp_path) == metadata


def test_metadata_keeps_the_view(tmp_path):
    for view, *_ in KINDS.values():
        texts = Metadata("small", view, "fp32", None, {}).as_text()
        assert texts["image_size"] == f"{view.height} {view.width}"
        assert Metadata.from_text(texts, tmp_path).view == view


@pytest.mark.parametrize(
    "change",
    [
        {"size": [256]},
        {"size": [10**6, 10**6]},
        {"size": ["256", "256"]},
        {"size": [255, 256]},
        {"resize": "crop"},
        {"roi": [0, 0, -1, 5]},
        {"roi": "text"},
        {"ignored": "no base64"},
        {"ignored": "aGVsbG8="},
        {"ignored": 5},
    ],
)
def test_metadata_that_is_not_of_an_export(tmp_path, change):
    texts = Metadata("small", View(), "fp32", None, {}).as_text()
    texts["view"] = json.dumps(View().as_dict() | change)
    with pytest.raises(UserError, match="is no detector that efficientad.export wrote"):
        Metadata.from_text(texts, tmp_path)


@pytest.mark.parametrize("view", ["", "[]", "5", "null", "{}", "[" * 100_000])
def test_views_that_are_none(tmp_path, view):
    texts = Metadata("small", View(), "fp32", None, {}).as_text()
    for wrong in (texts | {"view": view}, as_version_1(Metadata("small", View(), "fp32", None, {}), "0")):
        with pytest.raises(UserError, match="is no detector that efficientad.export wrote"):
            Metadata.from_text(wrong, tmp_path)


def test_a_mask_that_is_smaller_than_the_region(tiny_networks):
    view = View(96, 160, roi=(50.0, 30.0, 60.0, 40.0), ignored=ignored_corner())
    model = EfficientAD("small", view).eval()
    with pytest.raises(UserError, match="cannot export this model: .*; give train.py a mask of the images' size"):
        ExportableDetector(model)
    assert view.inspected((120, 80)).shape == (96, 160)
