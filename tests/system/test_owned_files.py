from pathlib import Path

import pytest

from efficientad.data.datasets import Sample
from efficientad.evaluation.scoring import map_names
from efficientad.system.errors import UserError
from efficientad.system.files import FILE_LIST, adopt_files, claim_files, release_files


def samples(*names, class_name="good"):
    return [Sample(Path(class_name, name), class_name, name) for name in names]


def test_names_are_cut_at_the_last_dot_only():
    assert map_names(samples("a.1.jpg", "a.2.jpg"), ".tiff") == ["good/a.1.tiff", "good/a.2.tiff"]


def test_names_that_differ_in_the_suffix_stay_apart():
    names = map_names(samples("a.jpg", "a.png", "a.jpg.png", "B.PNG"), ".tiff")
    assert names == ["good/a.jpg.tiff", "good/a.png.tiff", "good/a.jpg.png.tiff", "good/B.PNG.tiff"]


def test_subfolders_and_classes_are_kept():
    both = [*samples("x/a.jpg", "y/a.jpg"), *samples("a.jpg", class_name="dent")]
    assert map_names(both, ".jpg") == ["good/x/a.jpg", "good/y/a.jpg", "dent/a.jpg"]


def evaluate(folder, names):
    """What eval.py does: claim, write, release."""
    stale = claim_files(folder, names)
    for name in names:
        (folder / name).write_text("map")
    release_files(folder, stale, names)


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {FILE_LIST}


def test_evaluating_again_leaves_no_stale_file(tmp_path):
    evaluate(tmp_path, ["good/a.tiff", "dent/b.tiff", "scores.csv"])
    evaluate(tmp_path, ["good/a.jpg", "scores.csv"])
    assert files_in(tmp_path) == {"good/a.jpg", "scores.csv"}
    assert not (tmp_path / "dent").exists()


def test_what_a_run_wrote_into_a_subfolder_is_adopted(tmp_path):
    evaluate(tmp_path / "test", ["good/a.tiff", "scores.csv"])
    (tmp_path / "test" / "mine.csv").write_text("mine")
    for _ in range(2):  # a run may be killed after it
        adopt_files(tmp_path, "test")
    evaluate(tmp_path, ["test/dent/a.tiff", "scores.csv"])
    assert files_in(tmp_path) == {"test/dent/a.tiff", "test/mine.csv", "scores.csv"}
    assert not (tmp_path / "test" / FILE_LIST).exists() and not (tmp_path / "test" / "good").exists()
    (tmp_path / "test" / "mine.csv").unlink()
    evaluate(tmp_path, ["scores.csv"])
    assert not (tmp_path / "test").exists()


def test_files_of_others_stay(tmp_path):
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "notes.txt").write_text("mine")
    (tmp_path / "good" / "z.tiff").write_text("mine")
    evaluate(tmp_path, ["good/a.tiff"])
    evaluate(tmp_path, ["scores.csv"])
    assert files_in(tmp_path) == {"good/notes.txt", "good/z.tiff", "scores.csv"}


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path):
    (tmp_path / "scores.csv").write_text("mine")
    with pytest.raises(UserError, match="holds 1 file not listed .*scores.csv"):
        claim_files(tmp_path, ["good/a.tiff", "scores.csv"])
    assert (tmp_path / "scores.csv").read_text() == "mine"


def test_an_interrupted_evaluation_is_cleaned_up_by_the_next(tmp_path):
    evaluate(tmp_path, ["good/a.tiff"])
    claim_files(tmp_path, ["good/a.jpg", "good/b.jpg"])
    (tmp_path / "good/a.jpg").write_text("half")  # and then the power failed
    evaluate(tmp_path, ["scores.csv"])
    assert files_in(tmp_path) == {"scores.csv"}


def test_the_list_cannot_point_outside(tmp_path):
    folder = tmp_path / "maps"
    folder.mkdir()
    (tmp_path / "precious.txt").write_text("mine")
    (folder / FILE_LIST).write_text(f'["../precious.txt", "{(tmp_path / "precious.txt").as_posix()}"]')
    with pytest.raises(UserError, match="written_files.json is damaged: it does not list files beside it"):
        evaluate(folder, ["scores.csv"])
    assert (tmp_path / "precious.txt").exists()


def test_a_damaged_list_is_named(tmp_path):
    (tmp_path / FILE_LIST).write_text("{broken")
    with pytest.raises(UserError, match="written_files.json is damaged"):
        claim_files(tmp_path, ["scores.csv"])
