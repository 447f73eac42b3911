"""CSV files that are safe to open: no formulas, always UTF-8, and read back as they were."""

import csv
import os

import pytest

from efficientad.system.files import csv_cell, write_csv


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1.png", "'=1+1.png"),
        ("+a", "'+a"),
        ("-a", "'-a"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\ta", "'\ta"),
        ("\ra", "'\ra"),
        ("'=a", "''=a"),  # so that no two names become one
        ("a=b", "a=b"),
        ("'a", "'a"),
        ("", ""),
        ("-22.5", "-22.5"),
        ("+1e-7", "+1e-7"),
        (-3.5, "-3.5"),
        (7, "7"),
        (os.fsdecode(b"\xe9\xff.png"), "\\udce9\\udcff.png"),
        ("\N{MICROSCOPE}é", "\N{MICROSCOPE}é"),
    ],
)
def test_cells(value, cell):
    assert csv_cell(value) == cell


def test_hostile_names_stay_in_their_cell(tmp_path):
    rows = [["a,b", 'quo"te', "line\nbreak"], ["=x\n,y", "\udcff", "é"]]
    write_csv(tmp_path / "a.csv", ["one", "two", "three"], rows)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.reader(file))
    assert read == [["one", "two", "three"], rows[0], ["'=x\n,y", "\\udcff", "é"]]
