"""Text tables: 80 columns at most, nothing broken within a word."""

from efficientad.system.tables import format_table, number, text_width

NOTE = "no false positive; false positives <= 1 %; false positives <= 5 %; false positives <= 10 %"


def test_numbers_are_right_aligned_and_undefined_ones_a_dash():
    table = format_table(
        ["Class", "Recall,\n1 % FP"], [["good", number(0.5)], ["基板", number(float("nan"))]], "lr"
    )
    assert table.splitlines() == [
        "       Recall,",
        "Class   1 % FP",
        "-----  -------",
        "good    0.5000",
        "基板         -",
    ]
    assert text_width("基板") == 4


def test_long_names_and_notes_take_more_lines_not_more_columns():
    rows = [["short", "1", NOTE], ["a name of " + "many " * 12 + "words", "22", ""]]
    lines = format_table(["Name", "Count", "Note"], rows, "lrl").splitlines()
    assert max(map(len, lines)) <= 80
    assert rows[1][0] in lines and lines[-1].split() == ["22"]
    words = " ".join(lines).split()
    assert all(word in words for word in NOTE.split())
