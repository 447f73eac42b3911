import copy
import pickle
import zipfile

import pytest
import torch
from PIL import Image

from conftest import write_six_files
from efficientad.benchmarking import reference
from efficientad.data.ignored import read_ignored
from efficientad.data.views import FIT, View
from efficientad.detector import checkpoint, foreign_networks
from efficientad.detector.anomaly_maps import anomaly_score
from efficientad.detector.calibration import Calibration
from efficientad.detector.checkpoint import load_model, read_training, save_model
from efficientad.detector.global_score import GlobalScore
from efficientad.detector.model import MIRROR, NO_BORDER, EfficientAD
from efficientad.system.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def fitted(tiny_model):
    tiny_model.teacher_mean.uniform_(-1, 1)
    tiny_model.teacher_std.uniform_(0.5, 2)
    tiny_model.quantiles.copy_(torch.tensor([[0.125, 0.5], [0.25, 0.75], [0.0, 0.1]]))
    return tiny_model


def assert_equal_models(left, right):
    assert left.state_dict().keys() == right.state_dict().keys()
    for key, tensor in left.state_dict().items():
        assert torch.equal(tensor, right.state_dict()[key]), key


def test_saved_and_loaded_model_is_equal(fitted, tmp_path):
    save_model(fitted, tmp_path / "model.pt", {"steps": 7})
    loaded = load_model(tmp_path, CPU)
    assert_equal_models(fitted, loaded)
    assert_equal_models(fitted, load_model(tmp_path / "model.pt", CPU))
    assert read_training(tmp_path / "model.pt") == read_training(tmp_path) == {"steps": 7}
    assert not loaded.training
    image = torch.rand(1, 3, 256, 256)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(image), fitted(image))
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".pth"] == ["model.pt"]


def test_model_file_describes_itself_and_is_on_the_cpu(fitted, tmp_path):
    save_model(fitted, tmp_path / "model.pt", {"steps": 7})
    contents = torch.load(tmp_path / "model.pt", weights_only=True)
    view = {"size": [256, 256], "resize": "stretch", "roi": None, "ignored": None, "depth": None}
    config = {"model_size": "small", "view": view, "border": "none", "has_student": True, "memory_patches": 0}
    assert contents["config"] == {**config, "has_global_score": False}
    assert contents["version"] == 6
    assert contents["training"] == {"steps": 7}
    assert contents["versions"]["torch"] == torch.__version__
    assert {tensor.device for tensor in contents["state_dict"].values()} == {CPU}


def test_the_view_and_the_border_are_saved(tiny_networks, tmp_path):
    mask = Image.new("1", (30, 20))
    mask.paste(1, (20, 0, 30, 20))
    mask.save(tmp_path / "mask.png")
    view = View(128, 64, FIT, (0.25, 0.0, 0.75, 1.0), read_ignored(tmp_path / "mask.png"))
    model = EfficientAD("small", view, MIRROR).eval()
    save_model(model, tmp_path / "model.pt", {})
    loaded = load_model(tmp_path, CPU)
    assert (loaded.view, loaded.border, loaded.grid) == (view, MIRROR, (32, 16))
    images, inspected = torch.rand(1, 3, 128, 64), view.inspected((60, 40))[None]
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images, inspected), model(images, inspected))


@pytest.fixture
def overall(fitted):
    """With a global score."""
    fitted.global_score = GlobalScore(fitted.grid)
    for name in ("basis", "mean", "whitening"):
        fitted.global_score.get_buffer(name).normal_()
    fitted.global_score.levels.copy_(torch.tensor([(10.0, 20.0), (15.0, 30.0), (0.25, 1.5)]))
    fitted.global_score.peak.fill_(0.25)
    return fitted


def test_the_global_score_is_saved(overall, tmp_path):
    save_model(overall, tmp_path / "model.pt", {})
    contents = torch.load(tmp_path / "model.pt", weights_only=True)
    assert contents["config"]["has_global_score"] is True
    saved = {key for key in contents["state_dict"] if key.startswith("global_score.")}
    assert saved == {f"global_score.{name}" for name in ("basis", "mean", "whitening", "levels", "peak")}
    loaded = load_model(tmp_path, CPU)
    assert_equal_models(overall, loaded)
    images = torch.rand(2, 3, 256, 256)
    with torch.inference_mode():
        expected = overall(images)
        torch.testing.assert_close(anomaly_score(loaded(images)), anomaly_score(expected), rtol=1e-5, atol=0)
        overall.global_score = None
        assert (expected > overall(images) + 1).any()  # it has a part in the map


@pytest.mark.cuda
def test_model_trained_on_cuda_loads_on_the_cpu(tmp_path):
    model = EfficientAD().cuda()
    save_model(model, tmp_path / "model.pt", {})
    assert {tensor.device for tensor in load_model(tmp_path, CPU).state_dict().values()} == {CPU}


def test_failed_save_keeps_the_old_file(fitted, tmp_path, monkeypatch):
    save_model(fitted, tmp_path / "model.pt", {})
    before = (tmp_path / "model.pt").read_bytes()

    def full_disk(contents, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(fitted, tmp_path / "model.pt", {})
    assert (tmp_path / "model.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_six_files_of_other_tools(fitted, tmp_path):
    write_six_files(fitted, tmp_path / "six")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            foreign_networks, "infer_model_size", lambda state: "small"
        )  # tiny networks have other widths
        assert_equal_models(load_model(tmp_path / "six", CPU), fitted)
        (tmp_path / "six" / "quantiles.pt").unlink()
        with pytest.raises(
            UserError, match="lacks quantiles.pt; .* python -m efficientad.convert --input .*six --"
        ):
            load_model(tmp_path / "six", CPU)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "teacher_mean.pt",
            torch.full((1, 384, 1, 1), float("nan")),
            "teacher_mean has values that are not finite",
        ),
        ("teacher_std.pt", torch.zeros(3), "not a tensor of shape"),
        ("teacher_std.pt", torch.zeros(1, 384, 1, 1), "statistics are degenerate"),
        ("teacher_std.pt", "text", "teacher_std.pt holds no state_dict"),
        ("quantiles.pt", {"q_st_start": 0.0}, "does not hold q_st_start, q_st_end"),
        (
            "quantiles.pt",
            dict.fromkeys(("q_st_start", "q_st_end", "q_ae_start", "q_ae_end"), "x"),
            "not hold numbers",
        ),
        ("quantiles.pt", {"q_st_start": 0, "q_st_end": float("inf"), "q_ae_start": 0, "q_ae_end": 1}, "degenerate"),
        ("student_final.pth", [1, 2], "student_final.pth holds no state_dict"),
    ],
)
def test_six_files_that_are_refused(fitted, tmp_path, monkeypatch, name, value, message):
    monkeypatch.setattr(foreign_networks, "infer_model_size", lambda state: "small")
    write_six_files(fitted, tmp_path / "six")
    torch.save(value, tmp_path / "six" / name)
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "six", CPU)


def test_medium_six_files_are_recognised(tmp_path):
    model = EfficientAD("medium")
    write_six_files(model, tmp_path / "six")
    loaded = load_model(tmp_path / "six", CPU)
    assert loaded.model_size == "medium"
    assert_equal_models(loaded, model)


class Dangerous:
    """Pickles into a call that leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("as_zip", [True, False])
def test_pickled_code_is_refused_and_not_run(tmp_path, as_zip):
    trace = tmp_path / "trace"
    if as_zip:
        torch.save(Dangerous(trace), tmp_path / "model.pt")
        assert zipfile.is_zipfile(tmp_path / "model.pt")
    else:
        (tmp_path / "model.pt").write_bytes(pickle.dumps(Dangerous(trace), protocol=2))
    with pytest.raises(UserError, match="model.pt holds pickled Python objects.*state_dict"):
        load_model(tmp_path, CPU)
    assert not trace.exists()


CALIBRATION = {
    "scores": (1.0, 2.0, 3.0, 4.0),
    "target_fpr": 0.1,
    "threshold": 5.0,
    "rate_interval": (0.0, 0.4),
    "extrapolated": True,
}


def change_contents(path, change):
    contents = torch.load(path, weights_only=True)
    change(contents)
    torch.save(contents, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="other"), "not a detector saved by train.py"),
        (lambda c: c.update(version=99), "newer version"),
        (lambda c: c.pop("config"), "is damaged"),
        (lambda c: c["config"].update(model_size="huge"), "is damaged"),
        (lambda c: c["state_dict"].pop("teacher_mean"), "its layers have other names"),
        (lambda c: c["state_dict"].update(teacher_mean=torch.zeros(3)), r"shape \(3,\)"),
        (
            lambda c: c["state_dict"]["student.1.bias"].fill_(float("nan")),
            "student.1.bias has values that are not finite",
        ),
        (lambda c: c["state_dict"]["quantiles"].fill_(0.5), "statistics are degenerate"),
        (lambda c: c.update(version="2"), "its version is '2'"),
        (lambda c: c.update(state_dict=[1]), "holds no state_dict"),
        (lambda c: c["state_dict"].update(teacher_mean=7), "holds no state_dict of a network, but something else"),
        (
            lambda c: c["state_dict"].update(teacher_mean=torch.zeros(1, 384, 1, 1, dtype=torch.complex64)),
            "tensors of a kind that no detector or teacher has",
        ),
        (lambda c: c["config"].update(more=1), "unexpected keyword"),
        (lambda c: c["config"].pop("view"), "missing 1 required positional argument: 'view'"),
        (lambda c: c["config"].update(view=[256, 256]), r"view is \[256, 256\]"),
        (lambda c: c["config"].update(view=torch.zeros(2)), r"view is tensor\(\[0., 0.\]\)"),
        (lambda c: c["config"]["view"].pop("roi"), "'roi'"),
        (lambda c: c["config"]["view"].update(size=[256, 255]), "nearest: 252 and 256"),
        (lambda c: c["config"]["view"].update(size=[10**9, 64]), "at most 178,956,970 pixels"),
        (lambda c: c["config"]["view"].update(ignored="AAAA"), "mask of what is ignored is damaged"),
        (lambda c: c["config"].update(border="black"), "border is 'black'"),
        (lambda c: c["config"].update(border=torch.zeros(0)), r"border is tensor\(\[\]\)"),
        (lambda c: c["config"].update(memory_patches=-1), "memory_patches is -1"),
        (lambda c: c["config"].update(memory_patches=10**12), "memory_patches is 1000000000000"),
        (lambda c: c["config"].update(memory_patches="5"), "memory_patches is 5"),
        (lambda c: c["config"].update(memory_patches=True), "memory_patches is True"),
        (lambda c: c["config"].update(memory_patches=5), r"memory has shape \(0, 384\), not \(5, 384\)"),
        (
            lambda c: c["state_dict"].update(memory=torch.zeros(3, 384)),
            r"memory has shape \(3, 384\), not \(0, 384\)",
        ),
        (lambda c: c["state_dict"].update(memory=torch.zeros(3)), r"memory has shape \(3,\), not"),
        (lambda c: c["state_dict"].pop("memory"), "its layers have other names"),
        (lambda c: c["config"].update(has_student=False), "neither a student nor a memory"),
        (lambda c: c["config"].update(has_student=False, memory_patches=5), "its layers have other names"),
        (lambda c: c["config"].update(has_student="no"), "has_student is 'no'"),
        (lambda c: c["config"].update(has_global_score=1), "has_global_score is 1"),
        (lambda c: c["config"].update(has_global_score=None), "has_global_score is None"),
        (lambda c: c["config"].update(has_global_score=True), "its layers have other names"),
        (lambda c: c["state_dict"].update(map_weights=torch.ones(2)), r"map_weights has shape \(2,\)"),
        (lambda c: c["state_dict"].update(quantiles=torch.ones(2, 2)), r"quantiles has shape \(2, 2\)"),
        (lambda c: c.update(calibration={}), "missing"),
        (lambda c: c.update(calibration={**CALIBRATION, "threshold": float("nan")}), "not one of finite numbers"),
        (lambda c: c.update(calibration={**CALIBRATION, "threshold": 1e39}), "not one of finite numbers"),
        (lambda c: c.update(calibration={**CALIBRATION, "threshold": 5}), "not one of finite numbers"),
        (lambda c: c.update(calibration={**CALIBRATION, "scores": [4.0, 3.0, 2.0, 1.0]}), "do not ascend"),
        (lambda c: c.update(calibration={**CALIBRATION, "scores": []}), "fewer than 4 scores"),
        (lambda c: c.update(calibration={**CALIBRATION, "target_fpr": 0.0}), "rates .* not between 0 and 1"),
        (lambda c: c.update(calibration={**CALIBRATION, "rate_interval": [0.4, 0.1]}), "rates .* not between"),
        (lambda c: c.update(calibration={**CALIBRATION, "extrapolated": 1}), "whether it is extrapolated"),
        (lambda c: c.update(calibration={**CALIBRATION, "left_out": 5}), "more images left out than scores"),
        (lambda c: c.update(calibration={**CALIBRATION, "left_out": -1}), "more images left out than scores"),
        (lambda c: c.update(calibration={**CALIBRATION, "left_out": 1.0}), "how many images were left out"),
        (lambda c: c.update(calibration={**CALIBRATION, "left_out": True}), "how many images were left out"),
        (lambda c: c.update(calibration=[1]), "the calibration is no dict"),
        (lambda c: c.update(training=[1, 2]), "does not say how it was trained"),
        (lambda c: c.update(training={"steps": torch.zeros(3)}), "not in plain values"),
        (lambda c: c.update(training={"dataset": [1]}), "not in plain values"),
        (lambda c: c.update(training={1: 2}), "not in plain values"),
        (lambda c: c.update(versions=[1]), "its versions are not texts"),
        (lambda c: c.update(versions={"torch": 2}), "its versions are not texts"),
        (lambda c: c.update(calibration={**CALIBRATION, "scores": [1.0, "2"]}), "not one of finite numbers"),
    ],
)
def test_model_files_that_are_refused(fitted, tmp_path, change, message):
    save_model(fitted, tmp_path / "model.pt", {})
    change_contents(tmp_path / "model.pt", change)
    with pytest.raises(UserError, match=message) as raised:
        load_model(tmp_path, CPU)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("levels", torch.tensor([(10.0, 20.0), (30.0, 15.0), (0.25, 1.5)]), "statistics are degenerate"),
        ("levels", torch.tensor([(10.0, 20.0), (15.0, 30.0), (1.5, 1.5)]), "statistics are degenerate"),
        ("peak", torch.tensor(-1.0), "statistics are degenerate"),
        ("peak", torch.tensor(float("nan")), "global_score.peak has values that are not finite"),
        ("whitening", torch.full((2, 256, 256), float("inf")), "global_score.whitening has values that are not"),
        ("levels", torch.ones(2, 2), r"global_score.levels has shape \(2, 2\), not \(3, 2\)"),
        ("peak", torch.ones(1), r"global_score.peak has shape \(1,\), not \(\)"),
        ("basis", torch.ones(384, 32), r"global_score.basis has shape \(384, 32\)"),
        ("mean", torch.ones(1), r"global_score.mean has shape \(1,\)"),
        ("mean", None, "its layers have other names"),
    ],
)
def test_global_scores_that_are_refused(overall, tmp_path, name, value, message):
    save_model(overall, tmp_path / "model.pt", {})
    contents = torch.load(tmp_path / "model.pt", weights_only=True)
    del contents["state_dict"][f"global_score.{name}"]
    if value is not None:
        contents["state_dict"][f"global_score.{name}"] = value
    torch.save(contents, tmp_path / "model.pt")
    with pytest.raises(UserError, match=message) as raised:
        load_model(tmp_path, CPU)
    assert "\n" not in str(raised.value)


def test_a_global_score_that_is_not_announced_is_refused(overall, tmp_path):
    save_model(overall, tmp_path / "model.pt", {})
    change_contents(tmp_path / "model.pt", lambda contents: contents["config"].update(has_global_score=False))
    with pytest.raises(UserError, match="its layers have other names"):
        load_model(tmp_path, CPU)


def test_files_that_are_no_model(fitted, tmp_path):
    with pytest.raises(UserError, match="does not exist; train first"):
        load_model(tmp_path / "nowhere", CPU)
    with pytest.raises(UserError, match="holds no model.pt; train first"):
        load_model(tmp_path, CPU)
    path = tmp_path / "model.pt"
    path.write_text("just text")
    with pytest.raises(UserError, match="is not a torch file, or damaged"):
        load_model(tmp_path, CPU)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="model.pt is not a torch file"):
        load_model(tmp_path, CPU)
    save_model(fitted, path, {})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="model.pt is not a torch file"):
        load_model(tmp_path, CPU)
    path.rename(tmp_path / "net.ckpt")
    with pytest.raises(UserError, match="net.ckpt is not a folder; .*efficientad.convert --input .*net.ckpt --im"):
        load_model(tmp_path / "net.ckpt", CPU)


@pytest.mark.parametrize("way", ["compressed", "overlapping"])
def test_files_that_would_swell_in_memory_are_refused(fitted, tmp_path, monkeypatch, way):
    """torch stores plainly, one thing after the other; a small file that claims a lot is not even opened."""
    fitted.teacher[1].weight.zero_()
    save_model(fitted, tmp_path / "whole.pt", {})
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "model.pt", "w") as bomb:
        for entry in whole.infolist():
            kind = zipfile.ZIP_DEFLATED if way == "compressed" else zipfile.ZIP_STORED
            bomb.writestr(entry.filename, whole.read(entry), compress_type=kind)
        if way == "compressed":
            bomb.writestr("archive/data/99", bytes(10_000_000), compress_type=zipfile.ZIP_DEFLATED)
        else:
            largest = max(bomb.filelist, key=lambda entry: entry.file_size)
            bomb.filelist += [copy.copy(largest) for _ in range(20)]

    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("was opened"))
    with pytest.raises(UserError, match="claims to hold more than its size"):
        load_model(tmp_path, CPU)


def as_version(path, version):
    """The model file as before the global score, views, the memory, or the weights of the maps, too."""
    contents = torch.load(path, weights_only=True)
    state, config = contents["state_dict"], contents["config"]
    del config["has_global_score"]
    if contents["calibration"]:
        del contents["calibration"]["left_out"]
    if version < 4:
        del config["view"], config["border"]
        config["image_size"] = 256
    if version < 3:
        del state["memory"], config["has_student"], config["memory_patches"]
        state["quantiles"] = state["quantiles"][:2].clone()
        state["map_weights"] = torch.tensor([0.875, 0.125])
    if version == 1:
        del state["map_weights"], contents["calibration"]
    torch.save({**contents, "version": version}, path)


@pytest.mark.parametrize(
    ("version", "weights"),
    [
        (1, [0.5, 0.5, 0.0]),
        (2, [0.875, 0.125, 0.0]),
        (3, [0.25, 0.25, 0.5]),
        (4, [0.25, 0.25, 0.5]),
        (5, [0.25, 0.25, 0.5]),
    ],
)
def test_a_model_file_of_an_older_version_answers_as_before(fitted, tmp_path, version, weights):
    fitted.calibration = Calibration(**CALIBRATION)
    if version >= 3:
        fitted.memory, fitted.memory_weights = torch.rand(9, 384).half().float(), torch.rand(9)
    fitted.map_weights.copy_(torch.tensor(weights))
    save_model(fitted, tmp_path / "model.pt", {})
    as_version(tmp_path / "model.pt", version)
    loaded = load_model(tmp_path, CPU)
    assert loaded.map_weights.tolist() == weights and torch.equal(loaded.memory, fitted.memory)
    assert (loaded.view, loaded.border) == (View(), NO_BORDER)
    # Before, the threshold was for another score
    assert loaded.calibration == (Calibration(**CALIBRATION) if version >= 3 else None)
    assert loaded.global_score is None
    image = torch.rand(1, 3, 256, 256)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(image)[:, 0], reference.anomaly_maps(fitted, image), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("quantiles"), "its layers have other names"),
        (lambda state: state.update(quantiles=torch.zeros(2)), "quantiles has shape"),
        (lambda state: state.update(quantiles=torch.zeros(2, 5)), "quantiles has shape"),
        (lambda state: state.update(quantiles=torch.tensor(1.0)), "quantiles has shape"),
        (lambda state: state.update(map_weights=torch.tensor(1.0)), "map_weights has shape"),
        (lambda state: state.update(map_weights=torch.zeros(2, 2)), "map_weights has shape"),
    ],
)
def test_a_damaged_model_file_of_an_older_version_is_refused(fitted, tmp_path, version, change, message):
    save_model(fitted, tmp_path / "model.pt", {})
    as_version(tmp_path / "model.pt", version)
    change_contents(tmp_path / "model.pt", lambda contents: change(contents["state_dict"]))
    with pytest.raises(UserError, match=message):
        load_model(tmp_path, CPU)


def test_older_versions_had_no_view(fitted, tmp_path):
    save_model(fitted, tmp_path / "model.pt", {})
    as_version(tmp_path / "model.pt", 3)
    change_contents(tmp_path / "model.pt", lambda contents: contents["config"].update(border=MIRROR))
    with pytest.raises(UserError, match="unexpected keyword argument 'border'"):
        load_model(tmp_path, CPU)


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("size", [512, "256", True, None, 10**9, torch.zeros(2)])
def test_older_versions_had_one_size(fitted, tmp_path, version, size):
    save_model(fitted, tmp_path / "model.pt", {})
    as_version(tmp_path / "model.pt", version)
    change_contents(tmp_path / "model.pt", lambda contents: contents["config"].update(image_size=size))
    with pytest.raises(UserError, match="image_size is"):
        load_model(tmp_path, CPU)
