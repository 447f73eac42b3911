"""The memory of a detector: a coreset of the teacher's features of good images.

Nearest neighbours among patches of good images, and a coreset of them by greedy k-centre, are PatchCore's
(arXiv 2106.08265). Here they join the student or replace it: they know at once what it learns in tens of thousands
of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from efficientad.data.views import SIDE, View
from efficientad.detector.memory_map import pool_features
from efficientad.detector.model import EfficientAD
from efficientad.system.devices import fitting_device
from efficientad.system.distributed import gather_objects, rank
from efficientad.system.errors import UserError
from efficientad.system.progress_bars import progress_bar
from efficientad.system.random_streams import random_stream
from efficientad.training.cache import ImageSet, TeacherFeatures, features_of_each

CANDIDATES = 200_000  # patches to choose from, of images of 256 x 256 or less; 150 MB
MOST_CANDIDATES = 5 * CANDIDATES
_FIRST = 256  # patches of the first round, random
_MOST_AT_ONCE = 1024
_COMPARED_AT_ONCE = 16_384
_NEIGHBOURS = 5  # that decide the weight of a patch
_APART = 0.5  # least squared distance between patches of one round, in squared radii
_ROUNDING = 1e-5  # of a patch's squared norm: a squared distance up to that may be zero


@torch.no_grad()
def fit_memory(
    model: EfficientAD, images: ImageSet, indices: range, teacher_features: TeacherFeatures, patches: int, seed: int
) -> Tensor:
    """Set model.memory to at most `patches` patches of good training images, the same on every process.

    Args:
        model: with the teacher's statistics.
        indices: of the training images in `images`.
        teacher_features: of the model's teacher.
        seed: decides the candidates and the first patches.

    Returns:
        The image that each patch of the memory is of, by its index; of copies the first one: P, int64, on the CPU.
    """
    device = model.memory.device
    candidates_each = math.ceil(count_candidates(model.view) / len(indices))
    collected: dict[int, Tensor] = {}
    for batch, tiles in features_of_each(model, images, indices, teacher_features, "Collecting patches"):
        found = []
        for tile in tiles:
            pooled = pool_features(tile.features)[0].flatten(1).T
            if tile.counted is not None:  # averages of what counts alone
                pooled = pooled[pool_features(tile.counted.float()).flatten() == 1]
            found.append(pooled.half())
        of_image = torch.cat(found)
        generator = random_stream(seed, "memory candidates", int(batch.indices))
        some = torch.randperm(len(of_image), generator=generator)[:candidates_each]
        collected[int(batch.indices)] = of_image[some.to(device)].cpu()
    everywhere = {index: rows for part in gather_objects(collected) for index, rows in part.items()}
    everywhere = dict(sorted(everywhere.items()))
    originals = first_copies(images.digests)
    owners = torch.cat([originals[index].expand(len(rows)) for index, rows in everywhere.items()])
    candidates = torch.cat(list(everywhere.values())).to(fitting_device(device))
    if not len(candidates):
        raise UserError("what is inspected of the images is too narrow to learn from; see --roi and --ignore")
    chosen = choose_coreset(candidates, patches, seed) if rank() == 0 else None
    chosen = gather_objects(chosen)[0]
    memory = candidates[chosen.to(candidates.device)].float()
    model.memory, model.memory_weights = memory.to(device), weigh_patches(memory).to(device)
    return owners[chosen]


def first_copies(digests: Sequence[str]) -> Tensor:
    """The index of the first image with the same digest, for each image: int64."""
    first = {digest: index for index, digest in reversed(list(enumerate(digests)))}
    return torch.tensor([first[digest] for digest in digests])


def count_candidates(view: View) -> int:
    """The number of patches to choose from: more where images are larger, as they show more that is rare."""
    return min(MOST_CANDIDATES, max(CANDIDATES, CANDIDATES * view.height * view.width // SIDE**2))


@torch.no_grad()
def choose_coreset(patches: Tensor, size: int, seed: int) -> Tensor:
    """Indices of patches that cover all others: int64, at most `size`, fewer if there are fewer different ones.

    Greedy k-centre takes the patch farthest from those already taken; here each round takes many of the farthest
    that are also far from each other. Random patches would come from the commonest places: on parts in free
    rotation, 4,000 chosen patches found more than 30,000 random ones.

    Args:
        patches: n x channels, any floating dtype.
        seed: decides the first ones, which are random.
    """
    count = len(patches)
    generator = random_stream(seed, "memory")
    new = torch.randperm(count, generator=generator)[: min(_FIRST, size)].to(patches.device)
    new = new[_without_copies(patches[new])]
    chosen, distances = [new], torch.full((count,), math.inf, device=patches.device)
    bar = progress_bar(total=min(size, count), desc="Choosing patches", unit="patch", disable=rank() > 0)
    bar.update(len(new))
    while (taken := sum(map(len, chosen))) < min(size, count):
        _shorten(distances, patches, patches[new].float())
        wanted = min(size - taken, max(_FIRST, taken // 8), _MOST_AT_ONCE)
        far = distances.topk(min(4 * wanted, count))
        if not far.values[0] > 0:
            break  # the rest are copies
        new = far.indices[_apart(patches[far.indices].float(), far.values, wanted)]
        chosen.append(new)
        bar.update(len(new))
    bar.close()
    return torch.cat(chosen).cpu()


@torch.no_grad()
def weigh_patches(memory: Tensor) -> Tensor:
    """The weight of the squared distance to each patch of a memory: P, float32, near 1.

    Where good parts vary, the patches of a memory lie far from each other, and a distance to them means less: it is
    divided by the root of the mean squared distance to the nearest neighbours. The mean over all patches is added
    to that, so that a patch with a copy nearby does not count much more than the others.
    """
    away = []
    for block in memory.split(_COMPARED_AT_ONCE // 16):
        distances = torch.cdist(block, memory).square()
        nearest = distances.topk(min(_NEIGHBOURS + 1, len(memory)), dim=1, largest=False).values
        away.append(nearest[:, 1:].sum(dim=1) / _NEIGHBOURS)  # the first one is the patch itself
    spread = torch.cat(away)
    average = spread.mean()
    if not average > 0:
        return torch.ones_like(spread)
    return (2 * average / (spread + average)).sqrt()


def _shorten(distances: Tensor, patches: Tensor, new: Tensor) -> None:
    """Update the squared distances of all patches to the nearest chosen one, in place, for the `new` ones."""
    norms = new.square().sum(dim=1)
    for block, of in zip(patches.split(_COMPARED_AT_ONCE), distances.split(_COMPARED_AT_ONCE), strict=True):
        rows = block.float()
        own = rows.square().sum(dim=1)
        found = torch.addmm(norms, rows, new.T, alpha=-2).amin(dim=1) + own
        torch.minimum(of, torch.where(found > _ROUNDING * own, found, 0), out=of)


def _without_copies(patches: Tensor) -> Tensor:
    """Indices of patches that equal none before them."""
    kinds = torch.unique(patches, dim=0, return_inverse=True)[1].tolist()
    first = {kind: place for place, kind in reversed(list(enumerate(kinds)))}
    return torch.tensor(sorted(first.values()), device=patches.device)


def _apart(patches: Tensor, distances: Tensor, wanted: int) -> Tensor:
    """The first `wanted` patches, or fewer, none of which is close to one before it: indices, int64.

    Args:
        patches: by falling `distances`, squared, to those chosen before.
    """
    patches = patches[distances > 0]
    radius = distances[min(wanted, len(patches)) - 1]
    close = (torch.cdist(patches, patches).square() < _APART * radius).cpu().numpy()
    free, accepted = np.ones(len(patches), dtype=bool), []
    for place in range(len(patches)):
        if free[place]:
            accepted.append(place)
            free &= ~close[place]
        if len(accepted) == wanted:
            break
    return torch.tensor(accepted, device=patches.device)
