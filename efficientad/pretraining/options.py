"""The user's choices for a pretraining; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PAPER_STEPS = 60000
STATISTICS_IMAGES = 10000
MAY_DIFFER = ("resume", "overwrite", "output", "device", "precision", "num_workers", "cache_gb")  # when resuming


@dataclass(frozen=True)
class PretrainingOptions:
    """The user's choices; the names are those of pretrain's flags. None: not given."""

    images: list[Path]
    model_size: str
    backbone: str
    backbone_weights: Path | None
    layers: list[str] | None
    backbone_size: int
    projection: str  # pool or pca
    init_weights: Path | None
    solve_output: bool
    steps: int | None
    minutes: float | None
    batch_size: int  # of each process
    lr: float
    optimizer: str  # adam or muon
    weight_decay: float
    schedule: str | None  # constant or cosine
    crop_scale: float
    relight: float
    window: int
    statistics_images: int
    seed: int
    device: str
    precision: str
    num_workers: int
    cache_gb: float
    output: Path
    resume: bool
    overwrite: bool

    @property
    def state_file(self) -> Path:
        """The state of an unfinished run, beside the output."""
        return self.output.with_name(f"{self.output.name}.state")
