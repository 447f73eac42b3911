"""--args: the settings of an earlier run, in its args.json, as the defaults of a command."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from efficientad.system.arguments import named_path
from efficientad.system.errors import count_of, printable

_FLAG = "args_file"  # where argparse keeps the value of --args
_LISTED, _LONGEST = 5, 40  # unknown names, their letters
LeaveOut = Callable[[Mapping[str, Any]], Collection[str]]


class Parser(argparse.ArgumentParser):
    """A parser with --args FILE: values of the file for flags that are not on the command line.

    They are checked as those on the command line are. A flag that is required must be there in any case.
    """

    def __init__(
        self, *args: Any, noted: Collection[str], leave_out: LeaveOut = lambda settings: (), **more: Any
    ) -> None:
        """
        Args:
            noted: what such a file may hold beside the command's own settings; other names may be misspelt.
            leave_out: names of settings that this command should not take over, given all of the file.
        """
        super().__init__(*args, **more)
        self._noted, self._leave_out = noted, leave_out
        self.add_argument(
            "--args",
            type=named_path,
            dest=_FLAG,
            metavar="FILE",
            help="take the settings of an earlier run, its args.json, as defaults; flags on the command line win",
        )

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse does, with the file's values in place of defaults; says in a line what it took."""
        words, unset = sys.argv[1:] if args is None else list(args), object()
        blank = argparse.Namespace(**{action.dest: unset for action in self._actions})
        given = {
            name for name, value in vars(super().parse_known_args(words, blank)[0]).items() if value is not unset
        }
        if _FLAG in given:
            self._take(getattr(blank, _FLAG), given)
        parsed, rest = super().parse_known_args(words, namespace)
        setattr(parsed, _FLAG, None)  # a command line that is noted with a result names the settings themselves
        return parsed, rest

    def _take(self, file: Path, given: set[str]) -> None:
        """Make the file's values the defaults, but for flags given on the command line or what excludes them."""
        actions = {action.dest: action for action in self._actions if action.dest not in ("help", _FLAG)}
        settings = self._read(file, actions)
        exclusive = [{action.dest for action in group._group_actions} for group in self._mutually_exclusive_groups]
        decided = given.union(*(names for names in exclusive if names & given))
        wanted = {
            name: value
            for name, value in settings.items()
            if name in actions and name not in decided and value not in (None, [], "") and value is not False
        }
        left_out = sorted(wanted.keys() & set(self._leave_out(settings)))
        taken = {name: value for name, value in wanted.items() if name not in left_out}
        for names in exclusive:
            if len(names & taken.keys()) > 1:
                self.error(f"--args {file}: {' and '.join(sorted(names & taken.keys()))} exclude each other")
        self.set_defaults(**{name: self._check(file, actions[name], value) for name, value in taken.items()})
        if os.environ.get("RANK", "0") == "0":  # set by torchrun
            rest = f"; left out: {', '.join(f'--{name}' for name in left_out)}" if left_out else ""
            unknown = [name[:_LONGEST] for name in settings if name not in actions and name not in self._noted]
            if unknown:
                more = ", ..." if len(unknown) > _LISTED else ""
                rest += f"; {len(unknown)} unknown: {printable(', '.join(unknown[:_LISTED]))}{more}"
            print(f"Took {count_of(len(taken), 'setting')} from {printable(str(file))}{rest}", flush=True)

    def _read(self, file: Path, names: Collection[str]) -> dict[str, Any]:
        if file.is_dir():
            self.error(f"--args {file} is a folder; name the args.json in it")
        try:
            settings = json.loads(file.read_text(encoding="utf-8-sig"))
        except OSError as error:
            self.error(f"--args {file}: {error.strerror}")
        except (ValueError, RecursionError) as error:
            self.error(f"--args {file} is not JSON ({error})")
        if not isinstance(settings, dict) or not settings.keys() & set(names):
            self.error(f"--args {file} is no args.json: it holds no settings of {self.prog}")
        return settings

    def _check(self, file: Path, action: argparse.Action, value: Any) -> Any:
        """The value as the flag takes it."""
        if action.nargs == 0 and value is True:
            return action.const
        words = [str(word) for word in (value if isinstance(value, list) else [value])]
        try:
            if action.nargs == 0 or self._match_argument(action, "A" * len(words)) != len(words):
                raise argparse.ArgumentError(action, f"does not take {value!r}")
            return self._get_values(action, words)
        except argparse.ArgumentError as error:
            self.error(f"--args {file}: {error}")
