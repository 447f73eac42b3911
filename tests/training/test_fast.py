"""The default training, which takes no step: from train.py to an export, and beside the paper's."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import train as train_script
from commands import evaluate, train
from conftest import fail, make_dataset
from efficientad import export, predict
from efficientad.detector.checkpoint import load_model, save_model
from efficientad.detector.model import EfficientAD
from efficientad.inference.detectors import TorchDetector, load_exported
from efficientad.system.errors import Interrupted
from exports import SUFFIXES, VARIANTS, random_pixels, skip_without
from trainings import assert_same_model, folder_of, stop_at

CPU = torch.device("cpu")


@pytest.fixture
def words(dataset_folder, tiny_teacher, tmp_path):
    common = ["-d", "custom", "-c", dataset_folder, "-w", tiny_teacher, "--device", "cpu", "--num_workers", 0]
    return [*common, "-o", tmp_path / "out"]


def files_of(output):
    return sorted(path.name for path in folder_of(output).iterdir())


def test_it_takes_no_step_and_says_so(words, tmp_path, capsys):
    train(*words, "--image_size", 128)
    printed = capsys.readouterr()
    assert "EfficientAD small, memory of 8000 patches, recipe fast\n" in printed.out
    assert "not used" not in printed.out
    assert printed.err == ""  # no progress bars where no one sees them
    assert files_of(tmp_path / "out") == ["args.json", "model.pt", "training_scores.csv"]
    settings = json.loads((folder_of(tmp_path / "out") / "args.json").read_text())
    assert (settings["recipe"], settings["steps"], settings["memory"]) == ("fast", 0, 8000)
    model = load_model(folder_of(tmp_path / "out"), CPU)
    assert model.student is None and model.autoencoder is None
    assert 1000 < len(model.memory) <= 9 * 256 and model.memory.shape[1] == 384  # nine images have no more
    assert model.provenance["memory_patches"] == len(model.memory)
    assert f"the memory holds {len(model.memory)} patches" in printed.out
    assert model.map_weights.tolist() == [0, 0, 1]
    assert model.provenance["steps"] == 0


def test_the_same_seed_gives_the_same_bits(words, tmp_path):
    train(*words, "--memory", 300)
    train(*words, "--memory", 300, "-o", tmp_path / "again", "--cache_gb", 0)
    assert_same_model(tmp_path / "out", tmp_path / "again")
    train(*words, "--memory", 300, "--seed", 1, "-o", tmp_path / "other")
    found = [load_model(folder_of(tmp_path / name), CPU).memory for name in ("out", "other")]
    assert found[0].shape == found[1].shape == (300, 384) and not torch.equal(*found)


def test_defects_are_found_by_every_command(tmp_path, tiny_teacher, capsys):
    root = make_dataset(tmp_path / "parts", train=12, test={"good": 4, "dent": 4})
    words = ["-d", "custom", "-c", root, "-o", tmp_path / "out"]
    train(*words, "-w", tiny_teacher)
    capsys.readouterr()
    evaluate(*words, "-f", "tiff")
    assert "Final image auc: 100.0000" in capsys.readouterr().out
    folder = tmp_path / "out/anomaly_maps/custom"
    with (folder / "scores.csv").open(newline="") as file:
        evaluated = {row["path"].split("test/")[-1]: float(row["y_score"]) for row in csv.DictReader(file)}
    words = ["-w", folder_of(tmp_path / "out"), "-i", root / "test", "-o", tmp_path / "predictions"]
    predict.main(predict.get_parser().parse_args([str(word) for word in words]))
    with next((tmp_path / "predictions").glob("*.csv")).open(newline="") as file:
        predicted = {row["path"].split("test/")[-1]: float(row["score"]) for row in csv.DictReader(file)}
    assert len(evaluated) == 8 and predicted == pytest.approx(evaluated, rel=1e-4)


@pytest.fixture
def trained(tmp_path, dataset_folder, tiny_networks):
    """A training's folder whose memory is about as far from the images as one of real parts."""
    torch.manual_seed(0)
    model = EfficientAD(has_student=False).eval()
    model.memory = (0.5 * torch.randn(1500, 384)).half().float()
    model.memory_weights = 0.5 + torch.rand(1500)
    model.map_weights.copy_(torch.tensor([0.0, 0.0, 1.0]))
    model.quantiles[2] = torch.tensor([0.2, 0.5])
    training = {"dataset": "custom", "custom_dataset_path": str(dataset_folder), "subdataset": "", "seed": 1}
    (tmp_path / "trained").mkdir()
    save_model(model, tmp_path / "trained" / "model.pt", training)
    return tmp_path / "trained"


@pytest.mark.parametrize(("name", "precision"), VARIANTS)
def test_exports_answer_as_torch_does(trained, tmp_path, name, precision, capsys):
    skip_without(name)
    output = tmp_path / f"exported{SUFFIXES[name]}"
    words = ["-w", trained, "--format", name, "--precision", precision, "-o", output]
    export.main(export.get_parser().parse_args([str(word) for word in words]))
    assert "of 10 decisions agree" in capsys.readouterr().out
    pixels = random_pixels(3)
    expected = TorchDetector(load_model(trained, CPU), CPU, "fp32")(pixels)
    detector = load_exported(output, "cpu", "auto")
    tolerance = {"fp32": 1e-3, "fp16": 0.01, "bf16": 0.05, "int8": 0.2}[precision]
    for batch in (pixels, pixels[:1]):
        np.testing.assert_allclose(detector(batch), expected[: len(batch)], rtol=tolerance, atol=25 * tolerance)


def test_int8_leaves_the_comparison_exact(trained, tmp_path):
    """Between the last convolution and the map nothing is rounded again."""
    skip_without("onnx")
    import onnx

    words = ["-w", trained, "--precision", "int8", "-o", tmp_path / "d.onnx"]
    export.main(export.get_parser().parse_args([str(word) for word in words]))
    nodes = onnx.load(tmp_path / "d.onnx").graph.node
    consumers = [node for node in nodes if node.op_type == "QuantizeLinear"]
    makers = {output: node for node in nodes for output in node.output}
    rounded = [makers[node.input[0]].op_type for node in consumers if node.input[0] in makers]
    assert rounded and set(rounded) <= {"Conv", "Relu", "AveragePool"}
    pools = [
        node
        for node in nodes
        if node.op_type == "AveragePool"
        and [2, 2] in [list(a.ints) for a in node.attribute if a.name == "kernel_shape"]
    ]
    assert len(pools) == 1  # the tiny networks pool otherwise
    assert not [node for node in consumers if node.input[0] == pools[0].output[0]]


def test_wishes_that_exclude_each_other_are_one_line(words, tmp_path, monkeypatch, capsys):
    def error(*more):
        message = fail(monkeypatch, capsys, train_script, *words, *more)
        assert message.count("\n") == 1 and not (tmp_path / "out").exists()
        return message

    assert "--recipe fast takes no steps: leave out --epochs and" in error("--recipe", "fast", "--train_steps", 5)
    assert "--recipe fast takes no steps" in error("--recipe", "fast", "-e", 1)
    assert "--memory 0 leaves nothing of --recipe fast; add --recipe paper" in error("--memory", 0)
    assert "--evaluate_every: --recipe fast takes no steps; add --recipe paper" in error("--evaluate_every", 5)
    assert "add --recipe paper" in error("--recipe", "fast", "--evaluate_every", 5)


@pytest.mark.parametrize(
    ("memory", "error"), [(-1, "expects a whole number >= 0"), (200_001, "more than the 200000 patches")]
)
def test_sizes_of_a_memory_that_no_file_could_hold(words, memory, error, tmp_path, monkeypatch, capsys):
    assert error in fail(monkeypatch, capsys, train_script, *words, "--memory", memory)
    assert not (tmp_path / "out").exists()


def test_flags_that_the_recipe_does_not_use_are_reported(words, tmp_path, capsys):
    train(*words, "--train_steps", 5, "--checkpoint_minutes", 0.0001)
    note = (
        "Note: --train_steps, --checkpoint_minutes not used: the memory takes no steps, and fewer than 10,000 are"
    )
    assert note in capsys.readouterr().out
    assert files_of(tmp_path / "out") == ["args.json", "model.pt", "training_scores.csv"]
    train(*words, "--overwrite", "-e", 2, "-i", "drawn")
    assert "Note: --epochs, --imagenet_train_path not used" in capsys.readouterr().out
    train(*words, "--overwrite", "--recipe", "fast", "-b", 4, "--lr", 1e-3, "--weight_decay", 0)
    printed = capsys.readouterr().out
    assert "Note: --batch_size, --lr, --weight_decay not used: the memory takes no steps; --recipe paper" in printed


def test_one_recipe_replaces_the_other(words, tmp_path, monkeypatch, capsys):
    train(*words, "--recipe", "paper", "--train_steps", 2)
    of_steps = ["args.json", "log.csv", "model.pt", "training.png", "training_scores.csv"]
    assert files_of(tmp_path / "out") == of_steps
    assert "already holds a trained model" in fail(monkeypatch, capsys, train_script, *words)
    assert files_of(tmp_path / "out") == of_steps
    train(*words, "--overwrite")
    assert files_of(tmp_path / "out") == ["args.json", "model.pt", "training_scores.csv"]
    assert load_model(folder_of(tmp_path / "out"), CPU).student is None
    train(*words, "--recipe", "paper", "--train_steps", 2, "--overwrite")
    assert files_of(tmp_path / "out") == of_steps
    model = load_model(folder_of(tmp_path / "out"), CPU)
    assert model.student is not None and len(model.memory) == 0


def test_it_replaces_an_interrupted_training_when_asked(words, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 3)
        train(*words, "--recipe", "paper", "--train_steps", 9)
    assert "holds an interrupted training" in fail(monkeypatch, capsys, train_script, *words)
    message = fail(monkeypatch, capsys, train_script, *words, "--resume")
    assert "recipe paper, now fast" in message and message.count("\n") == 1
    train(*words, "--overwrite")
    assert files_of(tmp_path / "out") == ["args.json", "model.pt", "training_scores.csv"]


def test_there_is_nothing_to_resume(words, tmp_path, capsys):
    train(*words, "--resume")  # in a loop of a script, the first time
    assert "holds no checkpoint.pt: nothing to resume, beginning anew" in capsys.readouterr().out
    before = (folder_of(tmp_path / "out") / "model.pt").stat().st_mtime_ns
    train(*words, "--resume")
    assert "already holds this trained model: nothing to resume" in capsys.readouterr().out
    assert (folder_of(tmp_path / "out") / "model.pt").stat().st_mtime_ns == before


def test_a_memory_beside_the_networks_survives_an_interruption(words, tmp_path, monkeypatch):
    words += ["--recipe", "paper", "--memory", 50, "-b", 2, "--image_size", 64]
    train(*words, "--train_steps", 3, "-o", tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 1)
        train(*words, "--train_steps", 3)
    train(*words, "--train_steps", 3, "--resume")
    assert_same_model(tmp_path / "whole", tmp_path / "out")
    state = torch.load(folder_of(tmp_path / "out") / "model.pt", weights_only=True)["state_dict"]
    assert state["memory"].shape == (50, 384) and state["map_weights"].tolist() == [0.25, 0.25, 0.5]
    assert (state["quantiles"][:, 1] > state["quantiles"][:, 0]).all()
    assert not (state["quantiles"] == torch.tensor([0.0, 0.1])).all(dim=1).any()  # all three maps are there


def test_an_interrupted_replacement_is_not_taken_for_done(words, tmp_path, capsys, monkeypatch):
    train(*words, "--memory", 40)
    before = (folder_of(tmp_path / "out") / "model.pt").read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("efficientad.training.stages.fit_memory", interrupt)
        train(*words, "--memory", 30, "--seed", 7, "--overwrite")
    assert (folder_of(tmp_path / "out") / "model.pt").read_bytes() == before
    train(*words, "--memory", 30, "--seed", 7, "--resume")
    assert "only a model that an interrupted training was to replace" in capsys.readouterr().out
    assert len(load_model(folder_of(tmp_path / "out"), CPU).memory) == 30
    train(*words, "--memory", 30, "--seed", 7, "--resume")
    assert "already holds this trained model: nothing to resume" in capsys.readouterr().out


def test_copies_on_both_sides_are_reported_if_only_their_pixels_are_the_same(words, dataset_folder, capsys):
    good = dataset_folder / "train" / "good"
    for suffix in (".bmp", ".tiff", ".ppm"):
        for path in sorted(good.glob("*.png")):
            with Image.open(path) as image:
                image.save(path.with_suffix(suffix))
    train(*words, "--memory", 40)
    assert re.search(
        r"Note: \d+ of the \d+ images held out (is a copy|are copies) of others", capsys.readouterr().out
    )


def test_identical_files_stay_on_one_side_and_are_counted(words, dataset_folder, capsys):
    good = dataset_folder / "train" / "good"
    for path in sorted(good.iterdir()):
        for number in range(3):
            path.with_stem(f"{path.stem}_{number}").write_bytes(path.read_bytes())
    train(*words, "--memory", 40)
    printed = capsys.readouterr().out
    assert "Note: 30 of the 40 good images are copies of others, for example" in printed
    assert "000_0.png of" in printed and " held out " not in printed
