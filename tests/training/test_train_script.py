"""train.py, called as a user calls it, on every layout and up to an evaluation, with what users do wrong."""

import csv
import json
import shutil

import pytest
import torch
from PIL import Image

import train as train_script
from commands import evaluate, train
from conftest import fail, fill_folder, make_dataset
from efficientad.training.options import RECIPES, choose_recipe


def test_training_says_what_it_does_and_what_to_do_next(tmp_path, dataset_folder, tiny_teacher, capsys, terminal):
    output = tmp_path / "out"
    words = ["-d", "custom", "-c", dataset_folder, "-o", output, "-w", tiny_teacher]
    train(*words, "--recipe", "paper", "-e", 2, "-b", 4)
    printed = capsys.readouterr()
    assert "Data set custom: 9 good images, 1 more held out" in printed.out
    assert "EfficientAD small, 6 steps of batch size 4, penalty off" in printed.out  # 2 epochs of ceil(9 / 4)
    assert "device cpu" in printed.out and "precision" in printed.out
    assert "Note: only about 24 images will be seen" in printed.out
    for stage in ("Computing statistics of features", "Current loss: ", "images/s"):
        assert stage in printed.err
    assert "Final map normalization" in printed.err
    last = printed.out.strip().splitlines()[-1]
    model_file = output / "trainings" / "custom" / "model.pt"
    assert str(model_file) in last and model_file.is_file()
    command = last.split("evaluate it with: ")[1].split()
    assert command[:2] == ["python", "eval.py"]
    evaluate(*command[2:])
    assert "Final image auc: " in capsys.readouterr().out


def test_training_leaves_its_settings_and_log(output):
    folder = output / "trainings" / "custom"
    assert sorted(path.name for path in folder.iterdir()) == [
        "args.json",
        "log.csv",
        "model.pt",
        "training.png",
        "training_scores.csv",
    ]
    settings = json.loads((folder / "args.json").read_text())
    assert (settings["steps"], settings["batch_size"], settings["seed"], settings["lr"]) == (2, 5, 42, 1e-4)
    assert torch.load(folder / "model.pt", weights_only=True)["training"] == {**settings, "memory_patches": 0}


def test_train_steps_and_penalty(tmp_path, dataset_folder, tiny_teacher, capsys):
    fill_folder(tmp_path / "natural", 3)
    words = ["-d", "custom", "-c", dataset_folder, "-o", tmp_path / "out", "-w", tiny_teacher]
    train(*words, "--recipe", "paper", "--train_steps", 5, "-b", 2, "-i", tmp_path / "natural")
    assert "5 steps of batch size 2, penalty 3 natural images" in capsys.readouterr().out
    with (tmp_path / "out/trainings/custom/log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["step"] == "5" and float(rows[-1]["penalty"]) > 0


@pytest.mark.parametrize(
    ("words", "said", "on"),
    [
        ([], "penalty off, recipe paper", False),
        (["-i", "none"], "penalty off, recipe paper", False),
        (["-i", "drawn"], "penalty 1000 drawn images, recipe paper", True),
    ],
)
def test_penalty_without_natural_images(tmp_path, dataset_folder, tiny_teacher, capsys, words, said, on):
    words = ["--recipe", "paper", "--train_steps", 2, *words]
    train("-d", "custom", "-c", dataset_folder, "-o", tmp_path, "-w", tiny_teacher, *words)
    assert said in capsys.readouterr().out
    with (tmp_path / "trainings/custom/log.csv").open() as file:
        assert (float(list(csv.DictReader(file))[-1]["penalty"]) > 0) == on


def test_long_trainings_follow_the_paper_by_themselves():
    found = [choose_recipe("auto", steps) for steps in (None, 1, 9_999, 10_000, 70_000)]
    assert found == ["fast", "fast", "fast", "paper", "paper"]
    assert all(choose_recipe(name, steps) == name for name in RECIPES for steps in (None, 1, 70_000))


def test_the_threshold_is_calibrated_on_held_out_images_and_taken(tmp_path, tiny_teacher, capsys):
    root = make_dataset(tmp_path / "parts", train=6)
    fill_folder(root / "validation" / "good", 9, seed=500)
    words = ["-d", "custom", "-c", root, "-o", tmp_path / "out"]
    train(*words, "-w", tiny_teacher, "--target_fpr", 0.1)
    printed = capsys.readouterr().out
    calibration = torch.load(tmp_path / "out/trainings/custom/model.pt", weights_only=True)["calibration"]
    threshold = f"{calibration['threshold']:g}"
    assert f"Threshold {threshold} for 10 % false positives, from 9 held-out good images" in printed
    assert "cannot show" not in printed  # the highest of nine is exceeded by the tenth with probability 0.1
    assert calibration["threshold"] == pytest.approx(max(calibration["scores"]), rel=1e-5)

    evaluate(*words, "-f", "none")
    assert f"threshold {threshold} (calibrated for 10 % false positives)" in capsys.readouterr().out
    folder = tmp_path / "out/anomaly_maps/custom"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["threshold"] == calibration["threshold"] and metrics["others"] == []
    with (folder / "scores.csv").open() as file:
        for row in csv.DictReader(file):
            assert row["threshold"] == threshold
            assert row["y_pred"] == str(int(float(row["y_score"]) > calibration["threshold"]))

    # The held-out images evaluated as test images have the very scores that are stored.
    shutil.rmtree(root / "test")
    shutil.copytree(root / "validation", root / "test")
    evaluate(*words, "-f", "none")
    with (folder / "scores.csv").open() as file:
        scores = sorted(float(row["y_score"]) for row in csv.DictReader(file))
    assert scores == pytest.approx(list(calibration["scores"]), rel=1e-4)


def test_few_held_out_images_give_no_threshold(tmp_path, dataset_folder, tiny_teacher, capsys):
    output = tmp_path / "out"
    words = ["--recipe", "paper", "--train_steps", 2]
    train("-d", "custom", "-c", dataset_folder, "-o", output, "-w", tiny_teacher, *words)
    assert (
        "1 held-out good images are too few, 4 at least; eval.py and predict will use 80" in capsys.readouterr().out
    )
    evaluate("-d", "custom", "-c", dataset_folder, "-o", output, "-f", "none")
    assert "threshold 80 (default: this model has no calibration)" in capsys.readouterr().out


def test_finished_model_is_replaced_only_when_asked(output, dataset_folder, tiny_teacher, monkeypatch, capsys):
    words = ["-d", "custom", "-c", dataset_folder, "-o", output, "-w", tiny_teacher]
    words += ["--recipe", "paper", "--train_steps", 2]
    model_file = output / "trainings/custom/model.pt"
    before = model_file.read_bytes()
    assert "already holds a trained model; add --overwrite" in fail(monkeypatch, capsys, train_script, *words)
    assert model_file.read_bytes() == before
    train(*words, "--overwrite")
    assert torch.load(model_file, weights_only=True)["training"]["steps"] == 2


@pytest.mark.parametrize("layout", ["mvtec_ad", "mvtec_loco", "visa"])
def test_layouts_with_categories(tmp_path, tiny_teacher, layout, capsys):
    loco = layout == "mvtec_loco"
    test = {"good": 2, "logical_anomalies": 2, "structural_anomalies": 2} if loco else {"good": 2, "bad": 2}
    root = make_dataset(tmp_path / "sets" / "nut", train=4, test=test)
    if loco:
        fill_folder(root / "validation" / "good", 2)
        mask_folder = root / "ground_truth" / "logical_anomalies" / "001"
        mask_folder.mkdir(parents=True)
        Image.new("L", (60, 40), 255).save(mask_folder / "000.png")
        config = {"defect_name": "all", "pixel_value": 255, "saturation_threshold": 9, "relative_saturation": False}
        (root / "defects_config.json").write_text(json.dumps([config]))
    words = ["-d", layout, f"--{layout}_path", tmp_path / "sets", "-s", "nut", "-o", tmp_path / "out"]
    train(*words, "-w", tiny_teacher)
    evaluate(*words, "-f", "none")
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "trainings" / layout / "nut" / "model.pt").is_file()
    folder = tmp_path / "out" / "anomaly_maps" / layout / "nut"
    files = {path.name for path in folder.iterdir()}
    tables = {"scores.csv", "metrics.json", "mismatch_samples.csv", "written_files.json"}
    assert files == {*tables, "report.html"}
    evaluate(*words, "-f", "none", "--no_report")
    assert {path.name for path in folder.iterdir()} == tables
    assert ("Image auc of logical_anomalies: " in printed) == ("AU-sPRO" in printed) == loco


@pytest.mark.parametrize("more", [[], ["--recipe", "paper", "--train_steps", 12, "--lr", 1e-3]])
def test_the_real_networks_find_defects(tmp_path, more, capsys):
    """The whole way with nothing small but the data: either recipe tells parts with a blob from parts without."""
    root = make_dataset(tmp_path / "set", train=8, test={"good": 3, "dent": 3})
    words = ["-d", "custom", "-c", root, "-o", tmp_path / "out"]
    train(*words, *more)
    evaluate(*words, "-f", "jpg", "-T", 40)
    assert "Final image auc: 100.0000" in capsys.readouterr().out
    with Image.open(tmp_path / "out/anomaly_maps/custom/test/dent/000.jpg") as image:
        assert image.size == (120, 40)


def test_wrong_training_commands(tmp_path, dataset_folder, tiny_teacher, monkeypatch, capsys):
    custom = ["-d", "custom", "-c", dataset_folder, "-w", tiny_teacher, "-o", tmp_path / "out"]

    def error(*words):
        return fail(monkeypatch, capsys, train_script, *words)

    assert "--custom_dataset_path" in error("-d", "custom", "-c", tmp_path / "nowhere")
    assert "mvtec_anomaly_detection does not exist" in error("-o", tmp_path / "out")
    assert "missing.pth does not exist" in error(*custom[:4], "-w", tmp_path / "missing.pth")
    assert "not allowed with argument" in error(*custom, "--epochs", 10, "--train_steps", 10)
    assert "expects a whole number >= 1, not '0'" in error(*custom, "-b", 0)
    assert "expects a number > 0, not" in error(*custom, "--lr", 0)
    assert "expects a number > 0 and < 1" in error(*custom, "--target_fpr", 1)
    assert "expects a whole number >= 1, not 'x'" in error(*custom, "-e", "x")
    assert "fp16 needs a CUDA GPU" in error(*custom, "--device", "cpu", "--precision", "fp16")
    assert "no such file or folder of images" in error(*custom, "--recipe", "paper", "-i", tmp_path / "no_images")
    if not torch.cuda.is_available():
        assert "--device cuda: " in error(*custom, "--device", "cuda")
    good = dataset_folder / "train" / "good"
    (good / "003.png").write_text("text")
    (good / "007.png").write_bytes((good / "006.png").read_bytes()[:200])
    message = error(*custom)
    assert "cannot read 2 images" in message and "003.png" in message and "007.png" in message
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written_is_one_line(dataset_folder, tiny_teacher, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").write_text("a file where the folder should be")
    words = ["-d", "custom", "-c", dataset_folder, "-w", tiny_teacher, "-o", tmp_path / "out"]
    assert "out is a file, not a folder; choose another --output_dir" in fail(
        monkeypatch, capsys, train_script, *words
    )


@pytest.mark.parametrize("link", ["trainings", "trainings/custom", "trainings/custom/log.csv"])
def test_links_below_the_output_folder_are_refused(
    dataset_folder, tiny_teacher, link, tmp_path, monkeypatch, capsys
):
    out, mine = tmp_path / "out", tmp_path / "mine"
    mine.mkdir()
    (out / link).parent.mkdir(parents=True)
    (out / link).symlink_to(mine)
    words = ["-d", "custom", "-c", dataset_folder, "-o", out, "-w", tiny_teacher, "--memory", 20]
    message = fail(monkeypatch, capsys, train_script, *words)
    assert f"{out / link} is a link, and below an output folder" in message and not list(mine.iterdir())
    (out / link).unlink()
    (tmp_path / "big").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "big")
    words[words.index(out)] = tmp_path / "link"  # the output folder itself, on a larger disk
    train(*words)
    assert (tmp_path / "big" / "trainings" / "custom" / "model.pt").exists()
