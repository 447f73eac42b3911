"""Which class names stand for good parts. Imports nothing heavy."""

from __future__ import annotations

import re

# as is_good_name folds them: small letters, single blanks
GOOD_NAMES = frozenset(
    {
        "good",
        "normal",
        "ok",
        "okay",
        "pass",
        "passed",
        "io",  # German: in Ordnung
        "no defect",
        "no defects",
        "non defective",
        "defect free",
        "nodefect",
    }
)


def is_good_name(name: str) -> bool:
    """Whether a class of this name holds good parts; letter case, blanks, underscores and hyphens do not matter."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold() in GOOD_NAMES
