"""Generated images, data sets of every layout, and a tiny detector that trains in milliseconds."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from browser import Browser, find_programs
from commands import train
from efficientad.data.ignored import read_ignored
from efficientad.detector import networks
from efficientad.detector.model import EfficientAD
from efficientad.system import progress_bars
from efficientad.system.errors import run_command
from reports import ROWS, make_report

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA GPU")
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(skip)


def draw_part(seed, defective=False, size=(60, 40)):
    """A striped part with some noise; a defect is a bright blob."""
    rng = np.random.default_rng(seed)
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    gray = 90 + 40 * np.sin(columns / 3) + rng.normal(0, 4, columns.shape)
    if defective:
        x, y = rng.integers(10, 30, 2)
        gray[y - 6 : y + 6, x - 6 : x + 6] = 250
    rgb = np.stack([gray, 0.9 * gray, 0.8 * gray], axis=-1)
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))


def png_bytes(seed):
    buffer = io.BytesIO()
    draw_part(seed).save(buffer, "png")
    return buffer.getvalue()


def mask_of(tmp_path, size, *white):
    """The mask that ignores these boxes."""
    mask = Image.new("L", size)
    for box in white:
        mask.paste(255, box)
    mask.save(tmp_path / "mask.png")
    return read_ignored(tmp_path / "mask.png")


def fill_folder(folder, count, seed=0, defective=False, suffix=".png"):
    folder.mkdir(parents=True)
    for index in range(count):
        draw_part(seed + index, defective).save(folder / f"{index:03d}{suffix}")


def make_dataset(root, train=10, test=None):
    """root/train/good and root/test/<class>; test maps class names to counts."""
    fill_folder(root / "train" / "good", train)
    test = {"good": 3, "defect_type_1": 2, "defect_type_2": 2} if test is None else test
    for number, (name, count) in enumerate(test.items(), start=1):
        fill_folder(root / "test" / name, count, seed=1000 * number, defective=name != "good")
    return root


def fail(monkeypatch, capsys, script, *words):
    """Run the command to its exit status 2 and return the one line that it prints."""
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words)])
    with pytest.raises(SystemExit) as raised:
        run_command(script.main, script.get_parser())
    assert raised.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error[error.index("error: ") :]


@pytest.fixture
def dataset_folder(tmp_path):
    return make_dataset(tmp_path / "parts")


def write_six_files(model, folder):
    """What other EfficientAD scripts leave of a training."""
    folder.mkdir()
    for name in ("teacher", "student", "autoencoder"):
        torch.save(model.get_submodule(name).state_dict(), folder / f"{name}_final.pth")
    torch.save(model.teacher_mean, folder / "teacher_mean.pt")
    torch.save(model.teacher_std, folder / "teacher_std.pt")
    (st_start, st_end), (ae_start, ae_end), _ = model.quantiles
    quantiles = {"q_st_start": st_start, "q_st_end": st_end, "q_ae_start": ae_start, "q_ae_end": ae_end}
    torch.save(quantiles, folder / "quantiles.pt")


def tiny_pdn(model_size, out_channels):
    """Same input, output size, stride and last layer as a PDN, without its work."""
    if model_size not in ("small", "medium"):
        raise ValueError(model_size)
    return nn.Sequential(nn.AvgPool2d(33, 4), nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, out_channels, 1))


def tiny_autoencoder(grid=(56, 56)):
    """Its last four layers are those of the real one, with fewer channels."""
    trunk = [nn.AvgPool2d(2), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Dropout(0.2)]
    tail = [nn.Upsample(size=grid, mode="bilinear"), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*trunk, *tail, nn.Conv2d(8, 384, 3, padding=1))


@pytest.fixture
def tiny_networks(monkeypatch):
    """EfficientAD is built of tiny networks."""
    monkeypatch.setattr(networks, "build_pdn", tiny_pdn)
    monkeypatch.setattr(networks, "build_autoencoder", tiny_autoencoder)


@pytest.fixture
def tiny_model(tiny_networks):
    torch.manual_seed(0)
    return EfficientAD().eval()


@pytest.fixture
def tiny_teacher(tiny_model, tmp_path):
    """A teacher file for train.py under tiny_networks."""
    path = tmp_path / "tiny_teacher.pth"
    torch.save(tiny_model.teacher.state_dict(), path)
    return path


@pytest.fixture
def output(tmp_path, dataset_folder, tiny_teacher):
    """A trained output folder of the custom set `dataset_folder`."""
    words = ["-d", "custom", "-c", dataset_folder, "-o", tmp_path / "out", "-w", tiny_teacher]
    train(*words, "--recipe", "paper", "-e", 1, "-b", 5)
    return tmp_path / "out"


@pytest.fixture
def terminal(monkeypatch):
    """Progress bars are drawn as on a terminal."""

    def draw(*args, disable, **more):
        return tqdm(*args, disable=bool(disable), **more)

    monkeypatch.setattr(progress_bars, "tqdm", draw)


@pytest.fixture
def shared_data():
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared data sets are not here")
    return SHARED_DATA


@pytest.fixture
def originals(tmp_path):
    """Three annotated images, one of them good, and ten good ones."""
    from originals import Originals  # imports this module

    made = Originals(tmp_path / "original")
    made.annotated("a.png", 1, 3)
    made.annotated("sub/b.png", 3, 12, 12)
    made.annotated("c.png", 1, 1)
    made.good(*(f"lot/{number}.png" for number in range(9)), "deep/er/x.PNG")
    return made


@pytest.fixture
def made(tmp_path):
    """Two annotated images of 60 x 40 with one speck of dust each, and three good ones."""
    from originals import Originals  # imports this module

    made = Originals(tmp_path / "original")
    made.annotated("a.png", 3)
    made.annotated("b.png", 3)
    made.good("1.png", "2.png", "3.png")
    return made


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    programs = find_programs()
    if programs is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    try:
        opened = Browser(programs, tmp_path_factory.mktemp("downloads"))
    except RuntimeError as error:
        pytest.skip(f"Chromium does not start here: {error}")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def report_file(tmp_path_factory):
    held_out = [20.0, 31.5, 42.0, 55.25, 71.0]
    return make_report(tmp_path_factory.mktemp("page"), ROWS, held_out=held_out, facts=[("Teacher", "small.pth")])


@pytest.fixture
def page(browser, report_file):
    browser.open(report_file)
    browser.run("localStorage.clear()")
    yield browser
    assert browser.console() == []
