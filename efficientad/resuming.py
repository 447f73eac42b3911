"""Reading the state of an interrupted run, if it is a run of the same settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efficientad.errors import UserError
from efficientad.torch_file import read_torch_file


def read_state(path: Path, kind: str, part: str, settings: Mapping[str, Any]) -> dict:
    """What write_atomically saved of an interrupted run: a dict with a Mapping "settings" and the key `part`.

    Args:
        kind: for people, as in "a training".
        part: a key that every state of that kind has.
        settings: of the run that is to go on; all must be as they were. Compared as text.

    Raises:
        UserError: no such state, damaged, or made with other settings, which are named.
    """
    state = read_torch_file(path)
    if not isinstance(state, dict) or "settings" not in state or part not in state:
        raise UserError(f"{path} is not the state of {kind}; remove it or choose another output")
    then = state["settings"]
    differing = [
        f"{key} {then.get(key)}, now {value}" for key, value in settings.items() if str(then.get(key)) != str(value)
    ]
    if differing:
        raise UserError(
            f"{path} was made with other settings ({'; '.join(differing)}); give the same ones with --resume"
        )
    return state


def compare_images(then: Mapping[str, str], now: Mapping[str, str], path: Path) -> None:
    """Raise a UserError unless both are the same images.

    Args:
        then, now: digests by name.
        path: of the state that remembers `then`.
    """
    changed = [f"{name} is new" for name in now if name not in then]
    changed += [f"{name} is missing" for name in then if name not in now]
    changed += [f"{name} is another image" for name in then if name in now and then[name] != now[name]]
    if changed:
        more = f" and {len(changed) - 1} more differences" if len(changed) > 1 else ""
        raise UserError(
            f"{path} was made with other images: {changed[0]}{more}; "
            "bring them back, or add --overwrite and begin anew"
        )
