"""The order of the modules, and start-up without heavy imports."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import efficientad.benchmark as benchmark_module
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
}

# A module imports only from the layers above its own line.
LAYERS = [
    layer.split()
    for layer in (
        "atomic_file drawn errors",
        "arguments augmentation calibration csv_file curves distributed host_memory images locks muon "
        "output_layer parallel recipes signals step_graph",
        "coco device map_spool maps measuring metrics networks pixel_metrics regions sweep torch_file",
        "backbone_weights bad_files categories",
        "backbones checkpoint datasets exported pictures sources staging stored_images teacher_answers tensors "
        "training_chart",
        "distillation exportable image_cache image_set losses masks prepare resuming runtimes",
        "inference initialization localization memory natural normalization outputs preview report training_log",
        "category_summary exporting html_report parity pretraining_data progress results scoring",
        "training",
        "evaluation_run pretraining training_options watching workloads",
        "training_run",
        "benchmark export predict pretrain",
    )
]


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "efficientad":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("efficientad."):
            yield node.module.split(".")[1]


def test_every_module_has_a_layer():
    modules = {path.stem for path in (ROOT / "efficientad").glob("*.py")} - {"__init__"}
    assert modules == {name for layer in LAYERS for name in layer}


@pytest.mark.parametrize("layer", range(len(LAYERS)))
def test_modules_import_only_from_lower_layers(layer):
    below = {name for names in LAYERS[:layer] for name in names}
    for name in LAYERS[layer]:
        assert set(imported_modules(ROOT / "efficientad" / f"{name}.py")) <= below, name


def test_modules_stay_readable():
    for path in [*ROOT.glob("*.py"), *(ROOT / "efficientad").glob("*.py")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 320, path


@pytest.mark.parametrize(
    "script",
    [
        "train.py",
        "eval.py",
        "prepare_dataset.py",
        "efficientad/pretrain.py",
        "efficientad/predict.py",
        "efficientad/benchmark.py",
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
    for flag, status in (("--help", 0), ("--no_such_flag", 2)):
        done = subprocess.run([sys.executable, "-c", code, flag], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        name = script if "/" not in script else f"python -m efficientad.{Path(script).stem}"
        assert "usage: " + name in done.stdout + done.stderr


@pytest.mark.parametrize("page", ["README.md", "dataset/README.md"])
def test_commands_in_the_readme_are_understood(page):
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^    python (?:-m efficientad\.)?(\w+)(?:\.py)? +(.+)$", text, flags=re.MULTILINE)
    assert {"train", "eval"} <= {name for name, _ in commands} <= set(COMMANDS)
    for name, words in commands:
        COMMANDS[name].get_parser().parse_args(shlex.split(words))


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_that_the_readme_explains_exist(command):
    name = f"{command}.py" if command in SCRIPTS else command
    section = (ROOT / "README.md").read_text(encoding="utf-8").split(f"### The flags of {name} ")[1]
    flags = set(re.findall(r"`(--?[a-z_A-Z]+)`", section.split("\n## ")[0].split("\n### ")[0].split("`--help`")[0]))
    known = {option for action in COMMANDS[command].get_parser()._actions for option in action.option_strings}
    assert flags and flags <= known
