"""Teacher weights: the shipped ones and those of other tools."""

import pytest
import torch
from torch import nn

from efficientad.detector import checkpoint
from efficientad.detector.checkpoint import load_teacher_weights
from efficientad.detector.model import EfficientAD
from efficientad.detector.networks import build_pdn
from efficientad.system.errors import UserError


@pytest.mark.parametrize("size", ["small", "medium"])
@pytest.mark.parametrize("names", ["sequential", "anomalib"])
def test_teacher_weights_of_other_tools(tmp_path, size, names):
    teacher = build_pdn(size, 384)
    state = teacher.state_dict()
    if names == "anomalib":
        layers = [index for index, layer in enumerate(teacher) if isinstance(layer, nn.Conv2d)]
        state = {f"conv{layers.index(int(k.split('.')[0])) + 1}.{k.split('.')[1]}": v for k, v in state.items()}
    torch.save({key: tensor.half() for key, tensor in state.items()}, tmp_path / "teacher.pth")
    model = EfficientAD(size)
    load_teacher_weights(model, tmp_path / "teacher.pth")
    for key, tensor in teacher.state_dict().items():
        loaded = model.teacher.state_dict()[key]
        assert loaded.dtype == torch.float32 and torch.equal(loaded, tensor.half().float())
    other = "medium" if size == "small" else "small"
    with pytest.raises(UserError, match=f"is a {size} teacher but --model_size is {other}"):
        load_teacher_weights(EfficientAD(other), tmp_path / "teacher.pth")


def test_teacher_weights_that_are_refused(tmp_path):
    model = EfficientAD()
    torch.save(model.student.state_dict(), tmp_path / "student.pth")
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in (
        ("student.pth", r"8.weight has shape \(768, 256, 4, 4\), not \(384, 256, 4, 4\)"),
        ("other.pth", "not hold the weights of a small teacher"),
        ("list.pth", "holds no state_dict"),
        ("missing.pth", "missing.pth does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            load_teacher_weights(model, tmp_path / name)


@pytest.mark.parametrize("model_size", ["small", "medium"])
def test_shipped_teachers_load(model_size):
    model = EfficientAD(model_size)
    random_weights = model.teacher[0].weight.clone()
    assert load_teacher_weights(model, None).name == f"teacher_{model_size}.pth"
    assert not torch.equal(model.teacher[0].weight, random_weights)


def test_a_copy_without_its_teachers_says_so(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_SHIPPED_WEIGHTS", tmp_path)
    with pytest.raises(UserError, match="teacher_small.pth is missing.*--weights FILE"):
        load_teacher_weights(tiny_model, None)
