"""How the networks begin and how they learn, by name."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_EPOCHS = 10
AUTO = "auto"
NONE, DRAWN = "none", "drawn"  # in place of paths of natural images
# Steps. With a penalty they take half as long again; no gain was seen after 300, some after 700, more after 2,000
DRAWN_FROM = 500
FAST_BELOW = 10_000  # steps. Fast was ahead after hundreds; the paper's takes 70,000


@dataclass(frozen=True)
class Recipe:
    """How the networks begin and how they learn."""

    lr: float
    autoencoder_lr: float  # in learning rates of the student
    schedule: str
    solved_start: bool  # He initialization and the student's output layer solved; else PyTorch's initial weights
    weighed_maps: bool  # by how much the autoencoder has learnt; else half each


RECIPES = {
    "paper": Recipe(lr=1e-4, autoencoder_lr=1, schedule="step", solved_start=False, weighed_maps=False),
    "fast": Recipe(lr=1e-4, autoencoder_lr=10, schedule="cosine", solved_start=True, weighed_maps=True),
}


def choose_recipe(name: str, steps: int) -> str:
    """The key in RECIPES of what a user asked for: one of them, or AUTO, which depends on the number of steps."""
    if name != AUTO:
        return name
    return "fast" if steps < FAST_BELOW else "paper"


def choose_penalty(name: str, steps: int) -> str:
    """NONE or DRAWN: what the penalty is when no natural images are given, for the recipe that a user asked for."""
    return DRAWN if name != "paper" and steps >= DRAWN_FROM else NONE
