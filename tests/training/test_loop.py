import csv
import math
from dataclasses import replace

import pytest
import torch
from torchvision.transforms import functional as tv

from efficientad.benchmarking import reference
from efficientad.data.transforms import augment, draw_changes, where_gray
from efficientad.detector.model import EfficientAD
from efficientad.system.devices import autocast
from efficientad.system.errors import UserError
from efficientad.training import log, loop
from efficientad.training.cache import TeacherFeatures
from efficientad.training.loop import Learner, Training, shuffled_batches
from efficientad.training.losses import compute_losses, hard_feature_count, hard_feature_loss
from efficientad.training.options import TrainingPlan
from stubs import HeldImages

CPU = torch.device("cpu")


def make_plan(**changes):
    settings = {
        "steps": 20,
        "batch_size": 2,
        "lr": 1e-3,
        "weight_decay": 0.0,
        "device": CPU,
    } | changes
    return TrainingPlan(precision="fp32", seed=1, **settings)


def train(model, pixels, natural_batches, plan, log_file, budget=1e9):
    teacher_features = TeacherFeatures(model, budget, plan.device, plan.precision)
    state_file = log_file.with_name("checkpoint.pt")
    images, indices = HeldImages(pixels), range(len(pixels))
    Training(model, images, indices, teacher_features, plan, log_file, state_file).run(natural_batches)


def losses_of(model, images, augmented, natural):
    """compute_losses with the teacher's features computed here."""
    with torch.no_grad():
        teacher_plain = model.teacher_features(model.normalize(images))
    return compute_losses(model, images, augmented, teacher_plain, natural)


def random_pixels(count):
    return torch.randint(0, 256, (count, 3, 256, 256), dtype=torch.uint8)


def read_log(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("shape", [(1, 384, 56, 56), (3, 7, 5, 5), (1, 1, 1, 1), (2, 5, 10, 10), (1, 1, 1, 1001)])
def test_hard_loss_equals_sorting(shape):
    teacher, student = torch.randn(shape), torch.randn(shape)
    assert hard_feature_loss(teacher, student, math.prod(shape)).item() == pytest.approx(
        reference.hard_loss(teacher, student).item(), rel=1e-5
    )


def test_hard_feature_count():
    assert hard_feature_count(1) == 1
    assert hard_feature_count(1001) == 2  # the quantile is the 1000th value itself
    assert hard_feature_count(384 * 56 * 56) == 384 * 56 * 56 - math.ceil(0.999 * (384 * 56 * 56 - 1))


def test_hard_loss_of_more_than_2_to_24_elements():
    """Batch 14 is where torch.quantile gives up."""
    shape = (14, 384, 56, 56)
    assert math.prod(shape) > 2**24
    student = torch.zeros(shape)
    student.view(-1)[:16_000] = 2.0
    assert hard_feature_loss(torch.zeros(1).expand(shape), student, math.prod(shape)).item() == pytest.approx(
        4 * 16_000 / hard_feature_count(math.prod(shape)), rel=1e-4
    )


@pytest.mark.parametrize("with_penalty", [False, True])
def test_losses_and_gradients_equal_the_plain_version(with_penalty):
    """The real networks; dropout off, since one and two passes draw it differently."""
    torch.manual_seed(0)
    model = EfficientAD().eval()
    model.teacher_std.fill_(0.1)
    images = torch.rand(1, 3, 256, 256)
    augmented = (0.9 * images).clamp(0, 1)
    natural = torch.rand(1, 3, 256, 256) if with_penalty else None
    expected = reference.losses(model, images, augmented, natural)
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    expected_gradients = torch.autograd.grad(sum(expected), parameters)
    model.to(memory_format=torch.channels_last)
    actual = losses_of(model, images, augmented, natural)
    for name, ours, theirs in zip(actual._fields, actual, expected, strict=True):
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-4, abs=1e-7), name
    gradients = torch.autograd.grad(sum(actual), parameters)
    for name, ours, theirs in zip(names, gradients, expected_gradients, strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3 * scale + 1e-9, msg=name)


def test_teacher_is_frozen_and_both_others_learn(tiny_model, tmp_path):
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    train(tiny_model, random_pixels(4), None, make_plan(steps=2), tmp_path / "log.csv")
    changed = {
        name.split(".")[0] for name, tensor in tiny_model.state_dict().items() if (tensor != before[name]).any()
    }
    assert changed == {"student", "autoencoder"}
    assert not tiny_model.training


def test_no_gradient_is_stopped_between_autoencoder_and_student(tiny_model):
    images = torch.rand(1, 3, 256, 256)
    losses_of(tiny_model, images, images, None).stae.backward()
    assert tiny_model.autoencoder[-1].weight.grad.abs().max() > 0
    gradient = tiny_model.student[-1].weight.grad
    assert gradient[:384].abs().max() == 0
    assert gradient[384:].abs().max() > 0


def test_augmentation_is_one_of_three_for_each_image():
    """Every image of a batch draws for itself, and the result is what torchvision's functions give."""
    image = torch.rand(3, 32, 32)
    changes = draw_changes(60, torch.Generator().manual_seed(3))
    batch = augment(image.repeat(60, 1, 1, 1), changes)
    assert batch.min() >= 0 and batch.max() <= 1
    kinds, factors = (values.flatten().tolist() for values in changes)
    adjust = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation]
    for result, kind, factor in zip(batch, kinds, factors, strict=True):
        torch.testing.assert_close(result, adjust[kind](image, factor), rtol=1e-5, atol=1e-5)
    assert set(kinds) == {0, 1, 2}
    assert len({round(factor, 6) for factor in factors}) == 60
    assert min(factors) < 0.84 and max(factors) > 1.16


def test_natural_images_turn_gray_one_by_one():
    image = torch.rand(3, 8, 8)
    gray = torch.rand(40) < 0.3
    batch = where_gray(image.repeat(40, 1, 1, 1), gray)
    for result, is_gray in zip(batch, gray, strict=True):
        expected = tv.rgb_to_grayscale(image, 3) if is_gray else image
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_learning_rate_falls_by_steps(tiny_model, tmp_path, monkeypatch):
    """Within a single epoch too: 40 images, 20 steps, the last of them at a tenth."""
    monkeypatch.setattr(log, "LOG_EVERY", 1)
    train(tiny_model, random_pixels(40), None, make_plan(steps=20, batch_size=1), tmp_path / "log.csv")
    rates = [float(row["lr"]) for row in read_log(tmp_path / "log.csv")]
    assert rates == pytest.approx([1e-3] * 19 + [1e-4])


def test_log_has_every_term_and_their_sum(tiny_model, tmp_path):
    natural = iter([random_pixels(2)] * 12)
    train(tiny_model, random_pixels(3), natural, make_plan(steps=12), tmp_path / "log.csv")
    rows = read_log(tmp_path / "log.csv")
    assert [row["step"] for row in rows] == ["1", "10", "12"]
    for row in rows:
        terms = [float(row[name]) for name in ("hard", "penalty", "ae", "stae")]
        assert sum(terms) == pytest.approx(float(row["loss"]), abs=1e-5)
        assert min(terms) > 0
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


def test_same_seed_same_weights(tiny_networks, tmp_path):
    def trained(seed):
        torch.manual_seed(seed)
        model = EfficientAD()
        pixels = torch.arange(4 * 3 * 256 * 256).remainder(251).to(torch.uint8).view(4, 3, 256, 256)
        train(model, pixels, None, make_plan(steps=3), tmp_path / "log.csv")
        return model.student[-1].weight

    assert torch.equal(trained(5), trained(5))
    assert not torch.equal(trained(5), trained(6))


def test_every_epoch_sees_every_image_once():
    batches = list(shuffled_batches(range(5, 15), 4, 7, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2, 4]
    first, second = torch.cat(batches[:3]).tolist(), torch.cat(batches[3:6]).tolist()
    assert sorted(first) == sorted(second) == list(range(5, 15))
    assert first != second


def test_the_order_of_one_seed_is_not_the_augmentation_of_another(tiny_model, tmp_path, monkeypatch):
    def keep(indices, batch_size, steps, generator):
        states.append(generator.get_state())
        return iter(())

    states = []
    monkeypatch.setattr(loop, "shuffled_batches", keep)
    for seed in range(3):
        plan = replace(make_plan(), seed=seed)
        train(tiny_model, random_pixels(2), None, plan, tmp_path / "log.csv")
        states.append(Learner(tiny_model, plan)._generator.get_state())
    assert len({state.numpy().tobytes() for state in states}) == 6


def test_loss_that_is_not_finite_stops(tiny_model, tmp_path):
    with pytest.raises(UserError, match="not finite at step 10 .*--lr"):
        train(tiny_model, random_pixels(2), None, make_plan(lr=1e30), tmp_path / "log.csv")
    assert [row["step"] for row in read_log(tmp_path / "log.csv")] == ["1", "10"]
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 0  # the last one that was good


def test_broken_weights_are_not_saved(tiny_model, tmp_path):
    """The loss of a step is that before the step, so a single one shows nothing yet."""
    with pytest.raises(UserError, match="not finite at step 1 "):
        train(tiny_model, random_pixels(2), None, make_plan(steps=1, lr=float("inf")), tmp_path / "log.csv")
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 0


def test_bf16_training_keeps_float32_weights_and_losses(tiny_model, tmp_path):
    plan = replace(make_plan(steps=11), precision="bf16")
    train(tiny_model, random_pixels(4), None, plan, tmp_path / "log.csv")
    rows = read_log(tmp_path / "log.csv")
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert {parameter.dtype for parameter in tiny_model.parameters()} == {torch.float32}
    images = torch.rand(1, 3, 256, 256)
    with autocast(CPU, "bf16"):
        losses = losses_of(tiny_model, images, images, images)
    assert {loss.dtype for loss in losses} == {torch.float32}


@pytest.mark.cuda
def test_training_on_cuda_in_every_precision(tmp_path):
    for precision in ("fp32", "bf16", "fp16"):
        torch.manual_seed(0)
        model = EfficientAD().to("cuda", memory_format=torch.channels_last)
        plan = replace(make_plan(steps=12, device=torch.device("cuda")), precision=precision)
        train(model, random_pixels(4), None, plan, tmp_path / f"{precision}.csv")
        rows = read_log(tmp_path / f"{precision}.csv")
        assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
