"""The state of a run: saved when it is due, and before a signal ends the run, on all processes alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from efficientad.system.distributed import largest_over_ranks, rank, wait_for_ranks
from efficientad.system.errors import Interrupted, UserError
from efficientad.system.random_streams import VERSION
from efficientad.system.runs import STOP_NOTICE, stop_requests
from efficientad.system.torch_files import write_atomically


class StateSaver:
    """Saves the state of a run; within its block a signal stops the run after the step under way."""

    def __init__(
        self,
        path: Path,
        network: nn.Module,
        collect: Callable[[], dict[str, Any]],
        not_finite: Callable[[], UserError],
        seconds: float,
    ) -> None:
        """
        Args:
            network: checked before it is saved, since a step can break weights that only the next loss would show.
            collect: returns the state; called on all processes.
            not_finite: returns the error for weights that are not finite.
            seconds: between two saves that nobody asks for.
        """
        self._path, self._network, self._seconds = path, network, seconds
        self._collect, self._not_finite = collect, not_finite

    def __enter__(self) -> StateSaver:
        self._requests = stop_requests("" if rank() else STOP_NOTICE)
        self._asked_to_stop = self._requests.__enter__()
        self._saved = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self._requests.__exit__(*error)

    def save(self) -> None:
        """Save now.

        Raises:
            UserError: weights that are not finite; the last state stays.
        """
        if not all(parameter.isfinite().all() for parameter in self._network.parameters()):
            raise self._not_finite()
        state = {**self._collect(), "streams": VERSION}
        if rank() == 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)  # removed meanwhile: nothing else is lost
            write_atomically(state, self._path)
        self._saved = time.monotonic()

    def after_step(self, step: int, save: bool = False) -> None:
        """Save if it is time, or if `save` is true on any process; after a signal save and stop.

        Raises:
            Interrupted: a process has received a signal.
        """
        due = save or (rank() == 0 and time.monotonic() - self._saved > self._seconds)
        wanted = largest_over_ranks(2 if self._asked_to_stop() else int(due))  # all do what one is asked to do
        if wanted:
            self.save()
        if wanted == 2:
            wait_for_ranks()  # when the first one ends, torchrun ends the others
            raise Interrupted(f"interrupted after step {step}; continue with --resume")
