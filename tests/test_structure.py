"""The order of the modules, and start-up without heavy imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import efficientad.benchmark as benchmark_module
import efficientad.convert as convert_module
import efficientad.export as export_module
import efficientad.predict as predict_module
import efficientad.pretrain as pretrain_module
import eval as eval_script
import prepare_dataset as prepare_script
import train as train_script

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"prepare_dataset": prepare_script, "train": train_script, "eval": eval_script}
COMMANDS = {
    **SCRIPTS,
    "pretrain": pretrain_module,
    "predict": predict_module,
    "export": export_module,
    "benchmark": benchmark_module,
    "convert": convert_module,
}

# Which wings the modules of a wing may import; those of its own wing always.
WINGS = {
    "system": "",
    "data": "system",
    "preparation": "data system",
    "detector": "data system",
    "training": "detector data system",
    "pretraining": "detector data system",
    "inference": "detector data system",
    "evaluation": "inference detector data system",
    "benchmarking": "evaluation inference pretraining training detector data system",
}
PACKAGE = ROOT / "efficientad"


def imported_wings(path):
    """The folders (and files) right below efficientad/ from which a module imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "efficientad":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("efficientad."):
            yield node.module.split(".")[1]


def test_every_module_is_in_a_wing():
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert folders == set(WINGS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", *COMMANDS} - set(SCRIPTS)


@pytest.mark.parametrize("wing", WINGS)
def test_wings_import_only_what_they_may(wing):
    for path in (PACKAGE / wing).glob("*.py"):
        assert set(imported_wings(path)) <= {wing, *WINGS[wing].split()}, path


def test_modules_stay_readable():
    for path in [*ROOT.glob("*.py"), *PACKAGE.rglob("*.py")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 320, path


@pytest.mark.parametrize(
    "script",
    [
        "train.py",
        "eval.py",
        "prepare_dataset.py",
        "efficientad/pretrain.py",
        "efficientad/predict.py",
        "efficientad/export.py",
        "efficientad/benchmark.py",
        "efficientad/convert.py",
    ],
)
def test_help_and_flag_errors_import_nothing_heavy(script):
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{script!r}, *sys.argv[1:]]\n"
        "sys.path.insert(0, '.')\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    status = end.code\n"
        "assert not {'torch', 'numpy', 'sklearn', 'PIL'} & set(sys.modules), 'heavy import'\n"
        "sys.exit(status)\n"
    )
    name = script if "/" not in script else f"python -m efficientad.{Path(script).stem}"
    for flag, status in (("--help", 0), ("--no_such_flag", 2)):
        done = subprocess.run([sys.executable, "-c", code, flag], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        if status:
            assert re.fullmatch(re.escape(f"{name}: error: ") + ".+; see --help\n", done.stdout + done.stderr)
        else:
            assert done.stdout.startswith(f"usage: {name} ")
