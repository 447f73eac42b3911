"""Networks of other tools: whole pickled ones are read without running anything, and compared layer by layer."""

import argparse
import copy
import functools
import io
import os
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import tiny_autoencoder, tiny_pdn
from efficientad.detector import foreign_networks
from efficientad.detector.checkpoint import load_model, load_teacher_weights, teacher_size
from efficientad.detector.foreign_networks import load_network, read_network
from efficientad.detector.model import EfficientAD
from efficientad.detector.networks import build_autoencoder, build_pdn
from efficientad.system.errors import UserError
from efficientad.system.torch_files import PickledObject, read_foreign_file
from other_tools import paper_autoencoder, paper_pdn, save_anomalib, save_whole


def assert_same_weights(network, other):
    assert network.state_dict().keys() == other.state_dict().keys()
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key


def test_whole_networks_from_the_tables_of_the_paper_are_ours(tmp_path):
    save_whole(tmp_path, teacher=paper_pdn(384), autoencoder=paper_autoencoder())
    for name, ours in (("teacher", build_pdn("small", 384)), ("autoencoder", build_autoencoder())):
        load_network(ours, read_network(tmp_path / f"{name}_final.pth"), name)
        theirs = torch.load(tmp_path / f"{name}_final.pth", weights_only=False)
        assert_same_weights(ours, theirs)
        image = torch.rand(1, 3, 256 if name == "autoencoder" else 64, 256 if name == "autoencoder" else 64)
        with torch.inference_mode():
            torch.testing.assert_close(ours.eval()(image), theirs.eval()(image))


@pytest.mark.parametrize("form", ["whole", "padded", "nested", "state_dict", "anomalib"])
def test_teacher_files(tmp_path, form):
    """A teacher is padded while it is pretrained; its weights are the same."""
    path, teacher = tmp_path / "teacher.pth", paper_pdn(384, padding=int(form == "padded"))
    if form == "nested":
        torch.save(nn.Sequential(teacher[:4], nn.Sequential(teacher[4:])), path)
    elif form == "state_dict":
        torch.save({"state_dict": teacher.state_dict(), "epoch": 3}, path)
    elif form == "anomalib":
        whole = EfficientAD()
        whole.teacher = teacher
        save_anomalib(path, whole)
    else:
        torch.save(teacher, path)
    model = EfficientAD()
    load_teacher_weights(model, path)
    assert teacher_size(path) == "small"
    for tensor, wanted in zip(model.teacher.parameters(), teacher.parameters(), strict=True):
        assert torch.equal(tensor, wanted)
    with pytest.raises(UserError, match="is a small teacher but --model_size is medium"):
        load_teacher_weights(EfficientAD("medium"), path)


def changed(index, **settings):
    def change(network):
        for name, value in settings.items():
            setattr(network[index], name, value)

    return change


def replaced(index, layer):
    def change(network):
        network[index] = layer

    return change


def hooked(network):
    network[1].register_forward_hook(print_nothing)


def print_nothing(*_):
    pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(4, mode="nearest"), "layer 4, Upsample, has mode nearest, not bilinear"),
        (changed(4, align_corners=True), "has align_corners True, not False"),
        (changed(4, size=(64, 64)), "has size 64, not 56"),
        (changed(4, size=None, scale_factor=2.0), "has size False, not 56"),
        (changed(0, padding=1), "layer 1, AvgPool2d, has padding 1, not 0"),
        (changed(5, stride=(2, 2)), "layer 5, Conv2d, has stride 2, not 1"),
        (changed(5, padding="same"), "has padding same, not 1"),
        (changed(5, padding_mode="reflect"), "has padding_mode reflect, not zeros"),
        (changed(5, stride=torch.ones(2)), "has stride Tensor, not 1"),
        (replaced(2, nn.Dropout(0.1)), "it has 6 layers besides dropout, not 7"),
        (replaced(2, nn.AvgPool2d(2)), "layer 3 is AvgPool2d, not ReLU"),
        (replaced(2, nn.LeakyReLU()), "holds a pickled torch.nn.modules.activation.LeakyReLU"),
        (replaced(5, nn.Conv2d(4, 8, 3, padding=1, bias=False)), "its layers have other names"),
        (replaced(5, nn.Conv2d(4, 9, 3, padding=1)), r"5.weight has shape \(9, 4, 3, 3\)"),
        (hooked, "holds a pickled test_foreign_networks.print_nothing"),
        (lambda network: network[1].register_buffer("shift", torch.zeros(1)), "hooks or buffers"),
        (lambda network: network[1].weight.data.fill_(float("nan")), "not finite"),
        (changed(1, more=read_network), "foreign_networks.read_network"),
        (changed(1, _parameters=OrderedDict(weight=None)), "holds no state_dict|other names"),
    ],
)
def test_networks_that_compute_something_else(tmp_path, change, message):
    network = tiny_autoencoder()
    change(network)
    torch.save(network, tmp_path / "net.pth")
    with pytest.raises(UserError, match=message) as raised:
        load_network(tiny_autoencoder(), read_network(tmp_path / "net.pth"), "autoencoder")
    assert "\n" not in str(raised.value)


def test_dropout_makes_no_difference(tmp_path):
    network = tiny_autoencoder()
    del network[3]
    torch.save(network, tmp_path / "net.pth")
    ours = tiny_autoencoder()
    load_network(ours, read_network(tmp_path / "net.pth"), "autoencoder")
    for tensor, wanted in zip(ours.parameters(), network.parameters(), strict=True):
        assert torch.equal(tensor, wanted)


class Dangerous:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


class Stateful:
    """An object of a class that is not here when it is read."""

    def __init__(self, value):
        self.value = value

    def __setstate__(self, state):
        raise AssertionError("was run")


def test_nothing_in_a_file_is_run(tmp_path):
    trace = tmp_path / "trace"
    network = tiny_pdn("small", 384)
    network[1].extra = Dangerous(trace)
    torch.save(network, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"\(io.open\)|pickled (io|_io|builtins).open"):
        read_network(tmp_path / "net.pth")
    torch.save({"state_dict": tiny_pdn("small", 4).state_dict(), "x": Dangerous(trace)}, tmp_path / "net.pth")
    read_network(tmp_path / "net.pth")
    assert not trace.exists()


def test_foreign_objects_become_their_data(tmp_path):
    torch.save({"a": Stateful([1, {"b": torch.ones(2)}]), "c": Stateful, "d": {1, 2}}, tmp_path / "x.pt")
    contents, names = read_foreign_file(tmp_path / "x.pt")
    assert names == {contents["a"].class_name} == {f"{__name__}.Stateful"}
    assert isinstance(contents["a"], PickledObject) and contents["a"].state["value"][0] == 1
    assert contents["c"].class_name == f"{__name__}.Stateful" and contents["d"] == {1, 2}


class OwnDict(dict):
    """As Lightning keeps settings."""


class OwnOrdered(OrderedDict):
    pass


class OwnList(list):
    pass


def with_attribute(made):
    made.note = "text"
    return made


def test_objects_that_checkpoints_hold_beside_weights(tmp_path):
    """Such as devices, and dicts and lists of other kinds."""
    counts = defaultdict(list)
    counts["a"].append(1)
    torch.save(
        {
            "dicts": [counts, OwnDict(b=2), with_attribute(OwnOrdered(c=3)), Counter({4: 5})],
            "lists": [OwnList([6]), deque([7], 8)],
            "empty": [defaultdict(int), OwnDict()],
            "device": torch.device("cuda:1"),
            "state_dict": OwnOrdered(weight=torch.ones(2)),
            "path": Path("a/b"),
            "settings": argparse.Namespace(size=[9]),
            "named": [torch.nn.functional.relu, functools.partial(print), torch.optim.Adam, int, range(3), ...],
            "keys": {(1, "x"): 1, torch.float16: 2, int: 3},
            "complete": True,
        },
        tmp_path / "x.ckpt",
    )
    contents, names = read_foreign_file(tmp_path / "x.ckpt")
    assert contents["dicts"] == [{"a": [1]}, {"b": 2}, {"c": 3}, {4: 5}] and contents["lists"] == [[6], [7]]
    assert contents["device"] == torch.device("cuda:1") and contents["state_dict"]["weight"].tolist() == [1, 1]
    assert contents["settings"].state == {"size": [9]} and contents["path"].arguments == ("a", "b")
    assert contents["keys"][1, "x"] == 1 and contents["complete"] is True
    assert issubclass(contents["named"][0], PickledObject) and isinstance(contents["named"][4], PickledObject)
    assert {"collections.defaultdict", "argparse.Namespace", f"{__name__}.OwnDict", "builtins.int"} < names


def test_no_module_that_a_file_names_is_imported(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text("class Settings(dict):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import theirs

    torch.save({"settings": theirs.Settings(a=1), "kind": theirs.Settings}, tmp_path / "x.ckpt")
    monkeypatch.delitem(sys.modules, "theirs")
    assert read_foreign_file(tmp_path / "x.ckpt")[0]["settings"] == {"a": 1}
    assert "theirs" not in sys.modules


class Made:
    """In the file: what a function or class makes of arguments."""

    def __init__(self, *made_of):
        self.made_of = made_of

    def __reduce__(self):
        return self.made_of[0], self.made_of[1:]


def in_itself():
    made = Stateful(None)
    made.value = [made]
    return made


def repeated(times=30):
    made = Stateful(1)
    for _ in range(times):
        made = Stateful([made, made])
    return made


def repeated_tuple(times=12):
    """Small in a file, and slow to compare as a key."""
    return functools.reduce(lambda made, _: (made, made), range(times), ())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: os.system, r"\((posix|nt).system\)"),
        (lambda: bytearray(5), r"\(builtins.bytearray\)"),
        (lambda: complex(1, 2), r"\(builtins.complex\)"),
        (lambda: Made(torch.Tensor, 10**12), r"\(torch.Tensor\).*; save it again as a state_dict: [^,]*, path\)$"),
        (lambda: Made(torch.UntypedStorage, 10**12), "tensors of a kind"),
        (lambda: Made(torch.nn.Parameter, torch.ones(1)), r"\(torch.nn.parameter.Parameter\)"),
        (lambda: Made(OrderedDict, [("a", 1)]), "damaged"),
        (lambda: Made(Counter, 5), "damaged"),
        (lambda: with_attribute(OwnList([1])), "is not opened: a list in it has attributes; save it again as a"),
        (lambda: {repeated_tuple(): 1}, "written out"),
        (lambda: torch.zeros(2, device="meta"), "tensors of a kind"),
        (lambda: torch.eye(2).to_sparse(), "tensors of a kind"),
        (in_itself, "or itself|is already part"),
        (repeated, "nested more than 20 deep"),
        (lambda: Stateful(torch.zeros(1).as_strided((10**12,), (0,))), "has more elements"),
        (lambda: [repeated(4)] * 1000, "written out"),
    ],
)
def test_foreign_objects_are_counted_before_they_are_made(tmp_path, monkeypatch, make, message):
    torch.save({"x": make()}, tmp_path / "x.pt")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises(UserError, match=message):
        read_foreign_file(tmp_path / "x.pt")


def test_six_files_of_whole_networks_are_a_detector(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(foreign_networks, "infer_model_size", lambda weight: "small")
    tiny_model.quantiles[:2] = torch.tensor([[0.125, 0.5], [0.25, 0.75]])
    networks = {
        name: copy.deepcopy(tiny_model.get_submodule(name)) for name in ("teacher", "student", "autoencoder")
    }
    save_whole(tmp_path, **networks)
    torch.save(tiny_model.teacher_mean, tmp_path / "teacher_mean.pt")
    torch.save(tiny_model.teacher_std, tmp_path / "teacher_std.pt")
    values = tiny_model.quantiles[:2].flatten()
    torch.save(
        dict(zip(("q_st_start", "q_st_end", "q_ae_start", "q_ae_end"), values, strict=True)),
        tmp_path / "quantiles.pt",
    )
    assert_same_weights(load_model(tmp_path, torch.device("cpu")), tiny_model)


def test_a_network_in_the_format_of_before_torch_1_6(tmp_path):
    """It has the source code of the classes in it."""
    buffer = io.BytesIO()
    torch.save(tiny_pdn("small", 4), buffer, _use_new_zipfile_serialization=False)
    (tmp_path / "net.pth").write_bytes(buffer.getvalue())
    advice = r"in torch's format of before version 1.6, .*; save them again in today's, .* weights_only=False"
    with pytest.raises(UserError, match=rf"holds pickled Python objects \(.*Sequential\) {advice}"):
        read_network(tmp_path / "net.pth")
    weights = tiny_pdn("small", 4).state_dict()
    torch.save({"state_dict": weights}, tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    assert read_network(tmp_path / "net.pth").weights.keys() == weights.keys()
