"""The bit depth is decided once for a data set, from all its images or by the flag, and goes with the model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import eval as eval_script
import train as train_script
from commands import train
from conftest import draw_part, fail
from deep_files import deep_png
from efficientad import predict as predict_module
from efficientad.data.depth import Depth, Scale
from efficientad.detector.checkpoint import load_model
from efficientad.inference.detectors import TorchDetector
from efficientad.inference.inspection import Inspector
from efficientad.training.depths import choose_depth
from originals import read_csv
from trainings import folder_of

CPU = torch.device("cpu")


def gray(seed, white, dtype=np.uint16):
    values = np.asarray(draw_part(seed).convert("L")) / np.float32(255)
    return np.rint(values * white).astype(dtype) if white > 1 else values.astype(dtype)


def write(folder, white, dtype=np.uint16, count=10, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{white}_{number:03d}.tif" for number in range(count)]
    for number, path in enumerate(paths, start=seed):
        Image.fromarray(gray(number, white, dtype)).save(path)
    return paths


@pytest.mark.parametrize(
    ("whites", "dtype", "expected", "line"),
    [
        ([255], np.uint16, Depth(Scale(255.0, 255.0)), "Bit depth: 8 bits (largest values from "),
        ([1023], np.uint16, Depth(Scale(1023.0, 1023.0)), "Bit depth: 10 bits"),
        ([4095], np.uint16, Depth(Scale(4095.0, 4095.0)), "Bit depth: 12 bits"),
        ([65535], np.uint16, Depth(Scale(65535.0, 65535.0)), "Bit depth: 16 bits"),
        ([4095], np.int32, Depth(Scale(4095.0, 4095.0)), "Bit depth: 12 bits"),
        ([1], np.float32, Depth(None, Scale(1.0, 1.0)), "Bit depth: floats up to 1 ("),
        ([255], np.float32, Depth(None, Scale(255.0, 255.0)), "Bit depth: floats up to 255 ("),
        ([1023, 4095], np.uint16, Depth(Scale(4095.0, 1023.0)), "Bit depth: 12 bits"),
    ],
)
def test_the_fewest_bits_that_hold_all_values(tmp_path, whites, dtype, expected, line):
    paths = [path for white in whites for path in write(tmp_path, white, dtype, 4)]
    depth, (said,) = choose_depth("auto", paths, 2)
    assert depth == expected and said.startswith(line)
    kind = "floats" if dtype == np.float32 else "more than 8 bits"
    assert said.endswith(f" in {4 * len(whites)} images of {kind}); --bit_depth chooses another")


def test_one_bright_image_decides_for_all(tmp_path):
    paths = write(tmp_path, 1023, count=5) + write(tmp_path, 4095, count=1)
    assert choose_depth("auto", paths, 0)[0] == Depth(Scale(4095.0, 1023.0))
    peaks = [int(np.asarray(Image.open(path)).max()) for path in paths]
    (line,) = choose_depth("auto", paths, 0)[1]
    assert f"largest values from {min(peaks)} to {max(peaks)} in 6 images" in line


def test_images_of_obviously_fewer_bits_are_named(tmp_path):
    paths = write(tmp_path, 255, count=2) + write(tmp_path, 65535, count=3)
    _, (_, note) = choose_depth("auto", paths, 0)
    assert note.startswith("Note: 2 images of these will be nearly black") and note.endswith(f"{paths[0]}, ...")


def test_colours_of_16_bits_count(tmp_path):
    values = np.random.default_rng(0).integers(0, 1000, (40, 60, 3))
    (tmp_path / "a.png").write_bytes(deep_png(values))
    depth, (line,) = choose_depth("auto", [tmp_path / "a.png"], 0)
    assert depth == Depth(Scale(1023.0, 1023.0)) and "values up to 999 in 1 image of" in line


def test_unreadable_images_do_not_decide(tmp_path):
    paths = write(tmp_path, 1023, count=3)
    bad = [tmp_path / name for name in ("cut.tif", "text.tif", "negative.tif", "huge.tif", "nan.tif", "none.tif")]
    bad[0].write_bytes(write(tmp_path / "more", 65535)[0].read_bytes()[:-500])
    bad[1].write_text("no pixels")
    Image.fromarray(gray(1, 4095, np.int32) - 3000).save(bad[2])
    Image.fromarray(gray(1, 10**6, np.int32)).save(bad[3])
    Image.fromarray(np.array([[np.nan, 60_000]], dtype=np.float32)).save(bad[4])
    assert choose_depth("auto", [*paths, *bad], 2) == choose_depth("auto", paths, 2)


def test_8_bit_images_are_not_decoded(tmp_path, monkeypatch):
    for name in ("a.png", "b.jpg", "c.tif", "d.bmp", "e.webp"):
        draw_part(1).save(tmp_path / name)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert choose_depth("auto", sorted(tmp_path.iterdir()), 0) == (Depth(), [])


def test_the_flag_decides(tmp_path):
    paths = write(tmp_path, 255, count=2)
    depth, lines = choose_depth("12", paths, 0)
    assert depth == Depth(Scale(4095.0, 255.0), Scale(4095.0)) and "as --bit_depth 12 says" in lines[0]
    assert choose_depth("float1", paths, 0)[0] == Depth(Scale(255.0, 255.0), Scale(1.0))
    floats = write(tmp_path, 1, np.float32, count=2)
    assert choose_depth("float255", floats, 0)[0] == Depth(None, Scale(255.0, 1.0))
    draw_part(1).save(tmp_path / "a.png")
    depth, lines = choose_depth("16", [tmp_path / "a.png"], 0)
    assert depth == Depth(Scale(65535.0), Scale(65535.0))
    assert lines == ["Note: --bit_depth 16 makes no difference to the training: no image has more than 8 bits"]


def words_of(root, teacher):
    return ["-d", "custom", "-c", root / "set", "-o", root / "out", "-w", teacher, "--image_size", 64]


@pytest.fixture
def trained(tmp_path, tiny_teacher, capsys):
    """Trains on images of this white; returns the lines and the model's folder."""

    def train_on(name, white, dtype=np.uint16, *more):
        root = tmp_path / name
        write(root / "set" / "train" / "good", white, dtype, 12)
        train(*words_of(root, tiny_teacher), "--memory", 40, *more)
        return capsys.readouterr().out.splitlines(), folder_of(root / "out")

    return train_on


def predict(monkeypatch, folder, *words):
    arguments = ["-w", str(folder), *map(str, words)]
    return predict_module.main(predict_module.get_parser().parse_args(arguments))


def test_detectors_of_every_depth_score_alike(trained, tmp_path, monkeypatch):
    scores = {}
    for name, white, dtype in (("8", 255, np.uint8), ("16", 65535, np.uint16), ("float", 255, np.float32)):
        lines, folder = trained(name, white, dtype)
        assert sum(line.startswith("Bit depth") for line in lines) == (name != "8")
        write(tmp_path / name / "in", white, dtype, 3, seed=50)
        out = tmp_path / name / "predictions"
        predict(monkeypatch, folder, "-i", tmp_path / name / "in", "-o", out)
        scores[name] = [float(row["score"]) for row in read_csv(out / "scores.csv")]
    assert scores["8"] == scores["16"] == scores["float"]


def test_files_of_another_depth_are_named_by_predict_and_eval(trained, tmp_path, monkeypatch, capsys):
    _, folder = trained("set12", 4095)
    assert load_model(folder, CPU).view.depth == Depth(Scale(4095.0, 4095.0))
    assert json.loads((folder / "args.json").read_text())["depth"]["integers"] == [4095.0, 4095.0]
    root = tmp_path / "set12"
    write(root / "in", 65535, count=2)
    dark = write(root / "in", 255, count=1)
    draw_part(1).save(root / "in" / "plain.png")
    message = fail(monkeypatch, capsys, predict_module, "-w", folder, "-i", root / "in", "-o", root / "predictions")
    assert message.count("where 12 bits end at 4095; see --bit_depth of train.py") == 2
    assert len(read_csv(root / "predictions" / "scores.csv")) == 2
    predict(monkeypatch, folder, "-i", dark[0], "-o", root / "predictions")
    assert "Note: 1 image with values of fewer bits than the detector was trained for" in capsys.readouterr().out
    for name in ("good", "dent"):
        write(root / "set" / "test" / name, 255, count=2)
    evaluation = ["-d", "custom", "-c", root / "set", "-o", root / "out"]
    eval_script.main(eval_script.get_parser().parse_args([*map(str, evaluation)]))
    assert "Note: 4 images with values of fewer bits" in capsys.readouterr().out
    write(root / "set" / "test" / "dent", 65535, count=1)
    message = fail(monkeypatch, capsys, eval_script, *evaluation)
    assert "cannot read 1 image" in message and "12 bits end at 4095" in message


def test_deep_files_are_refused_by_a_detector_of_8_bits(
    dataset_folder, tiny_teacher, tmp_path, monkeypatch, capsys
):
    train("-d", "custom", "-c", dataset_folder, "-o", tmp_path / "out", "-w", tiny_teacher, "--memory", 40)
    assert "Bit depth" not in capsys.readouterr().out
    detector = TorchDetector(load_model(folder_of(tmp_path / "out"), CPU), CPU, "fp32")
    (path,) = write(tmp_path / "in", 65535, count=1)
    for image in (path, Image.open(path)):
        with pytest.raises(Exception, match="more than 8 bits, but the detector was trained on 8-bit ones"):
            Inspector(detector)(image)
    message = fail(monkeypatch, capsys, predict_module, "-w", folder_of(tmp_path / "out"), "-i", path, "-o",
                   tmp_path / "predictions")  # fmt: skip
    assert "more than 8 bits, but the detector was trained on 8-bit ones" in message


def test_values_above_the_flags_are_named_by_train(trained, tmp_path, tiny_teacher, monkeypatch, capsys):
    write(tmp_path / "a" / "set" / "train" / "good", 4095, count=12)
    words = [*words_of(tmp_path / "a", tiny_teacher), "--bit_depth", 10]
    message = fail(monkeypatch, capsys, train_script, *words)
    assert "cannot read 12 images" in message and "where 10 bits end at 1023; see --bit_depth" in message


def test_maps_show_images_as_the_detector_sees_them(trained, tmp_path, monkeypatch):
    _, folder = trained("set12", 4095)
    (path,) = write(tmp_path / "in", 4095, count=1, seed=60)
    predict(monkeypatch, folder, "-i", path, "-o", tmp_path / "predictions", "-f", "jpg")
    with Image.open(next((tmp_path / "predictions" / "maps").iterdir())) as shown:
        left = np.asarray(shown.convert("L"))[:, :60].astype(int)
    assert np.abs(left - np.asarray(draw_part(60).convert("L"))).mean() < 4


def test_what_is_odd_about_training_images_is_said(dataset_folder, tiny_teacher, tmp_path, capsys):
    for number in range(3):
        image = draw_part(number).copy()
        image.putalpha(0)
        image.save(dataset_folder / "train" / "good" / f"clear_{number}.png")
    train("-d", "custom", "-c", dataset_folder, "-o", tmp_path / "out", "-w", tiny_teacher, "--memory", 40)
    assert "Note: 3 images with the same transparency everywhere, which is ignored: " in capsys.readouterr().out
