"""What commands import, and what they leave alone until it is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import make_dataset
from efficientad.detector.checkpoint import save_model
from efficientad.detector.model import EfficientAD

ROOT = Path(__file__).resolve().parents[2]
# Packages, and parts of torch that it does not import itself
HEAVY = {
    *("jinja2", "matplotlib", "onnx", "onnxruntime", "onnxscript", "openvino", "pycocotools", "scipy", "sklearn"),
    *("timm", "torchvision", "torch._dynamo", "torch._inductor", "torch.onnx", "torch.optim"),
}


def run_python(code, *words):
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def memory_detector(tmp_path):
    """The folder of an untrained detector with a memory alone."""
    folder = tmp_path / "trained"
    folder.mkdir()
    save_model(EfficientAD(has_student=False, memory_patches=8), folder / "model.pt", {})
    return folder


@pytest.mark.parametrize("script", ["eval.py", "efficientad/predict.py"])
def test_scoring_imports_only_what_it_needs(script, memory_detector, tmp_path):
    """The report, masks and regions need more."""
    data = make_dataset(tmp_path / "parts", train=1, test={"good": 1, "dent": 1})
    words = ["--input", data / "test" / "good" / "000.png"]
    if script == "eval.py":
        words = ["--dataset", "custom", "--custom_dataset_path", data, "--no_report"]
    code = (
        "import runpy, sys, torch\n"
        "before = set(sys.modules)\n"
        "sys.path.insert(0, '.')\n"
        f"sys.argv[0] = {script!r}\n"
        "try:\n"
        f"    runpy.run_path({script!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 3, end.code\n"
        f"print('imported:', *sorted({HEAVY!r} & (set(sys.modules) - before)))\n"
    )
    done = run_python(code, *words, "--weights_dir", memory_detector, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"
    assert list((tmp_path / "out").rglob("scores.csv"))


def test_torch_is_kept_from_the_garbage_collector():
    code = (
        "import gc, sys\n"
        "from efficientad.system.startup import import_torch\n"
        "import_torch()\n"
        "count = gc.get_freeze_count()\n"
        "import_torch()\n"  # torch is there: what has been made since is no part of it
        "print('torch' in sys.modules, gc.isenabled(), count > 10_000, count == gc.get_freeze_count())\n"
    )
    done = run_python(code)
    assert done.stdout.split() == ["True"] * 4, done.stderr


def test_a_threshold_from_many_scores_needs_no_scipy_stats():
    code = (
        "import sys\n"
        "from efficientad.detector.calibration import calibrate\n"
        "assert not calibrate(range(200), 0.01).extrapolated\n"
        "print('scipy.special' in sys.modules, 'scipy.stats' in sys.modules)\n"
    )
    done = run_python(code)
    assert done.stdout.split() == ["True", "False"], done.stderr
