"""train.py --evaluate_every: it finds what eval.py would, and the training does not depend on it."""

import csv
import math
import shutil

import pytest
import torch
from PIL import Image

import train as train_script
from commands import evaluate, train
from conftest import draw_part, fail, fill_folder, make_dataset
from efficientad.detector.model import EfficientAD
from efficientad.system.cuda_graph import GraphedStep
from efficientad.system.errors import Interrupted
from efficientad.training import loop as training_loop
from efficientad.training.log import TrainingLog
from efficientad.training.loop import Learner
from efficientad.training.losses import Losses
from efficientad.training.options import TrainingPlan
from efficientad.training.progress import Progress
from stubs import HeldImages
from trainings import assert_same_model, folder_of, read_log, stop_at


@pytest.fixture
def dataset(tmp_path):
    """Parts whose defects are faint, so that not every AUROC is 100; one image is of two classes."""
    root = make_dataset(tmp_path / "parts", train=12, test={"good": 9})
    for number, name in enumerate(("scratch", "spot")):
        (root / "test" / name).mkdir()
        for index in range(5):
            good, bad = draw_part(50 + 10 * number + index), draw_part(50 + 10 * number + index, defective=True)
            Image.blend(good, bad, 0.25 * number + 0.05 * index).save(root / "test" / name / f"{index}.png")
    shutil.copy(root / "test/spot/4.png", root / "test/scratch/copy.png")
    return root


@pytest.fixture
def words(dataset, tiny_teacher, tmp_path):
    common = ["-d", "custom", "-c", dataset, "-w", tiny_teacher, "-b", 2, "--device", "cpu", "--num_workers", 0]
    return [*common, "--recipe", "paper", "-o", tmp_path / "out"]


@pytest.fixture
def small_images(words):
    words += ["--image_size", 64]


def aurocs(output):
    return {row["step"]: row["test_auroc"] for row in read_log(output) if row["test_auroc"]}


def test_it_reports_what_eval_finds_after_that_many_steps(words, dataset, tmp_path, monkeypatch, capsys, terminal):
    """With a learning rate that does not depend on the number of steps to come."""
    monkeypatch.setattr(training_loop, "learning_rate", lambda lr, *_: lr)
    words += ["--lr", 3e-3]
    train(*words, "--train_steps", 7, "--evaluate_every", 5)
    printed = capsys.readouterr()
    bars = [line for line in printed.err.split("\n") if "Final map normalization" in line]
    assert len(bars) == 1  # not those of the evaluations
    assert "Note: every 5 steps 20 test images are scored, 9 good and 11 defective; that looks at" in printed.out
    found = aurocs(tmp_path / "out")
    assert list(found) == ["5", "7"] and set(found.values()) != {"1.0"}
    train(*words, "-o", tmp_path / "shorter", "--train_steps", 5)
    capsys.readouterr()
    for (steps, auroc), output in zip(found.items(), ("shorter", "out"), strict=True):
        line = f"Step {steps}: image AUROC {100 * float(auroc):.2f}, with the labels of 20 test images\n"
        assert printed.out.count(line) == 1
        common = ["-d", "custom", "-c", dataset, "-o", tmp_path / output, "--device", "cpu"]
        evaluate(*common, "-f", "none", "--no_report")
        assert f"Final image auc: {100 * float(auroc):.4f}\n" in capsys.readouterr().out


def test_the_model_is_the_same_bit_for_bit(words, small_images, tmp_path):
    """Also without room for a single image, and in steps between two looks at the loss."""
    fill_folder(tmp_path / "natural", 3)
    words += ["--train_steps", 14, "-i", tmp_path / "natural"]
    train(*words)
    for name, more in {"kept": [], "decoded again": ["--cache_gb", 0]}.items():
        train(*words, "--evaluate_every", 3, *more, "-o", tmp_path / name)
        assert_same_model(tmp_path / "out", tmp_path / name)
    assert list(aurocs(tmp_path / "kept")) == ["3", "6", "9", "12", "14"]
    assert [row["step"] for row in read_log(tmp_path / "kept")] == ["1", "3", "6", "9", "10", "12", "14"]
    assert read_log(tmp_path / "kept") == read_log(tmp_path / "decoded again")
    assert [row["test_auroc"] for row in read_log(tmp_path / "out")] == [""] * 3
    heights = [Image.open(folder_of(tmp_path / name) / "training.png").height for name in ("out", "kept")]
    assert heights == [900, 1140]


def test_it_may_change_when_a_training_is_resumed(words, small_images, dataset, tmp_path, monkeypatch, capsys):
    words += ["--train_steps", 12]
    train(*words, "-o", tmp_path / "whole")
    for step, more in ((5, ["--evaluate_every", 4]), (7, ["--resume"])):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            stop_at(patch, step)
            train(*words, *more)
    draw_part(7).save(dataset / "test/good/new.png")
    capsys.readouterr()
    train(*words, "--resume", "--evaluate_every", 3)
    assert "Resuming after 8 of 12 steps" in capsys.readouterr().out
    assert list(aurocs(tmp_path / "out")) == ["4", "9", "12"]  # counted from the first step of all
    assert_same_model(tmp_path / "whole", tmp_path / "out")


def test_the_log_of_an_older_version_is_continued(words, small_images, tmp_path, monkeypatch):
    """It had no column for the AUROC."""
    words += ["--train_steps", 12]
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 10)
        train(*words)
    log_file = folder_of(tmp_path / "out") / "log.csv"
    with log_file.open(newline="") as file:
        rows = [row[:-1] for row in csv.reader(file)]
    with log_file.open("w", newline="") as file:
        csv.writer(file).writerows([*rows, ["9"] * 9, ["11", "0.5"]])  # two lines are damaged
    train(*words, "--resume", "--evaluate_every", 12)
    assert [row["step"] for row in read_log(tmp_path / "out")] == ["1", "10", "12"]
    assert list(aurocs(tmp_path / "out")) == ["12"]


def test_what_it_needs_is_missed_before_the_training(words, dataset, tmp_path, monkeypatch, capsys):
    def error(*more):
        message = fail(monkeypatch, capsys, train_script, *words, "--train_steps", 2, "--evaluate_every", 1, *more)
        assert not (tmp_path / "out").exists()
        return message

    test = dataset / "test"
    (test / "spot/1.png").write_text("text")
    (test / "good/002.png").write_text("text")
    message = error()
    assert message.startswith("error: cannot read 2 images; ") and message.count("\n") == 3
    assert f"{test / 'spot/1.png'}: " in message and f"{test / 'good/002.png'}: " in message
    for path in (test / "good").iterdir():
        path.write_text("text")
    assert f"images, but {test} holds no readable good ones; add some, or leave" in error("--on_error", "skip")
    shutil.rmtree(test / "good")
    message = error()
    assert message.startswith("error: --evaluate_every needs good and defective test images, but ")
    assert f"{test} holds no good ones; add some, or leave the flag out" in message and message.count("\n") == 1
    for name in ("scratch", "spot"):
        shutil.rmtree(test / name)
    assert f"--evaluate_every needs test images: {test} holds no images; put test images into" in error()
    fill_folder(test / "good", 1)
    assert f"{test} holds no defective ones" in error()
    shutil.rmtree(test)
    assert f"--evaluate_every needs test images: {dataset} has no test folder; put" in error()
    assert "expects a whole number >= 1" in error("--evaluate_every", 0)


def test_unreadable_test_images_are_skipped_where_that_is_asked_for(words, small_images, dataset, tmp_path, capsys):
    for path in ("test/spot/1.png", "train/good/003.png"):
        (dataset / path).write_text("text")
    train(*words, "--train_steps", 2, "--evaluate_every", 2, "--on_error", "skip")
    printed = capsys.readouterr().out
    assert "19 test images are scored, 9 good and 10 defective" in printed
    assert "Skipped 2 files that cannot be read" in printed
    with (folder_of(tmp_path / "out") / "skipped_files.csv").open(newline="") as file:
        named = [row["path"] for row in csv.DictReader(file)]
    assert named == [str(dataset / "train/good/003.png"), str(dataset / "test/spot/1.png")]


def random_images(count, seed, size=256):
    generator = torch.Generator().manual_seed(seed)
    return HeldImages(torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator))


def progress_of(model):
    labels = [False, False, True, True, True]
    return Progress(2, model, random_images(4, 0), range(1, 4), random_images(5, 1), labels, "fp32")


def test_a_model_is_left_as_it_was(tiny_model):
    tiny_model.train()
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    places = {name: value.data_ptr() for name, value in tiny_model.state_dict().items()}
    noise = torch.get_rng_state()
    assert 0 <= progress_of(tiny_model).auroc() <= 1
    assert all(module.training for module in tiny_model.modules())
    assert torch.equal(torch.get_rng_state(), noise)
    after = tiny_model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name: value.data_ptr() for name, value in after.items()} == places
    assert not any(value.is_inference() for value in after.values())


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, where the maps are not finite
def test_networks_without_a_meaningful_map_have_no_auroc(tiny_model):
    with torch.no_grad():
        tiny_model.autoencoder[-1].weight.zero_()
        tiny_model.student[-1].weight.zero_()
    assert math.isnan(progress_of(tiny_model).auroc())
    torch.nn.init.normal_(tiny_model.autoencoder[-1].weight)
    torch.nn.init.normal_(tiny_model.student[-1].weight)
    assert not math.isnan(progress_of(tiny_model).auroc())
    tiny_model.teacher[-1].bias.data.fill_(math.inf)
    assert math.isnan(progress_of(tiny_model).auroc())


def test_an_undefined_auroc_is_reported(tmp_path, capsys):
    losses = Losses(*torch.ones(4))
    with TrainingLog(tmp_path / "log.csv", 30) as log:
        for step in range(1, 12):
            log.add(losses, 1e-4, 1, read=step == 3)
            if step == 3:
                log.add_test_auroc(math.nan, 7)
    assert capsys.readouterr().out == "Step 3: image AUROC undefined, with the labels of 7 test images\n"
    with (tmp_path / "log.csv").open(newline="") as file:
        assert [row["test_auroc"] for row in csv.DictReader(file)] == ["", "nan", ""]


@pytest.mark.cuda
def test_a_cuda_graph_goes_on_after_an_evaluation():
    """With dropout, whose random numbers on the GPU must be the same, too."""
    cuda = torch.device("cuda")
    plan = TrainingPlan(12, 2, 1e-3, 1e-5, cuda, "bf16", seed=1)
    images = random_images(24, 2).pixels.to(cuda) / 255

    def learn(evaluating):
        torch.manual_seed(0)
        model = EfficientAD().to(cuda, memory_format=torch.channels_last).train()
        learner, progress, losses = Learner(model, plan), progress_of(model), []
        for step in range(12):
            batch = images[2 * step : 2 * step + (1 if step == 8 else 2)]  # a shorter one is not replayed
            with torch.no_grad():
                answers = model.teacher_features(model.normalize(batch))
            losses.append(torch.stack(list(learner.step(batch, answers, None, len(batch)))))
            if evaluating and progress.is_due(learner.steps_done, plan.steps):
                progress.auroc()
        assert isinstance(learner._run, GraphedStep) and learner._run._replay is not None
        return torch.stack(losses).cpu()

    torch.testing.assert_close(learn(True), learn(False), rtol=0.02, atol=1e-3)
