"""Nothing that lies in an output folder leads writing or removing out of it, or to files of the user's."""

import json
import os

import pytest

from efficientad.system.errors import UserError
from efficientad.system.files import (
    FILE_LIST,
    atomic_file,
    claim_files,
    file_below,
    fitting_name,
    part_of,
    release_files,
    write_file_list,
    write_text_atomically,
    written_files,
)
from efficientad.system.runs import LOCK_FILE, lock_folder, lock_output
from efficientad.system.saving import CsvLog


@pytest.fixture
def mine(tmp_path):
    """A folder of the user's with a file in it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.tiff").write_text("mine")
    return tmp_path / "mine"


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def run(folder, names):
    """What a command does: claim, write, release."""
    with lock_folder(folder):
        stale = claim_files(folder, names)
        for name in names:
            write_text_atomically(folder / name, "result")
        release_files(folder, stale, names)


def test_the_output_folder_may_be_a_link_or_lie_below_one(tmp_path, out):
    (tmp_path / "link").symlink_to(out)
    run(tmp_path / "link", ["good/a.tiff"])
    run(tmp_path / "link" / "deep" / "er", ["good/a.tiff"])
    assert (out / "good" / "a.tiff").exists() and (out / "deep" / "er" / "good" / "a.tiff").exists()


@pytest.mark.parametrize("link", ["good", "a.tiff", "deep/er", FILE_LIST, LOCK_FILE, "dangling.csv"])
def test_a_link_in_the_way_is_refused_and_stays(mine, out, link):
    (out / "deep").mkdir()
    target = {"good": mine, "deep/er": mine, "dangling.csv": mine / "new"}.get(link, mine / "a.tiff")
    (out / link).symlink_to(target)
    with pytest.raises(UserError, match=rf"out/{link} is a link") as raised:
        run(out, ["good/a.tiff", "a.tiff", "deep/er/a.tiff", "dangling.csv"])
    assert "\n" not in str(raised.value)
    assert contents(mine) == {"a.tiff": "mine"} and (out / link).is_symlink()
    assert not (out / LOCK_FILE).is_file() or link == LOCK_FILE


@pytest.mark.parametrize("link", ["good", "good/a.tiff"])
def test_a_list_removes_nothing_through_links(mine, out, link):
    """As where somebody has moved the results away and left a link."""
    run(out, ["good/a.tiff", "scores.csv"])
    (out / "good" / "a.tiff").unlink()
    if link == "good":
        (out / "good").rmdir()
    (out / link).symlink_to(mine if link == "good" else mine / "a.tiff")
    with pytest.raises(UserError, match=f"{link} is a link"):
        run(out, ["scores.csv"])
    with pytest.raises(UserError, match=f"{link} is a link"):
        release_files(out, {"good/a.tiff"}, ["scores.csv"])
    assert contents(mine) == {"a.tiff": "mine"} and (out / link).is_symlink()


def test_a_link_that_appears_while_files_are_written_is_refused(mine, out):
    assert file_below(out, "maps/sub/a.jpg") == out / "maps" / "sub" / "a.jpg" and (out / "maps" / "sub").is_dir()
    (out / "maps" / "other").symlink_to(mine)
    with pytest.raises(UserError, match="maps/other is a link"):
        file_below(out, "maps/other/b.jpg")


@pytest.mark.parametrize(
    "text",
    [
        '["../mine/a.tiff"]',
        '["good/../../mine/a.tiff"]',
        '["/etc/passwd"]',
        '["a\\u0000b"]',
        '["\\ud800"]',
        '["."]',
        '[""]',
        '["good//a"]',
        json.dumps(["a/" * 500 + "a"]),
        "[" * 100_000,
        "[1]",
        '{"a.tiff": 1}',
        "null",
        "{broken",
    ],
)
def test_a_list_of_anything_but_paths_below_is_refused(mine, out, text):
    (out / FILE_LIST).write_text(text)
    with pytest.raises(UserError, match="written_files.json is damaged") as raised:
        run(out, ["scores.csv"])
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300
    assert contents(mine) == {"a.tiff": "mine"} and contents(out) == {FILE_LIST: text}


def test_a_list_may_hold_any_name_of_a_file(out):
    names = ["good/\udcff\n.tiff", "a\\b", "..a", "ä/'\"", "-"]
    write_file_list(out, names)
    assert written_files(out) == set(names)
    deep = fitting_name("d/" * 300 + "a.tiff")
    run(out, [deep])
    assert written_files(out) == {deep}


def test_a_temporary_file_is_always_a_new_one(mine, out):
    """It may be a link, or another name of a file elsewhere, or left by a killed run."""
    part = part_of(out / "scores.csv")
    part.symlink_to(mine / "a.tiff")
    with pytest.raises(UserError, match=r"\.scores\.csv\.part is in the way"):
        write_text_atomically(out / "scores.csv", "result")
    assert part.is_symlink() and contents(mine) == {"a.tiff": "mine"}
    part.unlink()
    os.link(mine / "a.tiff", part)
    write_text_atomically(out / "scores.csv", "result")
    part.write_text("half")
    write_text_atomically(out / "scores.csv", "result")
    assert contents(mine) == {"a.tiff": "mine"} and contents(out) == {"scores.csv": "result"}
    with pytest.raises(KeyboardInterrupt), atomic_file(out / "scores.csv"):
        raise KeyboardInterrupt
    assert contents(out) == {"scores.csv": "result"}


def test_what_killed_runs_left_goes_and_what_is_the_users_stays(out):
    claim_files(out, ["scores.csv", "good/a.tiff"])
    for name in ("scores.csv", "good/a.tiff"):
        part_of(out / name).write_text("half")
        (out / f"{name}.part").write_text("mine")
    run(out, ["scores.csv"])
    assert contents(out) == {
        "scores.csv": "result",
        "scores.csv.part": "mine",
        "good/a.tiff.part": "mine",
        FILE_LIST: (out / FILE_LIST).read_text(),
    }


@pytest.mark.parametrize("text", ["mine", "process 1 of mine\n", "\n\n"])
def test_a_lock_file_of_the_users_is_neither_used_nor_removed(out, text):
    (out / LOCK_FILE).write_text(text)
    with pytest.raises(UserError, match=r"\.lock, which no run has left, is in the way .* another --output_dir"):
        run(out, ["scores.csv"])
    (out / f".d.onnx{LOCK_FILE}").write_text(text)
    with (
        pytest.raises(UserError, match="which no run has left, .* another --output$"),
        lock_output(out / "d.onnx", "--output"),
    ):
        pass
    assert contents(out) == {LOCK_FILE: text, f".d.onnx{LOCK_FILE}": text}


def test_an_empty_lock_file_may_be_the_users_so_it_stays(out):
    (out / LOCK_FILE).touch()
    with lock_folder(out), pytest.raises(UserError, match="in use by another run"), lock_folder(out):
        pass
    assert contents(out) == {LOCK_FILE: ""}


def test_a_pipe_in_place_of_the_lock_file_is_refused_at_once(out):
    os.mkfifo(out / LOCK_FILE)
    with pytest.raises(UserError, match="is a link or no file"):
        run(out, ["scores.csv"])


def test_a_log_is_not_continued_through_a_link(mine, out):
    log = CsvLog(out / "log.csv", ["step"])
    log.add([1])
    (out / "log.csv").rename(mine / "log.csv")
    before = contents(mine)
    (out / "log.csv").symlink_to(mine / "log.csv")
    with pytest.raises(OSError, match="log.csv"):
        log.add([2])
    assert contents(mine) == before


def test_a_name_that_must_be_a_file_and_a_folder_is_refused_before_any_work(out):
    for names in (["scores.csv/a.tiff", "scores.csv"], [f"{FILE_LIST}/a.tiff"], ["a.tiff/b/c.tiff", "a.tiff"]):
        with pytest.raises(UserError, match="would have to be a file of the results and the folder of others"):
            claim_files(out, names)
    assert contents(out) == {}


def test_a_folder_in_place_of_a_result_is_refused_or_left(out):
    run(out, ["a.tiff", "scores.csv"])
    (out / "a.tiff").unlink()
    (out / "a.tiff").mkdir()
    (out / "a.tiff" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="will not be replaced, a.tiff for one"):
        run(out, ["a.tiff", "scores.csv"])
    run(out, ["scores.csv"])
    assert (out / "a.tiff" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["a.jpg", "x" * 245 + ".jpg", "é" * 122 + ".jpg", "s/" * 100 + "a.jpg"])
def test_names_that_fit_stay(name):
    assert fitting_name(name) == name


def test_longer_names_are_shortened_and_stay_apart(out):
    names = [
        f"good/{letter * count}{end}.png.jpg"
        for letter in ("x", "é", "\udcff")
        for count in (250, 251)
        for end in "ab"
    ]
    names += ["/".join(["s" * 200] * 20 + [name]) for name in ("a.jpg", "b.jpg")]
    names += ["maps/" + "d/" * 200 + "a.jpg"]
    short = [fitting_name(name) for name in names]
    assert len(set(short)) == len(names) and all(name.endswith(".jpg") for name in short)
    assert all(name.split("/")[0] in ("good", "s" * 200, "maps") for name in short)
    run(out, short)
    run(out, [])
    assert contents(out).keys() == {FILE_LIST}
