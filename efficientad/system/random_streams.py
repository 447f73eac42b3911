"""Streams of random numbers: for each seed and purpose one of its own, all derived from numpy's SeedSequence."""

from __future__ import annotations

import numpy as np
import torch

# A stream's place is its key: add new ones at the end. The split of the images (data/datasets.py) is none of them:
# export finds a training's images again by it.
STREAMS = (
    "weights",
    "dropout",  # for each process
    "order",
    "augmentation",
    "penalty order",
    "memory candidates",  # for each image
    "memory",
    "noise fields",
    "drawn images",  # for each of them
    "held-out images",
    "epochs",  # for each epoch of a pretraining
    "crops",  # for each step and process
    "windows",  # for each step and process
    "light",
    "output layer",  # for each time that it is solved
)
VERSION = 1  # of all this: a run is not resumed with other numbers than it began with


def seed_sequence(seed: int, stream: str, *numbers: int) -> np.random.SeedSequence:
    """The seed of a stream, or of the part of it that belongs to these numbers (a step, a process, an image)."""
    return np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream), *numbers))


def random_stream(seed: int, stream: str, *numbers: int) -> torch.Generator:
    """A generator on the CPU, at the beginning of the stream."""
    return torch.Generator().manual_seed(_to_integer(seed_sequence(seed, stream, *numbers)))


def seed_torch(seed: int, stream: str, *numbers: int) -> None:
    """Let torch's default generators, of all devices, begin the stream."""
    torch.manual_seed(_to_integer(seed_sequence(seed, stream, *numbers)))


def _to_integer(sequence: np.random.SeedSequence) -> int:
    return int(sequence.generate_state(1, np.uint64)[0])
