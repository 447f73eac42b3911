"""The pages: their commands parse, their flags and links exist, and the first one is short."""

import re
import shlex
from pathlib import Path

import pytest

import efficientad.benchmark
import efficientad.convert
import efficientad.export
import efficientad.predict
import efficientad.pretrain
import eval as eval_script
import make_sample
import prepare_dataset as prepare_script
import train as train_script

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "dataset/README.md", "efficientad/README.md", "efficientad/weights/README.md"]
COMMANDS = {
    "dataset/make_sample.py": make_sample,
    "prepare_dataset.py": prepare_script,
    "train.py": train_script,
    "eval.py": eval_script,
    "efficientad.pretrain": efficientad.pretrain,
    "efficientad.predict": efficientad.predict,
    "efficientad.export": efficientad.export,
    "efficientad.benchmark": efficientad.benchmark,
    "efficientad.convert": efficientad.convert,
}
OTHERS_FLAGS = {"--nproc_per_node"}  # torchrun's
OTHERS_FLAGS |= {"--anomaly_maps_dir", "--dataset_base_dir", "--object_name"}  # of MVTec's evaluators
TRTEXEC_FLAGS = {"--onnx", "--stronglyTyped", "--minShapes", "--optShapes", "--maxShapes", "--saveEngine"}
LINK = re.compile(r"\]\(([^)\s]+)\)")


def read_page(page):
    return (ROOT / page).read_text(encoding="utf-8")


def commands_of(page):
    """The name and the words of every command line of the page."""
    lines = read_page(page).replace("\\\n", " ")
    found = re.findall(r"^    (?:python|torchrun \S+)(?: -m)? +(\S+)(?: +(.+))?$", lines, flags=re.MULTILINE)
    return [(name, shlex.split(words)) for name, words in found if name in COMMANDS]


def anchors_of(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", read_page(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_commands_on_the_pages_parse(page):
    commands = commands_of(page)
    assert commands
    for name, words in commands:
        COMMANDS[name].get_parser().parse_args(words)


def test_the_first_page_shows_the_whole_way_and_is_short():
    names = [name for name, _ in commands_of("README.md")]
    way = ["prepare_dataset.py", "train.py", "eval.py", "efficientad.predict"]
    assert list(dict.fromkeys(names)) == way
    assert len(read_page("README.md").splitlines()) <= 250


@pytest.mark.parametrize("page", PAGES)
def test_flags_on_the_pages_exist(page):
    known = {
        option
        for command in COMMANDS.values()
        for action in command.get_parser()._actions
        for option in action.option_strings
    }
    named = set(re.findall(r"(?<![\w-])--[a-z]\w*", read_page(page)))
    assert named - OTHERS_FLAGS - TRTEXEC_FLAGS <= known


@pytest.mark.parametrize("page", PAGES)
def test_links_on_the_pages_lead_somewhere(page):
    folder = (ROOT / page).parent
    for link in LINK.findall(read_page(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (folder / path).resolve() if path else (ROOT / page)
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target.relative_to(ROOT)), link


def test_the_map_of_the_code_is_complete():
    """Every wing is followed by exactly its modules."""
    tree = read_page("efficientad/README.md").split("## The code\n")[1]
    for wing in (path.parent for path in (ROOT / "efficientad").glob("*/__init__.py")):
        part = re.search(rf"^        {wing.name}/.*\n((?: {{12}}.*\n)*)", tree, flags=re.MULTILINE)[1]
        modules = {path.name for path in wing.glob("*.py")} - {"__init__.py"}
        assert set(re.findall(r"\w+\.py", part)) == modules, wing.name
