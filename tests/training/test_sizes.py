"""The size of what the networks see: from the flags or from the images, and what is said about it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import train as train_script
from commands import train
from conftest import draw_part, fail
from efficientad.data.depth import Depth
from efficientad.data.views import View, describe_bad_size
from efficientad.detector.checkpoint import load_model
from efficientad.system.errors import Interrupted, UserError
from efficientad.training.sizes import describe_loss, native_size
from trainings import assert_same_model, folder_of, stop_at

CPU = torch.device("cpu")


@pytest.fixture
def words(tmp_path, dataset_folder, tiny_teacher):
    return ["-d", "custom", "-c", dataset_folder, "-w", tiny_teacher, "-o", tmp_path / "out", "--memory", 40]


def trained(words, tmp_path, *more):
    train(*words, *more)
    return load_model(folder_of(tmp_path / "out"), CPU)


@pytest.mark.parametrize(
    ("given", "expected"),
    [([], (256, 256)), ([64], (64, 64)), ([64, 128], (64, 128)), (["native"], (64, 64))],
)
def test_the_model_knows_its_size(words, tmp_path, given, expected, capsys):
    flags = ["--image_size", *given] if given else []
    model = trained(words, tmp_path, *flags)
    assert model.view == View(*expected, depth=Depth()) and model.border == "mirror"
    settings = json.loads((folder_of(tmp_path / "out") / "args.json").read_text())
    assert settings["image_size"] == list(expected)
    said = f"The networks see {expected[0]} x {expected[1]} pixels (height x width)\n"
    assert (said in capsys.readouterr().out) == (expected != (256, 256))


def test_everything_else_of_the_view_is_kept(words, tmp_path, capsys):
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[:10] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    more = ["--resize", "fit", "--roi", 5, 2, 50, 30, "--ignore", tmp_path / "mask.png", "--border", "none"]
    model = trained(words, tmp_path, *more)
    assert (model.view.resize, model.view.roi, model.border) == ("fit", (5, 2, 50, 30), "none")
    inspected = model.view.inspected_in_image((60, 40))
    assert inspected.sum() == 50 * 22 and inspected[10:32, 5:55].all()
    said = "The networks see 256 x 256 pixels (height x width), --resize fit, --roi 5 2 50 30, --ignore\n"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image_size", 250], "--image_size must be a multiple of 4 from 64 on, not 250; nearest: 248 and 252"),
        (["--image_size", 256, 62], "--image_size must be a multiple of 4 from 64 on, not 62; nearest: 64"),
        (["--image_size", 40_000], "--image_size must have at most 178,956,970 pixels"),
        (["--image_size", 64, 64, 64], "expects one whole number for a square, two for height and width"),
        (["--image_size", "large"], "or the word native, not large"),
        (["--image_size", "native", 64], "or the word native, not native 64"),
        (["--image_size", "native", "--max_pixels", 4000], "--max_pixels must be at least 4096, not 4000"),
        (["--roi", 0, 0, 0, 10], "--roi: left and top must not be negative, width and height must be positive"),
        (["--roi", 0.5, 0, 0.6, 1], "--roi: as shares of the image it must end at 1 at the latest"),
        (["--roi", 1.5, 0, 10, 10], "--roi: it takes either whole pixels, or shares of the image"),
        (["--roi", 20, 0, 50, 30], "60x40 pixels, the region of interest ends at 70, 30; see --roi"),
        (["--ignore", "nowhere.png"], "--ignore nowhere.png: No such file"),
        (["--window", 100, "--recipe", "paper"], None),
    ],
)
def test_flags_that_make_no_sense(words, flags, message, monkeypatch, capsys):
    if message is None:
        train_script.get_parser().parse_args([str(word) for word in [*words, *flags]])
        return
    assert message in fail(monkeypatch, capsys, train_script, *words, *flags)


@pytest.mark.parametrize("side", ["62", "101", "-4", "half"])
def test_a_window_that_makes_no_sense(side, capsys):
    with pytest.raises(SystemExit):
        train_script.get_parser().parse_args(["--window", side])
    assert "argument --window: expects a multiple of 4 from 64 on" in capsys.readouterr().err


def test_images_that_the_region_does_not_fit_are_named_or_skipped(words, dataset_folder, monkeypatch, capsys):
    draw_part(99, size=(30, 20)).save(dataset_folder / "train" / "good" / "small.png")
    words += ["--roi", 0, 0, 40, 30]
    message = fail(monkeypatch, capsys, train_script, *words)
    assert "cannot read 1 image; repair, replace or remove" in message and "small.png: 30x20 pixels" in message
    train(*words, "--on_error", "skip")
    assert "Skipped 1 file" in capsys.readouterr().out
    message = fail(
        monkeypatch, capsys, train_script, *words, "--roi", 0, 0, 900, 30, "--on_error", "skip", "--overwrite"
    )
    assert "none of the 11 training images can be used" in message and "region of interest ends at 900" in message


@pytest.mark.parametrize(
    ("sizes", "most", "expected"),
    [
        ([(640, 384)] * 3, 2**20, (384, 640)),
        ([(641, 387)], 2**20, (384, 640)),
        ([(100, 70), (120, 90), (500, 200)], 2**20, (88, 120)),  # the median of each side
        ([(2938, 730)], 2**20, (508, 2052)),
        ([(8000, 2000)], 10**9, (2000, 8000)),
        ([(20, 10)], 2**20, (64, 64)),
        ([(5000, 1)], 2**20, (64, 5000)),
        ([(30_000, 10)], 2**20, (64, 16_384)),
        ([(65_000, 100)], 10**9, (100, 32_768)),
    ],
)
def test_the_images_own_size(sizes, most, expected):
    assert native_size(sizes, most) == expected
    assert expected[0] * expected[1] <= most
    assert not describe_bad_size(*expected)


def test_no_image_has_no_size():
    with pytest.raises(UserError, match="no training image can be read"):
        native_size([], 2**20)


def test_what_is_lost_is_said():
    (note,) = describe_loss(View(), [(1024, 1024)] * 3)
    assert note == (
        "Note: images 1024 high and 1024 wide are resized to 256 x 256: a defect below about 16 pixels is hardly "
        "seen; --image_size 512 costs about 4 times as much in inference"
    )
    assert describe_loss(View(), [(500, 500)]) == []  # less than half
    assert describe_loss(View(512, 512), [(1000, 1000)]) == []
    distorted, small = describe_loss(View(), [(2938, 730), (2940, 732)])
    assert "images about 731 high and 2939 wide" in distorted and "by a factor of 4.0" in distorted
    assert "--image_size 128 512 keeps it at the same cost" in distorted
    assert "below about 46 pixels" in small and "--image_size 256 1024 costs about 4 times" in small
    distorted, small = describe_loss(View(), [(5000, 1)])
    assert "--image_size" not in distorted and "--image_size 256 512 costs" in small  # as none keeps it
    (note,) = describe_loss(View(roi=(0, 0, 600, 600)), [(600, 600)])
    assert note.startswith("Note: regions 600 high and 600 wide")
    (note,) = describe_loss(View(resize="fit"), [(2938, 730)])
    assert "a defect below about 46 pixels" in note and "aspect" not in note


def test_a_training_says_what_is_lost(words, dataset_folder, capsys):
    for path in (dataset_folder / "train" / "good").iterdir():
        draw_part(int(path.stem), size=(600, 400)).save(path)
    train(*words, "--image_size", 64)
    assert "a defect below about 38 pixels is hardly seen; --image_size 128" in capsys.readouterr().out


def test_a_limit_of_pixels_is_for_native_sizes_alone(words, tmp_path, dataset_folder, capsys):
    note = "Note: --max_pixels not used: it limits --image_size native"
    train(*words, "--image_size", 64, "--max_pixels", 5000)
    assert note in capsys.readouterr().out
    for path in (dataset_folder / "train" / "good").iterdir():
        draw_part(int(path.stem), size=(200, 100)).save(path)
    model = trained(words, tmp_path, "--image_size", "native", "--max_pixels", 10_000, "--overwrite")
    assert model.view.size == (68, 140) and note not in capsys.readouterr().out


def test_the_exif_rotation_counts(words, tmp_path, dataset_folder):
    for path in (dataset_folder / "train" / "good").iterdir():
        exif = Image.Exif()
        exif[0x0112] = 6
        draw_part(int(path.stem), size=(140, 80)).save(path, exif=exif)
    assert trained(words, tmp_path, "--image_size", "native").view.size == (140, 80)


def test_windows_are_resumed_where_they_were(words, tmp_path, monkeypatch):
    """The same bits as without an interruption."""
    words = [*words[:-2], "--image_size", 128, 96, "--window", 64, "--recipe", "paper", "--train_steps", 6, "-b", 2]
    train(*words, "-o", tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 3)
        train(*words)
    train(*words, "--resume")
    assert_same_model(tmp_path / "whole", tmp_path / "out")


@pytest.mark.parametrize("flag", [["--image_size", 68], ["--roi", 0, 0, 0.5, 1], ["--border", "mirror"]])
def test_another_view_is_not_resumed(words, tmp_path, monkeypatch, capsys, flag):
    words = [*words[:-2], "--image_size", 64, "--recipe", "paper", "--train_steps", 6, "-b", 2]
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 3)
        train(*words)
    message = fail(monkeypatch, capsys, train_script, *words, "--resume", *flag)
    assert flag[0].strip("-") in message


def test_the_state_of_a_version_without_sizes_is_not_resumed(words, tmp_path, monkeypatch, capsys):
    words = [*words[:-2], "--image_size", 64, "--recipe", "paper", "--train_steps", 6, "-b", 2]
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 3)
        train(*words)
    state_file = folder_of(tmp_path / "out") / "checkpoint.pt"
    state = torch.load(state_file, weights_only=True)
    for name in ("image_size", "resize", "border", "window"):
        del state["settings"][name]
    torch.save(state, state_file)
    message = fail(monkeypatch, capsys, train_script, *words, "--resume")
    assert "was saved by another version of this toolkit" in message and "--overwrite" in message
