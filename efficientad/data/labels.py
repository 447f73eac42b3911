"""Names that say that a part is good, of folders and of categories. Imports nothing heavy."""

from __future__ import annotations

import re

GOOD = "good"  # the only class that is not anomalous
# Without blanks, underscores, hyphens and dots; no kind of defect could have one of them ("io": in Ordnung).
GOOD_NAMES = frozenset(
    {
        GOOD,
        "normal",
        "ok",
        "okay",
        "io",
        "pass",
        "passed",
        "healthy",
        "flawless",
        "nodefect",
        "nodefects",
        "nondefect",
        "nondefective",
        "notdefective",
        "defectfree",
        "withoutdefect",
        "withoutdefects",
        "faultfree",
        "noanomaly",
        "anomalyfree",
    }
)
_SEPARATORS = re.compile(r"[\s_.\-]+")


def is_good_name(name: str) -> bool:
    """Whether the name says that a part is good: "good", "OK", "i.O.", "No defect", "defect_free", ..."""
    return _SEPARATORS.sub("", name).casefold() in GOOD_NAMES
