"""What a training makes, by name: the paper's networks, a memory of good patches, or both."""

from __future__ import annotations

DEFAULT_STEPS = 70_000  # of the networks; the paper's
AUTO, FAST, PAPER = "auto", "fast", "paper"
RECIPES = (FAST, PAPER)
NONE, DRAWN = "none", "drawn"  # in place of paths of natural images
MEMORY_PATCHES = 8000
FAST_BELOW = 10_000  # steps, of a training that asks for some and for no recipe


def choose_recipe(name: str, steps: int | None) -> str:
    """FAST or PAPER, of what a user asked for: one of them, or AUTO, which depends on the steps, if any."""
    if name != AUTO:
        return name
    return FAST if steps is None or steps < FAST_BELOW else PAPER


def choose_memory(patches: int | None, recipe: str) -> int:
    """The patches of the memory: as asked for, or the recipe's own."""
    if patches is not None:
        return patches
    return MEMORY_PATCHES if recipe == FAST else 0


def map_weights(has_student: bool, has_memory: bool) -> tuple[float, float, float]:
    """Of the student-teacher, autoencoder-student and memory map: the paper's two count alike (section 3.4)."""
    if not has_memory:
        return 0.5, 0.5, 0.0
    return (0.25, 0.25, 0.5) if has_student else (0.0, 0.0, 1.0)
