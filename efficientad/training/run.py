"""The training of one detector, from a data set to model.pt; interrupted, it goes on where it was."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from efficientad.data.datasets import Dataset, Sample, TrainingSplit, find_training_images
from efficientad.data.images import SKIPPED_FILE, describe_skipped, find_unreadable, read_image, write_skipped
from efficientad.detector.calibration import describe_calibration
from efficientad.detector.checkpoint import (
    MODEL_FILE,
    MOST_MEMORY_PATCHES,
    load_teacher_weights,
    read_training,
    save_model,
)
from efficientad.detector.networks import EfficientAD
from efficientad.system.devices import (
    compute_deterministically,
    describe_device,
    keep_freed_memory,
    release_freed_memory,
    resolve_device,
    resolve_precision,
)
from efficientad.system.distributed import rank, ranks, say, wait_for_ranks
from efficientad.system.errors import UserError
from efficientad.system.files import write_text_atomically
from efficientad.system.runs import lock_folder
from efficientad.system.torch_files import compare_images, read_state
from efficientad.training.cache import ImageSet, TeacherAnswers
from efficientad.training.fitting import fit_calibration, fit_map_quantiles, fit_teacher_statistics
from efficientad.training.log import draw_training
from efficientad.training.loop import Training
from efficientad.training.memory import fit_memory
from efficientad.training.options import (
    MAY_DIFFER,
    TrainingOptions,
    describe_start,
    describe_unused,
    make_plan,
    map_weights,
    settle,
)
from efficientad.training.penalty_images import PenaltyImages, find_penalty_images, penalty_batches
from efficientad.training.progress import Progress, describe_use, find_labelled_samples

STATE_FILE = "checkpoint.pt"
LOG_FILE = "log.csv"
SETTINGS_FILE = "args.json"
NATURAL_CACHE_SHARE = 0.25  # of what the training images leave; the teacher's answers save more and get the rest


def train_detector(
    dataset: Dataset, folder: Path, options: TrainingOptions, settings: Mapping[str, Any]
) -> dict | None:
    """Train a detector and write it to model.pt in `folder`, with its log and settings.

    Of several ranks all must call it; the first one writes and tells.

    Args:
        settings: plain values that are kept with the model; those that change the result must be the same
            when a training is resumed.

    Returns:
        the settings and what was found of the data; None if the training to be resumed is finished.

    Raises:
        UserError: a model or an interrupted training is in the way, the data cannot be used, or it is not what
            the training to be resumed began with.
        Interrupted: by a signal during the training; its state is saved.
    """
    state_file = folder / STATE_FILE
    resuming = options.resume and state_file.exists()
    if not resuming and not _may_begin(folder, options):
        return None
    with lock_folder(folder) if rank() == 0 else nullcontext():
        wait_for_ranks()  # so that the first one has the lock, or fails alone
        run = _Run(dataset, folder, options, settings, resuming)
        with _naming_the_state(state_file):
            run.fit()
            if rank() == 0:
                run.save()
        wait_for_ranks()
    return run.settings


def _may_begin(folder: Path, options: TrainingOptions) -> bool:
    model_file, state_file = folder / MODEL_FILE, folder / STATE_FILE
    if options.resume:
        if model_file.exists() and _is_of_the_last_run(folder):
            say(f"{folder} already holds a trained model: nothing to resume")
            return False
        older = ", only a model that an interrupted training was to replace" if model_file.exists() else ""
        say(f"{folder} holds no {STATE_FILE}{older}: nothing to resume, beginning anew")
    elif not options.overwrite:
        if state_file.exists():
            raise UserError(
                f"{folder} holds an interrupted training; continue it with --resume, begin anew with --overwrite, "
                "or choose another --output_dir"
            )
        if model_file.exists():
            raise UserError(
                f"{folder} already holds a trained model; add --overwrite, or choose another --output_dir"
            )
    return True


def _is_of_the_last_run(folder: Path) -> bool:
    """Whether the model is what the last training made that began there, as far as its settings tell."""
    try:
        begun = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    made = read_training(folder)
    return {**begun, "memory": None} == {**made, "memory": None}  # its size is found on the way


@contextmanager
def _naming_the_state(state_file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a full disk, for one
        if error.errno is None or not state_file.exists():
            raise
        raise UserError(
            f"{error.strerror}: {error.filename}; {state_file} is whole: solve that and continue with --resume"
        ) from None


class _Run:
    """All that has to be there before the first step, checked."""

    def __init__(
        self,
        dataset: Dataset,
        folder: Path,
        options: TrainingOptions,
        settings: Mapping[str, Any],
        resuming: bool,
    ) -> None:
        self._folder, self._state_file = folder, folder / STATE_FILE
        compute = resolve_device(options.device)
        if options.deterministic:
            compute_deterministically()
        precision = resolve_precision(options.precision, compute)
        split = self._split(dataset, options)
        samples = []
        if options.evaluate_every is not None:
            samples, unreadable = find_labelled_samples(dataset, options.on_error == "skip", options.num_workers)
            self.skipped += unreadable
        if len(split.train) < ranks():
            raise UserError(f"{len(split.train)} training images are too few for {ranks()} processes; start fewer")
        unused = options
        self._options = options = settle(options, len(split.train), ranks())
        unused = describe_unused(unused, options)
        self.model, teacher = _start_model(options)
        penalty = find_penalty_images(options.imagenet_train_path)
        self._plan = make_plan(options, compute, precision)
        facts = {
            "train_images": len(split.train),
            "validation_images": len(split.validation),
            "penalty": str(penalty),
            "steps": self._plan.steps,
            "recipe": options.recipe,
            "memory": options.memory,
            "lr": self._plan.lr,
            "machine": describe_device(compute, precision),
            "teacher": str(teacher),
            "processes": ranks(),
        }
        lines = describe_start(dataset.name, options, facts)
        lines += [unused] if unused else []
        lines += [describe_use(options.evaluate_every, samples)] if samples else []
        for line in lines:
            say(line)
        self.settings = json.loads(json.dumps({**settings, **facts}, default=str))
        self._state = self._read_state() if resuming else None
        self._load_images(dataset, split, penalty, samples)

    def _split(self, dataset: Dataset, options: TrainingOptions) -> TrainingSplit:
        split = find_training_images(dataset, options.seed)
        self.skipped = []
        if options.on_error == "skip":
            paths = [*split.train, *split.validation]
            self.skipped = find_unreadable(paths, read_image, options.num_workers, quiet=rank() > 0)
            split = find_training_images(dataset, options.seed, leave_out={bad.name for bad in self.skipped})
        return split

    def _read_state(self) -> dict:
        compared = {key: value for key, value in self.settings.items() if key not in MAY_DIFFER}
        state = read_state(self._state_file, "a training", "augmentation", compared)
        for name, tensor in self.model.teacher.state_dict().items():
            if not torch.equal(tensor, state["model"][f"teacher.{name}"]):
                raise UserError(
                    f"{self._state_file} was made with another teacher than {self.settings['teacher']}; give "
                    "that one with --weights, or begin anew with --overwrite"
                )
        self.settings = state["settings"]
        return state

    def _load_images(
        self, dataset: Dataset, split: TrainingSplit, penalty: PenaltyImages, test_samples: list[Sample]
    ) -> None:
        options, size, workers = self._options, self.model.image_size, self._options.num_workers
        paths = [*split.train, *split.validation]
        budget = options.cache_gb * 1e9
        self._images = ImageSet(paths, size, budget, workers, self._plan.device)
        self._train, self._held_out = range(len(split.train)), range(len(split.train), len(paths))
        names = (path.relative_to(dataset.root).as_posix() for path in paths)
        self._digests = dict(zip(names, self._images.digests, strict=True))
        if self._state:
            compare_images(self._state["images"], self._digests, self._state_file)
        learnt, held_out = set(self._images.digests[: len(split.train)]), self._images.digests[len(split.train) :]
        copies = sum(digest in learnt for digest in held_out)
        if copies:
            say(
                f"Note: {copies} of the {len(held_out)} images held out are copies of others, so the threshold "
                "will be too low; leave the copies out, or put other images into validation/good"
            )
        budget -= self._images.kept_bytes
        self._progress = self._load_progress(test_samples, budget) if test_samples else None
        budget -= self._progress.test_images.kept_bytes if self._progress else 0
        self._penalty_batches = None
        if penalty.stored:
            share = NATURAL_CACHE_SHARE * budget
            start = self._state["step"] if self._state else 0
            self._penalty_batches = penalty_batches(
                penalty, options.batch_size, size, share, workers, options.seed, start
            )
            if self._plan.device.type == "cpu":  # else they have the host's memory to themselves
                budget -= share
        self._answers_budget = budget

    def _load_progress(self, samples: list[Sample], budget: float) -> Progress:
        options, plan, paths = self._options, self._plan, [sample.path for sample in samples]
        size, workers = self.model.image_size, options.num_workers
        return Progress(
            every=options.evaluate_every,
            model=self.model,
            images=self._images,
            held_out=self._held_out,
            test_images=ImageSet(paths, size, budget, workers, plan.device, "test images"),
            labels=[sample.is_anomalous for sample in samples],
            precision=plan.precision,
        )

    def fit(self) -> None:
        """Train the model and fit all its statistics."""
        model, plan, images, precision = self.model, self._plan, self._images, self._plan.precision
        model.to(plan.device, memory_format=torch.channels_last)
        answers = TeacherAnswers(model, self._answers_budget, plan.device, precision)
        if not self._state:
            if rank() == 0:
                self._state_file.unlink(missing_ok=True)  # of a run that is not to be resumed
                write_text_atomically(self._folder / SETTINGS_FILE, json.dumps(self.settings, indent=2) + "\n")
            fit_teacher_statistics(model, images, self._train, answers)
        if plan.steps:
            self._train_networks(answers)
        if self._options.memory:
            fit_memory(model, images, self._train, answers, self._options.memory, self._options.seed)
            self.settings["memory"] = len(model.memory)
            if len(model.memory) < self._options.memory:
                say(f"Note: the memory holds {len(model.memory)} patches: no more that were looked at differ")
        weights = map_weights(bool(plan.steps), bool(self._options.memory))
        model.map_weights.copy_(torch.tensor(weights))
        del answers
        gc.collect()  # the step refers to itself; on a GPU it holds the memory of its graph
        release_freed_memory()  # holes of other sizes than what follows needs
        fit_map_quantiles(model, images, self._held_out, precision)
        fit_calibration(model, images, self._held_out, precision, self._options.target_fpr)
        say(describe_calibration(model.calibration, len(self._held_out)))

    def _train_networks(self, answers: TeacherAnswers) -> None:
        training = Training(
            self.model,
            self._images,
            self._train,
            answers,
            self._plan,
            self._folder / LOG_FILE,
            self._state_file,
            {"settings": self.settings, "images": self._digests},
            60 * self._options.checkpoint_minutes,
            self._progress,
        )
        if self._state:
            training.restore(self._state)
            say(f"Resuming after {self._state['step']} of {self._plan.steps} steps")
        # Not before: the answers to keep and what is computed beside them would leave holes in each other's place.
        keep_freed_memory(self._plan.device)
        training.run(self._penalty_batches)

    def save(self) -> None:
        """Write the model, draw its training, and remove the state; list the images that were passed over."""
        save_model(self.model, self._folder / MODEL_FILE, self.settings)
        log, chart = self._folder / LOG_FILE, self._folder / "training.png"
        if self._plan.steps:
            draw_training(log, chart)
        else:  # those of a training that this one replaces
            log.unlink(missing_ok=True)
            chart.unlink(missing_ok=True)
        if self._options.on_error == "skip":
            write_skipped(self._folder, self.skipped)
            say(describe_skipped(self._folder, self.skipped))
        else:
            # of the training that this one replaces
            (self._folder / SKIPPED_FILE).unlink(missing_ok=True)
        self._state_file.unlink(missing_ok=True)  # last: all that is missing can still be made again


def _start_model(options: TrainingOptions) -> tuple[EfficientAD, Path]:
    """A model with its first weights, and the file that its teacher came from."""
    if options.memory > MOST_MEMORY_PATCHES:
        raise UserError(
            f"--memory {options.memory} is more than the {MOST_MEMORY_PATCHES} patches that a model may have"
        )
    torch.manual_seed(options.seed)
    model = EfficientAD(options.model_size, has_student=options.train_steps > 0)
    if rank() > 0:
        torch.manual_seed(options.seed + 1_000_003 * rank())  # all begin alike, but each has its own dropout
    return model, load_teacher_weights(model, options.weights)
