"""The memory of good patches: how it is chosen, what it finds, and what becomes of it in a file."""

import pytest
import torch

from efficientad.benchmarking import reference
from efficientad.data.transforms import to_unit_range
from efficientad.data.views import View
from efficientad.detector import memory_map as memory_map_module
from efficientad.detector.checkpoint import load_model, save_model
from efficientad.detector.memory_map import memory_distances, pool_features, spread_distances
from efficientad.detector.model import EfficientAD
from efficientad.inference.detectors import TorchDetector
from efficientad.training import memory as memory_module
from efficientad.training.cache import TeacherFeatures
from efficientad.training.fitting import fit_map_quantiles, fit_teacher_statistics, map_held_out
from efficientad.training.memory import choose_coreset, first_copies, fit_memory, weigh_patches
from stubs import HeldImages

CPU = torch.device("cpu")


def rows_of(features):
    """What a memory would hold of each image: N x places x 384."""
    return pool_features(features).flatten(2).transpose(1, 2)


def memory_map(features, memory, weights):
    return spread_distances(memory_distances(features, memory, weights), features.shape[2:])


def random_patches(count, channels=16, seed=0):
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(seed))


def farthest(patches, chosen):
    """The largest distance of any patch to the nearest chosen one."""
    return torch.cdist(patches.double(), patches[chosen].double()).amin(dim=1).max().item()


@pytest.mark.parametrize("size", [1, 100, 256, 257, 700, 1999])
def test_all_that_are_chosen_are_distinct(size):
    patches = random_patches(2000)
    chosen = choose_coreset(patches, size, seed=3)
    assert chosen.dtype == torch.int64 and chosen.device == CPU
    assert len(chosen) == size == len(set(chosen.tolist()))


def test_rare_patches_are_covered_where_random_ones_would_miss_them():
    common = 0.1 * random_patches(6000)
    centres = 5 * random_patches(20, seed=1)
    rare = (centres[:, None] + 0.1 * random_patches(20 * 3, seed=2).view(20, 3, 16)).flatten(0, 1)
    patches = torch.cat([common, rare])[torch.randperm(6060, generator=torch.Generator().manual_seed(3))]
    chosen = choose_coreset(patches, 600, seed=0)
    at_random = torch.randperm(6060, generator=torch.Generator().manual_seed(4))[:600]
    assert farthest(centres, slice(None)) == 0
    assert farthest(patches, chosen) < 0.7 < 5 < farthest(patches, at_random)
    assert torch.cdist(centres, patches[chosen]).amin(dim=1).max() < 1


def test_it_covers_nearly_as_well_as_one_by_one():
    """Greedy k-centre takes one patch in a round; many in a round may not cost much."""
    patches = random_patches(1500)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(1500, generator=generator)[:256].tolist()
    distances = torch.cdist(patches, patches[chosen]).amin(dim=1)
    while len(chosen) < 700:
        chosen.append(int(distances.argmax()))
        distances = torch.minimum(distances, torch.cdist(patches, patches[chosen[-1:]])[:, 0])
    assert farthest(patches, choose_coreset(patches, 700, seed=0)) < 1.15 * farthest(patches, chosen)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("different", [3, 200, 300, 900])
def test_copies_are_not_chosen_twice(scale, different):
    """Also among the first ones, in the last round, and where rounding hides that a distance is zero."""
    originals = scale * (5 + random_patches(different, 384))
    order = torch.randperm(5 * different, generator=torch.Generator().manual_seed(1)) % different
    chosen = choose_coreset(originals[order], 2000, seed=0)
    assert sorted(order[chosen].tolist()) == list(range(different))


def test_more_than_there_are():
    patches = random_patches(400)
    assert sorted(choose_coreset(patches, 10_000, seed=0).tolist()) == list(range(400))
    assert choose_coreset(patches[:1], 5, seed=0).tolist() == [0]


def test_the_seed_decides():
    patches = random_patches(3000).half()
    first, second, other = (choose_coreset(patches, 500, seed) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_copies_are_one_image():
    assert first_copies(["a", "b", "a", "c", "b", "a"]).tolist() == [0, 1, 0, 3, 1, 0]


def random_pixels(count, seed=0, size=64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.fixture
def tiny(tiny_networks):
    """A model without a student, for images of 64 x 64 pixels: 16 patches each."""
    torch.manual_seed(0)
    return EfficientAD(view=View(64, 64), has_student=False).eval()


def fitted_memory(model, pixels, indices, patches, seed=0, budget=1e9):
    teacher_features = TeacherFeatures(model, budget, CPU, "fp32")
    fit_teacher_statistics(model, HeldImages(pixels), indices, teacher_features)
    fit_memory(model, HeldImages(pixels), indices, teacher_features, patches, seed)
    return model.memory.clone()


def as_rows(patches):
    return {tuple(row) for row in patches.half().tolist()}


def test_only_the_training_images_are_remembered(tiny):
    pixels = random_pixels(9)
    pixels[:2], pixels[7:] = 255, 0  # of others
    found = fitted_memory(tiny, pixels, range(2, 7), 1000)
    assert found.dtype == torch.float32 and found.shape == (5 * 16, 384)
    with torch.no_grad():
        features = tiny.teacher_features(tiny.normalize(to_unit_range(pixels)))
    nearest = torch.cdist(rows_of(features).double(), found.double()).amin(dim=2)
    assert nearest[2:7].max() < 0.05 < 1 < nearest[[0, 1, 7, 8]].min()
    pixels[:2] = random_pixels(2, seed=7)
    assert torch.equal(fitted_memory(tiny, pixels, range(2, 7), 1000), found)


def test_what_is_cached_changes_nothing(tiny):
    pixels = random_pixels(6)
    one_answer = 2 * 384 * 8 * 8
    kept, some, none = (
        fitted_memory(tiny, pixels, range(6), 50, budget=budget) for budget in (1e9, 3 * one_answer, 0)
    )
    assert kept.shape == (50, 384) and torch.equal(kept, some) and torch.equal(kept, none)


def test_candidates_are_limited(tiny, monkeypatch):
    monkeypatch.setattr(memory_module, "CANDIDATES", 10)
    pixels = random_pixels(6)
    first, second, other = (fitted_memory(tiny, pixels, range(6), 1000, seed) for seed in (1, 1, 2))
    assert len(first) == 12  # two of each image
    assert torch.equal(first, second) and as_rows(first) != as_rows(other)


def test_larger_images_give_more_candidates():
    """At 512 x 512, screws lost 2.5 points of AUROC with those of 256 x 256."""
    sizes = [(64, 64), (256, 256), (512, 512), (256, 384), (1024, 1024)]
    expected = [200_000, 200_000, 800_000, 300_000, 1_000_000]
    assert [memory_module.count_candidates(View(*size)) for size in sizes] == expected


def test_what_is_remembered_has_no_distance():
    features = random_patches(384 * 56 * 56, 1).view(1, 384, 56, 56)
    remembered = rows_of(features)[0]
    torch.testing.assert_close(memory_map(features, remembered, torch.ones(784)), torch.zeros(1, 1, 56, 56))
    without_one = torch.cat([remembered[:300], remembered[301:]])
    places = memory_map(features, without_one, torch.ones(783))[0, 0].nonzero()
    row, column = divmod(300, 28)
    assert places[:, 0].unique().tolist() == list(range(2 * row - 1, 2 * row + 3))
    assert places[:, 1].unique().tolist() == list(range(2 * column - 1, 2 * column + 3))


@pytest.mark.parametrize("patches", [1, 5, 7, 8, 16, 17, 23])
def test_the_map_equals_the_plain_version(monkeypatch, patches):
    """In blocks of eight: one, several, and with a last one that is shorter."""
    monkeypatch.setattr(memory_map_module, "_MEMORY_BLOCK", 8)
    features = 3 + random_patches(2 * 384 * 56 * 56, 1).view(2, 384, 56, 56)
    memory = 3 + 0.5 * random_patches(patches, 384, seed=1)
    weights = 0.5 + torch.arange(patches) / patches
    found = memory_map(features, memory, weights)
    assert found.shape == (2, 1, 56, 56) and found.dtype == torch.float32
    torch.testing.assert_close(found, reference.memory_map(features, memory, weights), rtol=1e-4, atol=1e-5)


@pytest.fixture(params=["alone", "beside a student"])
def detector(request, tiny_networks):
    """A detector with a memory of more than one block, fitted on random images."""
    torch.manual_seed(0)
    model = EfficientAD(has_student=request.param != "alone").eval()
    pixels = random_pixels(4, size=256)
    pixels[3] = pixels[3] // 2 + 40
    fitted_memory(model, pixels, range(3), 1100)
    weights = (0.25, 0.25, 0.5) if model.student is not None else (0.0, 0.0, 1.0)
    model.map_weights.copy_(torch.tensor(weights))
    fit_map_quantiles(model, map_held_out(model, HeldImages(pixels), range(3, 4), "fp32"))
    return model


def test_a_detector_equals_the_plain_version(detector):
    images = random_pixels(5, seed=1, size=256)
    images[2:] //= torch.tensor([2, 3, 7]).view(3, 1, 1, 1)
    found = TorchDetector(detector, CPU, "fp32")(images)
    with torch.inference_mode():
        expected = reference.anomaly_maps(detector, images / 255)
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-3, atol=0.02)
    singles = [TorchDetector(detector, CPU, "fp32")(image[None]) for image in images]
    torch.testing.assert_close(torch.cat(singles), found, rtol=1e-3, atol=0.02)


def test_bf16_is_close_to_fp32(detector):
    images = random_pixels(3, seed=1, size=256) // torch.tensor([1, 2, 3], dtype=torch.uint8).view(3, 1, 1, 1)
    exact, rounded = (
        reference.scores(TorchDetector(detector, CPU, precision)(images)) for precision in ("fp32", "bf16")
    )
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.03, atol=0.5)


def test_a_saved_memory_is_half_as_large_and_comes_back_equal(detector, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    save_model(detector, tmp_path / "first" / "model.pt", {})
    stored = torch.load(tmp_path / "first" / "model.pt", weights_only=True)
    assert stored["version"] == 6 and stored["state_dict"]["memory"].dtype == torch.float16
    assert stored["config"]["memory_patches"] == 1100
    assert stored["config"]["has_student"] == (detector.student is not None)
    loaded = load_model(tmp_path / "first", CPU)
    assert loaded.memory.dtype == torch.float32 and (loaded.student is None) == (detector.student is None)
    save_model(loaded, tmp_path / "second" / "model.pt", {})
    for model in (loaded, load_model(tmp_path / "second", CPU)):
        assert model.state_dict().keys() == detector.state_dict().keys()
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, detector.state_dict()[key]), key


def test_a_distance_counts_less_where_the_memory_is_sparse():
    """A dense cluster and a wide one: by hand, from each patch's five nearest others."""
    dense, wide = 0.1 * random_patches(40, 8), 50 + random_patches(40, 8, seed=1)
    memory = torch.cat([dense, wide])
    distances = torch.cdist(memory.double(), memory.double()).square()
    spread = distances.sort(dim=1).values[:, 1:6].mean(dim=1)
    expected = (2 * spread.mean() / (spread + spread.mean())).sqrt().float()
    weights = weigh_patches(memory)
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-3)
    assert weights[:40].min() > weights[40:].max() and weights.max() <= 2**0.5
    assert weigh_patches(memory[:1]).tolist() == [1]
    assert weigh_patches(torch.ones(7, 8)).tolist() == [1] * 7
