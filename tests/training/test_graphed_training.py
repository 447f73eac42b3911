"""A step replayed as a graph: on the CPU with a recorder that plays one, on a GPU against the step itself."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from efficientad.detector.model import EfficientAD
from efficientad.system.cuda_graph import CudaGraphs, GraphedStep
from efficientad.training.loop import Learner
from efficientad.training.options import TrainingPlan

CPU = torch.device("cpu")


class PlayedGraphs:
    """Runs the step again on the very tensors that it was recorded with, as a graph would."""

    def __init__(self, error=None):
        self.error, self.runs, self.replays = error, 0, 0

    def run(self, step, inputs):
        self.runs += 1
        return step(*inputs)

    def record(self, step, inputs):
        if self.error:
            raise self.error
        output = step(*inputs)

        def replay():
            self.replays += 1
            return output.copy_(step(*inputs))

        return replay


def add(first, second):
    return (first + second).sum(dim=0)


def test_every_input_gets_its_own_answer():
    recorder = PlayedGraphs()
    graphed = GraphedStep(add, recorder)
    answers, wanted = [], []
    for value in range(8):
        inputs = torch.full((2, 3), float(value)), torch.randn(2, 3)
        answers.append(graphed(*inputs))
        wanted.append(add(*inputs))
    # None is overwritten by a later replay
    assert all(torch.equal(answer, right) for answer, right in zip(answers, wanted, strict=True))
    assert recorder.runs == 3 and recorder.replays == 5


def test_inputs_are_left_alone():
    graphed = GraphedStep(add, PlayedGraphs())
    kept = torch.zeros(2, 3)
    for value in range(6):
        graphed(kept, torch.full((2, 3), float(value)))
        graphed(torch.ones(2, 3), kept)
        assert not kept.any()


def test_a_shorter_batch_runs_as_it_is():
    recorder = PlayedGraphs()
    graphed = GraphedStep(add, recorder)
    for _ in range(4):
        for count in (5, 5, 2):
            inputs = torch.randn(count, 3), torch.randn(count, 3)
            assert torch.equal(graphed(*inputs), add(*inputs))
    # Three runs of five, then its graph; the shorter ones before it are seen by the recorder too
    assert recorder.replays == 5 and recorder.runs == 3 + 1


def test_what_cannot_be_recorded_runs_on_as_it_is(capsys):
    recorder = PlayedGraphs(RuntimeError("operation not permitted when stream is capturing\nmore lines"))
    graphed = GraphedStep(add, recorder)
    for _ in range(6):
        inputs = torch.randn(2, 3), torch.randn(2, 3)
        assert torch.equal(graphed(*inputs), add(*inputs))
    said = capsys.readouterr().out
    reason = "operation not permitted when stream is capturing"
    assert said == f"Note: no CUDA graph, so the GPU waits for Python: {reason}\n"


PLAN = TrainingPlan(14, 2, 1e-3, 1e-5, CPU, "fp32", seed=1)


def learn(model, plan, recorder=None, natural=False):
    """Losses of the steps of a plan, with a shorter batch as the third; dropout off, since it would differ."""
    learner = Learner(model, plan)
    if recorder:
        learner._graphed, learner._run = True, GraphedStep(learner._learn, recorder)
    generator = torch.Generator().manual_seed(4)
    losses = []
    for step in range(plan.steps):
        count = 1 if step == 2 else plan.batch_size
        images = torch.rand((count, 3, 256, 256), generator=generator).to(plan.device)
        others = torch.rand((count, 3, 256, 256), generator=generator).to(plan.device) if natural else None
        with torch.no_grad():
            answers = model.teacher_features(model.normalize(images))
        losses.append(torch.stack(list(learner.step(images, answers, others, count))))
    return torch.stack(losses).cpu(), learner


def without_dropout(model):
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return model.train()


@pytest.mark.parametrize("natural", [False, True])
def test_a_learner_with_a_graph_learns_the_same(tiny_model, natural):
    state = {key: value.clone() for key, value in tiny_model.state_dict().items()}
    wanted, _ = learn(without_dropout(tiny_model), PLAN, natural=natural)
    after = {key: value.clone() for key, value in tiny_model.state_dict().items()}
    tiny_model.load_state_dict(state)
    recorder = PlayedGraphs()
    recorder.record = lambda step, inputs: lambda: step(*inputs)
    losses, learner = learn(tiny_model, PLAN, recorder, natural)
    assert torch.allclose(losses, wanted, rtol=1e-4) and learner.steps_done == PLAN.steps
    for key, value in tiny_model.state_dict().items():
        assert torch.allclose(value, after[key], atol=1e-4), key


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("natural", [False, True])
def test_a_cuda_graph_learns_the_same(precision, natural):
    plan = replace(PLAN, device=torch.device("cuda"), precision=precision, lr=1e-4)
    torch.manual_seed(0)
    model = without_dropout(EfficientAD().to("cuda", memory_format=torch.channels_last))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    wanted, _ = learn(model, replace(plan, cuda_graph=False), natural=natural)
    model.load_state_dict(state)
    losses, learner = learn(model, plan, natural=natural)
    assert learner._run._replay is not None
    assert torch.allclose(losses, wanted, rtol=0.02 if precision == "fp32" else 0.1)


@pytest.mark.cuda
def test_a_failed_recording_leaves_the_gpu_usable(capsys):
    def waits(values):
        return values * float(values.sum())  # .item() cannot be recorded

    graphed = GraphedStep(waits, CudaGraphs(torch.device("cuda")))
    before = torch.cuda.current_stream()
    for value in range(6):
        inputs = torch.full((3,), float(value), device="cuda")
        assert torch.equal(graphed(inputs), waits(inputs))
    assert "no CUDA graph" in capsys.readouterr().out
    assert torch.cuda.current_stream() == before
    assert nn.functional.dropout(torch.ones(100, device="cuda")).sum() > 0
