"""The work that is measured: the toolkit's own steps on made-up images, and the plain version of each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from efficientad.benchmarking import reference
from efficientad.benchmarking.measuring import count_flops
from efficientad.data.datasets import Sample
from efficientad.data.transforms import augment, draw_changes, to_unit_range
from efficientad.data.views import View
from efficientad.detector.anomaly_maps import anomaly_score
from efficientad.detector.global_score import CHANNELS, SIZE, GlobalScore
from efficientad.detector.model import EfficientAD
from efficientad.detector.networks import FEATURE_CHANNELS
from efficientad.evaluation.scoring import ScoringWork, score_samples
from efficientad.evaluation.thumbnails import PictureSizes, plan_pictures
from efficientad.inference.detectors import TorchDetector
from efficientad.inference.exported import MissingPackageError, load_exported
from efficientad.inference.exporting import write_export
from efficientad.inference.maps import write_side_by_side, write_tiff
from efficientad.inference.metadata import SUFFIXES, Metadata
from efficientad.inference.prediction import copy_to_host
from efficientad.system.parallel import parallel_map
from efficientad.training.cache import ImageBatch, TeacherFeatures
from efficientad.training.loop import Learner
from efficientad.training.options import MEMORY_PATCHES, MIRROR, WINDOW, TrainingPlan, map_weights
from efficientad.training.windows import Windows, see_whole, see_windows

_THRESHOLD = 40.0
EXPORTS = (("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "int8"))
Work = Callable[[], object]


class Workloads:
    """One model on one machine, and a copy of it for the plain version."""

    def __init__(self, model: EfficientAD, device: torch.device, precision: str, workers: int) -> None:
        self.device, self.precision, self.workers = device, precision, workers
        self.plain_seconds_per_image = 0.0  # of a training step; 0 until it is measured
        self._alone = _with_memory_alone(model)  # as train.py leaves it by default
        self._plain_alone = copy.deepcopy(self._alone).to(device)
        self._alone.to(device, memory_format=torch.channels_last)
        self._plain_model = copy.deepcopy(model).to(device)
        self._model = model.to(device, memory_format=torch.channels_last)
        self._plan = TrainingPlan(10**6, 1, 1e-4, 1e-5, device, precision, seed=0)
        parameters = [*self._plain_model.student.parameters(), *self._plain_model.autoencoder.parameters()]
        self._plain_optimizer = torch.optim.Adam(parameters, lr=1e-4, weight_decay=1e-5)

    @cached_property
    def training_flops(self) -> int:
        """FLOPs of a training step per image."""
        return count_flops(self.training_steps(1)[0])

    @cached_property
    def inference_flops(self) -> int:
        """FLOPs of the detector with a memory alone, per image."""
        return count_flops(self.inference_runs(1)[0])

    @cached_property
    def student_inference_flops(self) -> int:
        """FLOPs of the detector with student and autoencoder, per image."""
        return count_flops(self.inference_runs(1, with_student=True)[0])

    def training_steps(self, batch_size: int) -> tuple[Work, Work]:
        """A step of the training loop, and the plain one: same images, same losses."""
        pixels = self._pixels(self._model, batch_size).to(self.device)
        with torch.no_grad():
            one = self._model.teacher_features(self._model.normalize(to_unit_range(pixels[:1])))
        answers = one.repeat(batch_size, 1, 1, 1)
        learner = Learner(self._model, self._plan)  # one per batch size: it has one CUDA graph
        generator = torch.Generator().manual_seed(0)
        plain_images = (pixels / 255).contiguous()

        def step() -> None:
            self._model.train()
            learner.step(to_unit_range(pixels), answers, None, batch_size)

        def plain_step() -> None:
            self._plain_model.train()
            changed = augment(plain_images, draw_changes(batch_size, generator))
            losses = reference.losses(self._plain_model, plain_images, changed, None)
            self._plain_optimizer.zero_grad()
            sum(losses).backward()
            self._plain_optimizer.step()

        return step, plain_step

    def inference_runs(self, batch_size: int, with_student: bool = False) -> tuple[Work, Work]:
        """Work from uint8 images on the host to maps and scores on the host, and the plain version.

        Args:
            with_student: for the paper's detector with student and autoencoder, instead of a memory alone.
        """
        pixels = self._pixels(self._model, batch_size)
        model, plain_model = (self._model, self._plain_model) if with_student else (self._alone, self._plain_alone)

        detector = TorchDetector(model, self.device, self.precision)

        def run() -> None:
            model.eval()
            maps = detector(pixels)
            _, copied = copy_to_host([maps, anomaly_score(maps)])
            if copied:
                copied.synchronize()

        @torch.no_grad()
        def plain_run() -> None:
            maps = reference.anomaly_maps(plain_model.eval(), pixels.to(self.device) / 255)
            reference.scores(maps).tolist()
            maps.cpu()

        return run, plain_run

    def inference_at(self, side: int) -> Work:
        """As inference_runs with one image, side x side, whatever the model's own size."""
        model = self._at_size(self._alone, side)
        detector, pixels = TorchDetector(model.eval(), self.device, self.precision), self._pixels(model, 1)

        def run() -> None:
            anomaly_score(detector(pixels)).tolist()

        return run

    def training_step_at(self, side: int) -> Work:
        """As training_steps with one image, side x side, of which a step sees a window where it is larger."""
        model = self._at_size(self._model, side)
        pixels = self._pixels(model, 1).to(self.device)
        images = ImageBatch(torch.tensor([0]), pixels, None)
        room_for_one = 2 * FEATURE_CHANNELS * model.grid[0] * model.grid[1]
        features = TeacherFeatures(model, room_for_one, self.device, self.precision)
        windows = Windows.of(model.grid, model.margin, WINDOW)
        learner = Learner(model, self._plan)

        def step() -> None:
            model.train()
            drawn = None if windows is None else learner.draw_windows(windows, 1)
            seen = see_whole(model, images) if windows is None else see_windows(model, images, windows, drawn)
            teacher = model.normalize_features(features(images.indices, pixels, seen.windows))
            learner.step(seen.images, teacher, None, 1, seen.overview, seen.places)

        return step

    def _at_size(self, model: EfficientAD, side: int) -> EfficientAD:
        """A copy of the model for another size."""
        parts = model.student is not None, len(model.memory), model.global_score is not None
        other = EfficientAD(model.model_size, View(side, side), model.border, *parts)
        other.load_state_dict(model.state_dict())
        return other.to(self.device, memory_format=torch.channels_last)

    def exported_runs(self, folder: Path, batch_size: int) -> dict[str, Work]:
        """As inference_runs, for exports of the model in `folder` whose packages are installed."""
        pixels = self._pixels(self._model, batch_size)
        runs: dict[str, Work] = {}
        for name, precision in EXPORTS:
            file = folder / f"{name}_{precision}{SUFFIXES[name]}"
            metadata = Metadata(self._model.model_size, self._model.view, precision, None, {})
            try:
                write_export(name, self._alone, metadata, file, [metadata.inputs(pixels, None)])
                detector = load_exported(file, "cpu", "auto")
            except MissingPackageError:
                continue
            runs[f"{name} {precision}"] = partial(detector, pixels)
        return runs

    def reading_works(self, folder: Path, count: int, size: tuple[int, int]) -> dict[str, Work]:
        """Reading an image of this size (width, height) `count` times at the model's input size, by name."""
        photo, works = _draw_photo(size), {}
        for kind, suffix, options in (("JPEG", ".jpg", {"quality": 95}), ("PNG", ".png", {"compress_level": 6})):
            file = folder / f"photo{suffix}"
            photo.save(file, kind, **options)
            works[f"reading {kind}"] = partial(self._read, [file] * count)
        return works

    def _read(self, paths: list[Path]) -> None:
        """Decode and resize the files, as many at once as there are workers."""
        for _ in parallel_map(self._model.view.read, paths, self.workers):
            pass

    def file_works(self, folder: Path, count: int, size: tuple[int, int], batch_size: int) -> dict[str, Work]:
        """Work on `count` JPEG photographs, by name; they are drawn in `folder`, where maps go, too."""
        photo = _draw_photo(size)
        photo.save(folder / "0.jpg", quality=95)
        data = (folder / "0.jpg").read_bytes()
        samples = []
        for index in range(count):
            path = folder / f"{index}.jpg"
            path.write_bytes(data)
            samples.append(Sample(path, "good", path.name))
        anomaly_map = np.random.default_rng(0).random(size[::-1], dtype=np.float32) * 100
        maps = {
            suffix: {sample: folder / f"{sample.path.stem}_map{suffix}" for sample in samples}
            for suffix in (".tiff", ".jpg")
        }

        def write(suffix: str) -> None:
            def write_one(file: Path) -> None:
                if suffix == ".tiff":
                    write_tiff(file, anomaly_map)
                else:
                    write_side_by_side(file, photo, anomaly_map, _THRESHOLD)

            for _ in parallel_map(write_one, maps[suffix].values(), self.workers):
                pass

        def evaluate(suffix: str, sizes: PictureSizes | None = None) -> None:
            detector = TorchDetector(self._alone.eval(), self.device, self.precision)
            work = ScoringWork(
                detector, samples, _THRESHOLD, batch_size, self.workers, maps[suffix], picture_sizes=sizes
            )
            for _ in score_samples(work):
                pass

        return {
            "reading JPEG": partial(self._read, [sample.path for sample in samples]),
            "writing tiff": lambda: write(".tiff"),
            "writing jpg": lambda: write(".jpg"),
            "eval with tiff": lambda: evaluate(".tiff"),
            "eval with jpg": lambda: evaluate(".jpg"),
            "eval with jpg and report": lambda: evaluate(".jpg", plan_pictures(count)),
        }

    def profile(self, lines: int) -> str:
        """Tables of the operations in a training step of batch size 4 and in the inference of one image."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        tables = []
        for name, work in (
            ("A training step of batch size 4", self.training_steps(4)[0]),
            ("Inference of one image", self.inference_runs(1)[0]),
        ):
            work()
            with torch.profiler.profile(activities=activities) as profiled:
                work()
            by_time = f"self_{self.device.type}_time_total"
            table = profiled.key_averages().table(sort_by=by_time, row_limit=lines, max_name_column_width=50)
            tables.append(f"{name}:\n{table}")
        return "\n\n".join(tables)

    @staticmethod
    def _pixels(model: EfficientAD, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randint(0, 256, (count, 3, *model.view.size), dtype=torch.uint8, generator=generator)


def _with_memory_alone(model: EfficientAD) -> EfficientAD:
    """A detector as train.py makes it by default, with a random memory and global score."""
    alone = EfficientAD(model.model_size, model.view, MIRROR, has_student=False, has_global_score=True)
    alone.teacher.load_state_dict(model.teacher.state_dict())
    alone.memory = torch.randn(MEMORY_PATCHES, FEATURE_CHANNELS, generator=torch.Generator().manual_seed(2))
    alone.memory_weights = torch.ones(len(alone.memory))
    alone.map_weights.copy_(torch.tensor(map_weights(has_student=False, has_memory=True)))
    draw_global_score(alone.global_score)
    return alone.eval()


def draw_global_score(score: GlobalScore) -> None:
    """Random values of the kind that are fitted: the same ones every time, and images above the median."""
    generator = torch.Generator().manual_seed(3)
    score.basis.copy_(torch.linalg.qr(torch.randn(FEATURE_CHANNELS, CHANNELS, generator=generator))[0].T)
    score.mean.copy_(0.1 * torch.randn(score.mean.shape, generator=generator))
    roots = torch.randn(score.whitening.shape, generator=generator)
    score.whitening.copy_(torch.eye(SIZE) + roots @ roots.mT / SIZE)
    score.levels.copy_(torch.tensor([(1.0, 200.0), (2.0, 150.0), (0.01, 0.9)]))
    score.peak.fill_(25.5)


def _draw_photo(size: tuple[int, int]) -> Image.Image:
    """Smooth shapes and some noise, as hard to compress as a photograph."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    noisy = smooth + rng.normal(0, 4, smooth.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
