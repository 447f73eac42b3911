"""Progress bars are drawn on terminals alone."""

import io
import re
import sys
from pathlib import Path

import pytest

from efficientad.system.progress_bars import progress_bar

PACKAGE = Path(__file__).resolve().parents[2] / "efficientad"


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


BARS = [(True, False, True), (False, False, False), (True, True, False)]  # terminal, disabled, drawn


@pytest.mark.parametrize(("terminal", "disable", "drawn"), BARS)
def test_a_log_file_gets_no_bar(monkeypatch, terminal, disable, drawn):
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress_bar(range(3), "Counting", unit="number", disable=disable)) == [0, 1, 2]
    assert ("Counting" in stream.getvalue()) == drawn
    assert drawn or not stream.getvalue()


def test_every_bar_is_one_of_these():
    found = [path for path in PACKAGE.rglob("*.py") if re.search(r"\btqdm\(", path.read_text(encoding="utf-8"))]
    assert found == [PACKAGE / "system" / "progress_bars.py"]
