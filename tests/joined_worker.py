"""Everything in which ranks work together, on given images, for one process or several."""

import sys
from pathlib import Path

import torch

import stubs
from efficientad.data.views import View
from efficientad.detector.model import EfficientAD
from efficientad.system.distributed import own_part, process_group, rank, sum_over_ranks
from efficientad.training import fitting
from efficientad.training.cache import TeacherFeatures
from efficientad.training.global_fit import fit_global_score
from efficientad.training.left_out import score_left_out
from efficientad.training.loop import Learner
from efficientad.training.memory import fit_memory
from efficientad.training.options import TrainingPlan, map_weights

CPU = torch.device("cpu")
MEMORY_PATCHES = 300  # of two rounds of the choice


def joined_work(image_size=64, batches=(5, 4, 1), seen=7, compared=23):
    """Losses and gradients of steps whose batches the ranks share, and statistics of images that they share.

    The second batch is even, the last one leaves nothing for a second rank. Dropout is off. The global score is
    fitted on more images.
    """
    torch.manual_seed(0)
    model = EfficientAD(view=View(image_size, image_size)).eval()
    pixels = torch.randint(0, 256, (compared, 3, image_size, image_size), dtype=torch.uint8)
    natural = torch.rand(max(batches), 3, image_size, image_size)
    images, indices = stubs.HeldImages(pixels), range(seen)
    teacher_features = TeacherFeatures(model, 1e9, CPU, "fp32")
    fitting.fit_teacher_statistics(model, images, indices, teacher_features)
    if rank() > 0:
        torch.manual_seed(rank())
    plan = TrainingPlan(100, 1, 1e-3, 0.0, CPU, "fp32", seed=1)
    learner, losses, gradients = Learner(model, plan), [], []
    for batch in batches:
        own = torch.arange(batch)[own_part(batch)]
        plain = pixels[own] / 255
        teacher_plain = model.normalize_features(teacher_features(own, pixels[own]))
        overview = None if image_size == 256 else model.overview(plain)
        share = torch.stack(learner.step(plain, teacher_plain, natural[own], batch, overview)).detach()
        losses.append(sum_over_ranks(share))
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    owners = fit_memory(model, images, indices[: seen - 1], teacher_features, MEMORY_PATCHES, seed=2)
    factors = fit_global_score(model, images, range(compared), teacher_features, 1.0)
    model.map_weights.copy_(torch.tensor(map_weights(has_student=True, has_memory=True)))
    fitting.fit_map_quantiles(model, fitting.map_held_out(model, images, indices, "fp32"))
    left_out = score_left_out(model, images, indices[: seen - 1], teacher_features, owners, factors, "fp32")
    scores = torch.tensor(fitting.score_images(model, images, indices, "fp32", "Scoring"))
    return {
        "losses": losses,
        "gradients": gradients,
        "state": model.state_dict(),
        "scores": scores,
        "left_out": torch.tensor(left_out),
        "factors": factors,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "--real" not in sys.argv:
        stubs.use_tiny_networks()
    with process_group("cpu"):
        found = joined_work(**({"image_size": 256, "batches": (3, 1), "seen": 4} if "--real" in sys.argv else {}))
        if rank() == 0:
            torch.save(found, sys.argv[1])
    threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in threads if "gloo" in name], f"the group outlives its end: {threads}"
