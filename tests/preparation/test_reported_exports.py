"""COCO files that users of this and similar tools reported, where they are at hand: what becomes of each."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare_dataset
from conftest import fail
from originals import prepare

REPORTS = Path(__file__).resolve().parents[3] / "shared" / "cases" / "reports"
MATCH = "there under another spelling, for example .*--match_names"

# folder of shared/cases/reports: exit status, words of the message, pixels of each mask (failing that with the flag
# --match_names)
OUTCOMES = {
    "case_mismatch": (2, MATCH, 96),
    "category_names_dup": (0, "", 96, 96),
    "cvat_subfolders": (2, MATCH, 96),
    "exif_ls_6608": (0, "1 image turned by EXIF data", 1200),
    "float_ids": (0, "that they mean: 1 ", 96),
    "good_by_other_names": (0, "count as normal.*OK.*no defect.*No_Defect", 96),
    "https_url": (2, MATCH, 96),
    "labelme_json": (2, "labelme file"),
    "ls_brush_rle": (0, "1 annotation draws nothing.*Label Studio's brush"),
    "ls_images_prefix": (2, MATCH, 96),
    "ls_media_path": (2, "outside.*" + MATCH, 96),
    "ls_project_dir": (2, MATCH, 96),
    "nested_polygon_with_box": (0, "Outlines of points.*: 1 annotation", 224, 224),
    "nfd_names": (2, MATCH, 96),
    "normalized_boxes": (2, "within 0..1"),
    "results_list": (2, "list of detections"),
    "rle_transposed": (0, "1 annotation draws nothing.*width before height"),
    "rle_transposed_with_box": (0, "1 segmentation cannot be read.*width before height", 2240),
    "roboflow_root": (0, "which only groups others", 96),
    "stated_size_1x1": (0, "do not go with the file", 96),
    "stated_size_other_aspect": (0, "do not go with the file", 96),
    "string_boxes": (0, "Coordinates that are text", 96),
    "string_category_ids": (0, "that they mean: 2 ", 96),
    "string_image_ids_all": (0, "that they mean: 2 ", 96, 96),
    "string_image_ids_mixed": (0, "that they mean: 2 ", 96, 96, 96, 96),
    "url_encoded": (2, MATCH, 96),
    "utf16_json": (0, "", 96),
    "via_json": (2, "VGG Image Annotator"),
    "xyxy_boxes": (2, r"\[x1, y1, x2, y2\]"),
    "zip_json": (2, "ZIP archive"),
}


@pytest.mark.skipif(not REPORTS.is_dir(), reason="needs ../shared/cases/reports")
@pytest.mark.parametrize("folder", sorted(path.parent.name for path in REPORTS.glob("*/coco.json")))
def test_reports(tmp_path, monkeypatch, capsys, folder):
    status, words, *areas = OUTCOMES[folder]
    case, output = REPORTS / folder, tmp_path / "set"
    flags = [
        "--annotations",
        case / "coco.json",
        "--labeled_dir",
        case / "images",
        "--unlabeled_dir",
        case / "good",
    ]
    flags += ["--output_dir", output, "--unannotated", "good"]
    message = ""
    if status == 2:
        message = fail(monkeypatch, capsys, prepare_dataset, *flags)
        assert not output.exists()
        flags.append("--match_names")
    if status == 0 or areas:
        prepare(*flags)
        masks = sorted(output.glob("ground_truth/*/*.png"))
        found = [int((np.asarray(Image.open(path)) > 0).sum()) for path in masks]
        assert found == areas
    message = message or capsys.readouterr().out
    assert re.search(words, " ".join(message.split("\n")))
