"""The distillation loop: its data, its measures, resuming, and two processes as one."""

import csv
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from conftest import fill_folder, tiny_pdn
from efficientad.data.image_collections import ImageCache, find_stored_images
from efficientad.data.transforms import augment, draw_light, random_crops, to_square
from efficientad.detector.initialization import initialize_network, widen_pdn
from efficientad.detector.networks import build_pdn
from efficientad.pretraining import batches as pretraining_batches
from efficientad.pretraining import loop as pretraining_loop
from efficientad.pretraining.batches import Batches, DistillationPlan, patches_within, random_windows
from efficientad.pretraining.loop import Distillation, explained_variance, solve_output_layer
from efficientad.pretraining.targets import DistillationTarget
from efficientad.system.errors import UserError
from stubs import random_backbone

CPU = torch.device("cpu")
PLAN = DistillationPlan(
    steps=6,
    minutes=None,
    batch_size=2,
    lr=1e-2,
    weight_decay=0.0,
    schedule="cosine",
    crop_scale=0.5,
    relight=1.0,
    window=133,
    device=CPU,
    precision="fp32",
    seed=3,
    workers=0,
)


@pytest.fixture
def stored(tmp_path):
    fill_folder(tmp_path / "natural", 7)
    return find_stored_images([tmp_path / "natural"])


def make_cache(stored, size, budget):
    return ImageCache(stored, lambda image: to_square(image, size), 3 * size * size, budget)


def make_batches(stored, plan=PLAN, indices=(0, 1, 2, 3, 4), budget=1e9):
    return Batches(make_cache(stored, 512, budget), list(indices), plan, (512, 256))


def make_run(stored, output, plan=PLAN):
    torch.manual_seed(0)
    target = DistillationTarget(random_backbone(), "pca", 256, 512)
    images = make_batches(stored, plan)
    target.fit((large for large, _ in images.whole([0, 1, 2])), "fp32")
    held_out = [(small, target(large, "fp32").half()) for large, small in images.whole([5, 6])]
    run = Distillation(tiny_pdn("small", 384), target, images, plan, output, state_file(output), {})
    return run, held_out


def state_file(output):
    return output.with_name("state")


def test_budget_changes_nothing_but_time(stored):
    kept, streamed = (make_cache(stored, 64, budget) for budget in (2 * 3 * 64 * 64, 0))
    for _ in range(2):
        for index in range(7):
            assert torch.equal(kept[index], streamed[index])
    assert len(kept._kept) == 2 and not streamed._kept


def test_an_unreadable_image_is_replaced_and_named(stored, capsys):
    stored[6].path.write_bytes(b"no image")
    images = make_cache(stored, 64, 1e9)
    assert torch.equal(images[6], images[0])
    assert torch.equal(images[6], images[0])  # asked again, named once
    assert capsys.readouterr().out.count("006.png") == 1
    for image in stored:
        image.path.write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 7 images can be read"):
        make_cache(stored, 64, 0)[3]


def test_batches_depend_on_seed_and_step_alone(stored):
    def take(batches, count):
        return [small for _, (_, small) in zip(range(count), batches, strict=False)]

    straight = take(make_batches(stored).from_step(0), 5)
    later = take(make_batches(stored, budget=0).from_step(3), 2)
    assert all(torch.equal(a, b) for a, b in zip(straight[3:], later, strict=True))
    other = take(make_batches(stored, replace(PLAN, seed=4)).from_step(0), 1)
    assert not torch.equal(straight[0], other[0])


def test_ranks_share_the_images_of_an_epoch(stored, monkeypatch):
    plan = replace(PLAN, batch_size=1, crop_scale=1.0)
    monkeypatch.setattr(pretraining_batches, "ranks", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(pretraining_batches, "rank", lambda rank=rank: rank)
        shares.append([batch[0] for batch, _ in zip(make_batches(stored, plan)._order(0), range(8), strict=False)])
    seen = [index for pair in zip(*shares, strict=True) for index in pair][:15]
    for epoch in (seen[:5], seen[5:10], seen[10:]):
        assert sorted(epoch) == [0, 1, 2, 3, 4]


def test_windows_and_crops_draw_from_streams_of_their_own(stored, tmp_path, monkeypatch):
    """Both began with the same numbers in each step."""
    starts = []

    def keep_start(module, name):
        function = getattr(module, name)

        def kept(*args):
            starts.append(args[-1].get_state().numpy().tobytes())
            return function(*args)

        monkeypatch.setattr(module, name, kept)

    run, held_out = make_run(stored, tmp_path / "teacher.pth")
    keep_start(pretraining_batches, "random_crops")
    keep_start(pretraining_loop, "random_windows")
    run.run(held_out, solve=False)
    assert len(starts) == len(set(starts)) >= 2 * PLAN.steps


def test_crops_show_both_networks_the_same_part():
    noise = Image.effect_noise((512, 512), 60).convert("RGB").resize((512, 512))
    pixels = (
        torch.frombuffer(bytearray(noise.tobytes()), dtype=torch.uint8).view(1, 512, 512, 3).permute(0, 3, 1, 2)
    )
    pixels = pixels.repeat(6, 1, 1, 1)
    large, small = random_crops(pixels, 0.3, (512, 256), torch.Generator().manual_seed(1))
    assert large.shape == (6, 3, 512, 512) and small.shape == (6, 3, 256, 256)
    blurred = nn.functional.avg_pool2d(large, 16), nn.functional.avg_pool2d(small, 8)
    assert (blurred[0] - blurred[1]).abs().max() < 0.05 < (blurred[0][0] - blurred[0][1]).abs().max()
    whole = random_crops(pixels, 1.0, (512,), torch.Generator())[0]
    assert torch.equal(whole, pixels / 255)


def test_most_images_become_darker_or_brighter():
    light = draw_light(5000, 4.0, torch.Generator().manual_seed(1))
    gains = light.factor.flatten()
    changed = gains[gains != 1].log() / math.log(4)
    assert len(changed) / 5000 == pytest.approx(0.8, abs=0.03)
    assert changed.min() == pytest.approx(-1, abs=0.01) and changed.max() == pytest.approx(0.5, abs=0.01)
    assert changed.mean() == pytest.approx(-0.25, abs=0.03)
    lit = augment(torch.full((5000, 3, 1, 1), 0.6), light)[:, 0, 0, 0]
    torch.testing.assert_close(lit, (0.6 * gains).clamp(max=1))


def test_only_the_teacher_sees_the_other_light(stored):
    plain, relit = (make_batches(stored, replace(PLAN, batch_size=5, relight=x)) for x in (1.0, 4.0))
    for kind in (lambda batches: next(batches.from_step(0)), lambda batches: next(batches.whole([0, 1, 2, 3, 4]))):
        (large, small), (same, other) = kind(plain), kind(relit)
        assert torch.equal(large, same) and not torch.equal(small, other)
        light = other * plain._std + plain._mean
        gains = light.amax(dim=(1, 2, 3)) / (small * plain._std + plain._mean).amax(dim=(1, 2, 3))
        assert (gains > 0.25 - 1e-4).all() and (gains < 2 + 1e-4).all() and gains.unique().numel() > 2
        assert torch.equal(kind(relit)[1], other)


def test_windows_are_answered_as_the_whole_image_is():
    torch.manual_seed(0)
    pdn = build_pdn("small", 384)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        parts, answers = random_windows(images, pdn(images), 45, torch.Generator().manual_seed(2))
        assert parts.shape == (2, 3, 45, 45) and answers.shape == (2, 384, 4, 4)
        torch.testing.assert_close(pdn(parts), answers, atol=1e-5, rtol=1e-4)
    assert patches_within(256) == 56


def test_explained_variance_is_that_of_all_channels():
    targets = torch.randn(3, 384, 5, 5) * torch.linspace(0.5, 2, 384).view(1, -1, 1, 1) + 3
    answers = targets + 0.5 * torch.randn_like(targets)
    pairs = [(answers[:2], targets[:2]), (answers[2:], targets[2:])]  # unequal batches
    expected = (
        1 - (answers - targets).square().sum() / (targets - targets.mean((0, 2, 3), keepdim=True)).square().sum()
    )
    share = explained_variance(nn.Identity(), pairs, CPU, "fp32")
    assert share == pytest.approx(float(expected), abs=1e-5)
    assert explained_variance(nn.Identity(), [(targets, targets)], CPU, "fp32") == 1


def test_solving_finds_the_output_layer_that_exists(stored, monkeypatch):
    monkeypatch.setattr(pretraining_loop, "_FEWEST_IMAGES", 40)
    torch.manual_seed(0)
    pdn, wanted = tiny_pdn("small", 384), tiny_pdn("small", 384)
    wanted[:-1].load_state_dict(pdn[:-1].state_dict())

    class Answers(nn.Module):
        def forward(self, large, precision):
            return wanted((nn.functional.avg_pool2d(large, 2) - batches._mean) / batches._std)

    batches = make_batches(stored, replace(PLAN, crop_scale=1.0))
    pairs = [(small, Answers()(large, "fp32").detach()) for large, small in batches.whole([5, 6])]
    before = explained_variance(pdn, pairs, CPU, "fp32")
    solve_output_layer(pdn, Answers(), batches.from_step(0), batches._plan, trained=False)
    solved = explained_variance(pdn, pairs, CPU, "fp32")
    assert before < 0.5 and solved > 0.9
    for _ in range(3):  # each time the ridge pulls towards a better start
        solve_output_layer(pdn, Answers(), batches.from_step(0), batches._plan, trained=True)
    assert explained_variance(pdn, pairs, CPU, "fp32") > max(solved, 0.99)


def test_a_widened_teacher_answers_as_the_small_one():
    torch.manual_seed(0)
    small, medium = build_pdn("small", 384), build_pdn("medium", 384)
    initialize_network(small)
    initialize_network(medium)
    torch.nn.init.kaiming_normal_(small[-1].weight)
    images = torch.rand(1, 3, 49, 49) - 0.5
    with torch.no_grad():
        expected = small(images)
        assert not torch.allclose(medium(images), expected, atol=0.1)
        widen_pdn(small, medium)
        inside = expected > -3  # below, the ReLU before the last layer cuts off
        assert inside.float().mean() > 0.9
        torch.testing.assert_close(medium(images)[inside], expected[inside], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_size", ["small", "medium"])
def test_a_random_start_is_as_good_as_the_best_constant(model_size):
    """And the hidden layers keep the variance of their input, so that the last one can learn at once."""
    torch.manual_seed(0)
    pdn = build_pdn(model_size, 384)
    initialize_network(pdn)
    images = torch.randn(2, 3, 49, 49)
    targets = torch.randn(2, 384, 5, 5)
    share = explained_variance(pdn, [(images, targets - targets.mean(dim=(0, 2, 3), keepdim=True))], CPU, "fp32")
    assert share == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        assert 0.1 < pdn[:-1](images).square().mean() < 3


@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 1e-2), ("muon", 1e-1)])
def test_a_run_learns_and_writes_its_best_weights(stored, tmp_path, optimizer, lr):
    plan = replace(PLAN, steps=60, crop_scale=1.0, optimizer=optimizer, lr=lr)
    run, held_out = make_run(stored, tmp_path / "teacher.pth", plan)
    best = run.run(held_out, solve=False)
    rows = list(csv.DictReader((tmp_path / "teacher.pth.csv").read_text().splitlines()))
    shares = [float(row["explained_variance"]) for row in rows]
    assert best == pytest.approx(max(shares), abs=1e-5) and shares[-1] > shares[0] + 0.2
    assert float(rows[-1]["lr"]) < 0.01 * lr and rows[-1]["step"] == "60"
    weights = torch.load(tmp_path / "teacher.pth", weights_only=True)
    assert all(tensor.dtype == torch.float16 for tensor in weights.values())
    pdn = tiny_pdn("small", 384)
    pdn.load_state_dict(weights)
    assert explained_variance(pdn, held_out, CPU, "fp32") == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_resumed_run_ends_as_if_it_had_not_been_killed(stored, tmp_path, monkeypatch, optimizer):
    plan = replace(PLAN, optimizer=optimizer)
    whole, held_out = make_run(stored, tmp_path / "whole.pth", plan)
    whole.run(held_out, solve=False)

    killed, _ = make_run(stored, tmp_path / "killed.pth", plan)
    learn = Distillation._train_on

    def learn_four_times(run, *args):
        if run.step == 4:
            raise KeyboardInterrupt
        return learn(run, *args)

    monkeypatch.setattr(Distillation, "_train_on", learn_four_times)
    with pytest.raises(KeyboardInterrupt):
        killed.run(held_out, solve=False)
    monkeypatch.undo()
    resumed, _ = make_run(stored, tmp_path / "killed.pth", plan)
    resumed.resume(torch.load(state_file(killed.output), weights_only=True))
    assert resumed.step == 4
    resumed.run(held_out, solve=False)
    for key, tensor in whole.pdn.state_dict().items():
        assert torch.equal(tensor, resumed.pdn.state_dict()[key])
    columns = [
        [(row["step"], row["explained_variance"]) for row in csv.DictReader(run.log.path.read_text().splitlines())]
        for run in (whole, resumed)
    ]
    assert columns[0] == columns[1] and len(columns[0]) == 7


def test_minutes_anneal_the_schedule(stored, tmp_path):
    run, _ = make_run(stored, tmp_path / "teacher.pth", replace(PLAN, steps=None, minutes=10.0))
    run.step, run.seconds = 1000, 300.0
    assert run.progress() == 0.5 and run.learning_rate() == pytest.approx(PLAN.lr / 2)
    run.seconds = 700.0
    assert run.progress() == 1.0 and run.learning_rate() == pytest.approx(0)
    constant, _ = make_run(stored, tmp_path / "teacher.pth", replace(PLAN, schedule="constant"))
    constant.step = 5
    assert constant.learning_rate() == PLAN.lr


def test_answers_that_are_not_finite_end_the_run(stored, tmp_path, monkeypatch):
    run, held_out = make_run(stored, tmp_path / "teacher.pth")
    monkeypatch.setattr(
        pretraining_loop.F, "mse_loss", lambda answers, targets: (answers - targets).sum() * float("nan")
    )
    with pytest.raises(UserError, match="not finite; try a smaller --lr"):
        run.run(held_out, solve=False)


def run_worker(folder, output, *launcher, batch_size):
    tests = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(tests / "distill_worker.py"), "--images", str(folder)]
    flags = ["--device", "cpu", "--num_workers", "0", "--window", "256", "--lr", "1e-2", "--projection", "pca"]
    flags += ["--steps", "4", "--minutes", "60", "--batch_size", str(batch_size), "--output", str(output)]
    done = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_do_what_one_does_with_the_joined_batch(tmp_path):
    fill_folder(tmp_path / "natural", 12)
    run_worker(tmp_path / "natural", tmp_path / "one.pth", batch_size=4)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    said = run_worker(tmp_path / "natural", tmp_path / "two.pth", *launcher, batch_size=2)
    assert "on each of 2 processes" in said and said.count("Wrote") == 1
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pth", "two.pth"))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(two[key].float(), tensor.float(), atol=2e-3, rtol=2e-3)  # one fp16 step
    logs = [
        list(csv.DictReader((tmp_path / f"{name}.pth.csv").read_text().splitlines())) for name in ("one", "two")
    ]
    for left, right in zip(*logs, strict=True):
        assert left["images"] == right["images"]
        assert float(left["explained_variance"]) == pytest.approx(float(right["explained_variance"]), abs=1e-4)
