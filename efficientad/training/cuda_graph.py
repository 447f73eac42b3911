"""A training step as one CUDA graph: with small batches a GPU works faster than Python can tell it what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

_RUNS_BEFORE = 3  # in the first ones libraries choose their kernels and the optimizer allocates its state
Step = Callable[..., Tensor]
Replay = Callable[[], Tensor]  # runs a recorded step again; the next run overwrites what it returns


class Recorder(Protocol):
    """What can run a step and record it; CudaGraphs, or another one in tests."""

    def run(self, step: Step, inputs: tuple[Tensor, ...]) -> Tensor:
        """The step's output; as it is to be recorded later."""
        ...

    def record(self, step: Step, inputs: tuple[Tensor, ...]) -> Replay:
        """Record, without doing it, what the step does for these inputs.

        Raises:
            RuntimeError: something in it cannot be recorded.
        """
        ...


class CudaGraphs:
    """Runs steps beside the default stream, which cannot be recorded, and records them as CUDA graphs."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()

    def run(self, step: Step, inputs: tuple[Tensor, ...]) -> Tensor:
        """See Recorder."""
        before = torch.cuda.current_stream()
        self._stream.wait_stream(before)
        with torch.cuda.stream(self._stream):
            output = step(*inputs)
        before.wait_stream(self._stream)
        return output

    def record(self, step: Step, inputs: tuple[Tensor, ...]) -> Replay:
        """See Recorder."""
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        noise = generator.clone_state()
        try:
            # Other threads may go on copying images to the GPU meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                output = step(*inputs)
        except BaseException:
            generator.graphsafe_set_state(noise)  # the old one may go on believing that it is being recorded
            raise
        finally:
            torch.cuda.set_stream(before)  # which a failed recording leaves as it is

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


class GraphedStep:
    """A function of tensors on a GPU, replayed as a graph once it has run a few times.

    One graph is made, for the first shapes of inputs that have come often enough: a training has one size of batch
    and at most a shorter one at the end of each epoch, which runs as it is.
    """

    def __init__(self, step: Step, recorder: Recorder) -> None:
        """
        Args:
            step: does all its work on the GPU without waiting for it, in the same way each time.
        """
        self._step, self._recorder = step, recorder
        self._seen: Counter[tuple[torch.Size, ...]] = Counter()
        self._inputs: tuple[Tensor, ...] = ()
        self._replay: Replay | None = None
        self._possible = True

    def __call__(self, *inputs: Tensor) -> Tensor:
        """What the step gives for these inputs."""
        if self._replay is None and self._possible:
            self._seen[_shapes(inputs)] += 1
            if self._seen[_shapes(inputs)] <= _RUNS_BEFORE:
                return self._recorder.run(self._step, inputs)
            self._record(inputs)
        if self._replay is None or _shapes(inputs) != _shapes(self._inputs):
            return self._step(*inputs)
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given, non_blocking=True)
        return self._replay().clone()

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(given.clone() for given in inputs)
        try:
            self._replay = self._recorder.record(self._step, self._inputs)
        except RuntimeError as error:  # of an old driver, or out of memory
            self._possible, self._inputs = False, ()
            reason = str(error).strip().partition("\n")[0]
            print(f"Note: no CUDA graph, so that steps take longer: {reason}", flush=True)


def _shapes(tensors: tuple[Tensor, ...]) -> tuple[torch.Size, ...]:
    return tuple(tensor.shape for tensor in tensors)
