"""Work of a GPU as one CUDA graph: with small batches a GPU is faster than Python can launch its operations."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

_RUNS_BEFORE = 3  # in which libraries choose their kernels and an optimizer allocates its state
Step = Callable[..., Tensor]
Inputs = tuple[Tensor | None, ...]  # of a step; None: an input that it does without
Replay = Callable[[], Tensor]  # runs a recorded step again; the next run overwrites what it returns


class Recorder(Protocol):
    """Runs a step and records it: CudaGraphs, or a stand-in in tests."""

    def run(self, step: Step, inputs: Inputs) -> Tensor:
        """Run the step as it will be recorded; returns its output."""
        ...

    def record(self, step: Step, inputs: Inputs) -> Replay:
        """Record the step for these inputs, without running it.

        Raises:
            RuntimeError: something in it cannot be recorded.
        """
        ...


class CudaGraphs:
    """Runs steps on its own stream, since the default one cannot be recorded, and records them as CUDA graphs."""

    def __init__(self, device: torch.device) -> None:
        """
        Args:
            device: of the inputs; threads may have another current one.
        """
        self._device, self._stream = device, torch.cuda.Stream(device)

    def run(self, step: Step, inputs: Inputs) -> Tensor:
        """See Recorder."""
        before = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(before)
        with torch.cuda.stream(self._stream):
            output = step(*inputs)
        before.wait_stream(self._stream)
        return output

    def record(self, step: Step, inputs: Inputs) -> Replay:
        """See Recorder."""
        with torch.cuda.device(self._device):
            return self._record(step, inputs)

    def _record(self, step: Step, inputs: Inputs) -> Replay:
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        noise = generator.clone_state()
        collecting = gc.isenabled()
        gc.collect()
        gc.disable()  # an older graph that went away meanwhile would end the recording
        try:
            # Other threads may copy images to the GPU meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                output = step(*inputs)
        except BaseException:
            generator.graphsafe_set_state(noise)  # the old state would still count as being recorded
            raise
        finally:
            if collecting:
                gc.enable()
            torch.cuda.set_stream(before)  # a failed recording does not

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


class GraphedStep:
    """A function of tensors on a GPU, replayed as a graph once it has run a few times.

    One graph is made, for the first input shapes that have come often enough: a training has one batch size and at
    most a shorter batch at the end of each epoch, which runs without a graph. Threads may share it.
    """

    def __init__(self, step: Step, recorder: Recorder) -> None:
        """
        Args:
            step: does the same work each time, all of it on the GPU, without waiting for it.
        """
        self._step, self._recorder = step, recorder
        self._seen: Counter[tuple[torch.Size | None, ...]] = Counter()
        self._inputs: Inputs = ()
        self._replay: Replay | None = None
        self._possible = True
        self._lock = threading.Lock()  # from the inputs' copies to the output's

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """The step's output for these inputs."""
        with self._lock:
            return self._run(inputs)

    def _run(self, inputs: Inputs) -> Tensor:
        if self._replay is None and self._possible:
            self._seen[_shapes(inputs)] += 1
            if self._seen[_shapes(inputs)] <= _RUNS_BEFORE:
                return self._recorder.run(self._step, inputs)
            self._record(inputs)
        if self._replay is None or _shapes(inputs) != _shapes(self._inputs):
            return self._step(*inputs)
        for kept, given in zip(self._inputs, inputs, strict=True):
            if kept is not None:
                kept.copy_(given, non_blocking=True)
        return self._replay().clone()

    def _record(self, inputs: Inputs) -> None:
        self._inputs = tuple(None if given is None else given.clone() for given in inputs)
        try:
            self._replay = self._recorder.record(self._step, self._inputs)
        except RuntimeError as error:  # an old driver, or out of memory
            self._possible, self._inputs = False, ()
            reason = str(error).strip().partition("\n")[0]
            print(f"Note: no CUDA graph, so the GPU waits for Python: {reason}", flush=True)


def _shapes(tensors: Inputs) -> tuple[torch.Size | None, ...]:
    return tuple(None if tensor is None else tensor.shape for tensor in tensors)
