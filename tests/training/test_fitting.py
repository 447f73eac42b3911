import numpy as np
import pytest
import torch

from efficientad.benchmarking import reference
from efficientad.data.transforms import to_unit_range
from efficientad.data.views import View
from efficientad.detector.anomaly_maps import RawMaps
from efficientad.detector.model import EfficientAD
from efficientad.system.errors import UserError
from efficientad.training.cache import TeacherFeatures
from efficientad.training.fitting import (
    RIM_SHARE,
    HeldOutMaps,
    fit_calibration,
    fit_map_quantiles,
    fit_rim_weights,
    fit_teacher_statistics,
    map_held_out,
    map_quantiles,
    score_held_out,
)
from efficientad.training.memory import fit_memory
from stubs import HeldImages


def random_pixels(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 256, 256), dtype=torch.uint8, generator=generator)


def fit_statistics(model, pixels, budget=1e9, precision="fp32"):
    teacher_features = TeacherFeatures(model, budget, model.teacher_mean.device, precision)
    fit_teacher_statistics(model, HeldImages(pixels), range(len(pixels)), teacher_features)
    return teacher_features


def fit_quantiles(model, pixels):
    fit_map_quantiles(model, map_held_out(model, HeldImages(pixels), range(len(pixels)), "fp32"))


def test_teacher_statistics_are_exact_for_unequal_batches(tiny_model):
    """17 images are a batch of 16 and one of 1; a mean of batch means would weigh the last one 16 times."""
    pixels = random_pixels(17)
    pixels[-1] //= 8
    fit_statistics(tiny_model, pixels)
    with torch.no_grad():
        features = tiny_model.teacher(tiny_model.normalize(to_unit_range(pixels))).double()
    expected_mean = features.mean(dim=(0, 2, 3))
    expected_std = features.std(dim=(0, 2, 3), unbiased=False)
    torch.testing.assert_close(tiny_model.teacher_mean.flatten().double(), expected_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tiny_model.teacher_std.flatten().double(), expected_std, rtol=1e-4, atol=1e-7)


def test_small_spread_around_a_large_mean_keeps_its_digits(tiny_model):
    """E[x^2] - E[x]^2 in float32 would give 0 or nonsense here."""
    with torch.no_grad():
        tiny_model.teacher[-1].weight.mul_(0.01)
        tiny_model.teacher[-1].bias.fill_(100.0)
    pixels = random_pixels(3)
    pixels[1] //= 3
    fit_statistics(tiny_model, pixels)
    with torch.no_grad():
        features = tiny_model.teacher(tiny_model.normalize(to_unit_range(pixels))).double()
    expected = features.std(dim=(0, 2, 3), unbiased=False)
    assert expected.max() < 0.05
    torch.testing.assert_close(
        tiny_model.teacher_std.flatten().double(), expected, rtol=1e-3, atol=7e-6
    )  # float32's step


def test_channel_that_never_changes_is_not_scaled(tiny_model):
    with torch.no_grad():
        tiny_model.teacher[-1].weight[7] = 0
    fit_statistics(tiny_model, random_pixels(2))
    assert tiny_model.teacher_std[0, 7, 0, 0] == 1


def test_map_quantiles_equal_sorting_all_pixels(tiny_model):
    tiny_model.memory, tiny_model.memory_weights = torch.randn(5, 384), 0.5 + torch.rand(5)
    pixels = random_pixels(18)
    fit_quantiles(tiny_model, pixels)
    with torch.no_grad():
        maps = reference.raw_maps(tiny_model, to_unit_range(pixels))
    for fitted, raw in zip(tiny_model.quantiles.tolist(), maps, strict=True):
        assert fitted == pytest.approx([reference.quantile(raw, 0.9), reference.quantile(raw, 0.995)], rel=1e-5)


@pytest.mark.parametrize("kinds", [(True, False), (False, True)])
def test_quantiles_of_maps_that_are_not_there_change_nothing(tiny_networks, kinds):
    has_student, has_memory = kinds
    model = EfficientAD(has_student=has_student, memory_patches=7 * has_memory).eval()
    pixels = random_pixels(3)
    fit_quantiles(model, pixels)
    with torch.no_grad():
        maps = reference.raw_maps(model, to_unit_range(pixels))
    for fitted, raw in zip(model.quantiles.tolist(), maps, strict=True):
        expected = (0.0, 0.1) if raw is None else (reference.quantile(raw, 0.9), reference.quantile(raw, 0.995))
        assert fitted == pytest.approx(expected, rel=1e-4)


def test_map_quantiles_are_fitted_without_dropout(tiny_model):
    """With dropout on, two fits would differ."""
    fitted = []
    for _ in range(2):
        tiny_model.train()
        fit_quantiles(tiny_model, random_pixels(4))
        assert not tiny_model.training
        fitted.append(tiny_model.quantiles.clone())
    assert torch.equal(*fitted)


def test_map_quantiles_of_more_than_2_to_24_pixels():
    values = torch.linspace(0, 1, 5351 * 56 * 56).view(-1, 1, 56, 56)
    assert values.numel() > 2**24
    quantiles = map_quantiles([RawMaps(values, 2 * values)])
    np.testing.assert_allclose(quantiles, [[0.9, 0.995], [1.8, 1.99], [0, 0.1]], rtol=1e-5)


def test_maps_without_spread_are_refused():
    flat = torch.full((2, 1, 56, 56), 0.5)
    with pytest.raises(UserError, match="without any spread"):
        map_quantiles([RawMaps(flat, flat)])


@pytest.mark.cuda
def test_statistics_on_cuda_equal_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # whose convolutions have ten bits
    torch.manual_seed(0)
    model = EfficientAD()
    pixels = random_pixels(5)
    on_cpu, on_cuda = [], []
    for device, fitted in (("cpu", on_cpu), ("cuda", on_cuda)):
        model.to(device)
        fit_statistics(model, pixels)
        fit_quantiles(model, pixels)
        fitted += [model.teacher_mean.cpu(), model.teacher_std.cpu(), model.quantiles.cpu()]
    for left, right in zip(on_cpu, on_cuda, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5)


def rim_weights(model, maps, inspected=None):
    fit_rim_weights(model, [HeldOutMaps(RawMaps(None, None, maps), inspected)])
    return model.rim_weights.tolist()


def test_a_rim_that_varies_more_counts_less(tiny_networks):
    model = EfficientAD(border="mirror", has_student=False)
    maps = torch.rand(5, 1, 64, 64)
    assert rim_weights(model, maps)[2] == pytest.approx(RIM_SHARE, rel=0.02)
    maps[..., :4, :] *= 2
    maps[..., -4:, :] *= 2
    maps[..., 4:-4, :4] *= 2
    maps[..., 4:-4, -4:] *= 2
    assert rim_weights(model, maps)[2] == pytest.approx(RIM_SHARE / 2, rel=0.02)
    maps[..., 4:-4, 4:-4] *= 10  # as where the background is dull: it is not raised
    assert rim_weights(model, maps) == pytest.approx([RIM_SHARE] * 3)
    weighted = model.weigh_rim(RawMaps(None, None, maps), None).memory
    assert torch.equal(weighted[..., 4:-4, 4:-4], maps[..., 4:-4, 4:-4])
    assert torch.equal(weighted[..., :4, :], model.rim_weights[2] * maps[..., :4, :])


def test_without_a_border_there_is_no_rim(tiny_networks):
    model = EfficientAD(has_student=False)
    assert model.rim(None) is None and rim_weights(model, torch.rand(5, 1, 56, 56)) == [1, 1, 1]


@pytest.mark.parametrize("border", ["none", "mirror"])
def test_patches_that_see_what_is_not_inspected_are_a_rim(tiny_networks, border):
    """Those whose 33 x 33 pixels reach there, whether from the edge of the picture or from an ignored spot."""
    model = EfficientAD(view=View(128, 256, "fit"), border=border, has_student=False)
    inspected = torch.zeros(1, 128, 256, dtype=torch.bool)
    inspected[..., 64:192] = True
    inspected[:, 40, 120] = False
    rim, counted = model.rim(inspected)[0, 0], model.counted(inspected)[0, 0]
    offset = 0 if border == "mirror" else 16
    for row, column in torch.cartesian_prod(*map(torch.arange, model.grid)).tolist():
        y, x = 4 * row + offset, 4 * column + offset  # the middle of the patch
        reach = inspected[0, max(0, y - 16) : y + 17 : 4, max(0, x - 16) : x + 17 : 4]
        beyond = border == "mirror" and not (16 <= y < 112)
        if counted[row, column]:
            assert rim[row, column] == (beyond or not reach.all()), (row, column)
    maps = torch.rand(1, 1, *model.grid)
    assert rim_weights(model, torch.where(rim & counted, 3 * maps, maps), inspected)[2] == pytest.approx(
        0.3, rel=0.1
    )


@pytest.mark.parametrize("border", ["none", "mirror"])
def test_only_what_counts_is_fitted(tiny_networks, border):
    """Statistics, memory and quantiles of images half of which do not count: those of the other half."""
    torch.manual_seed(0)
    model = EfficientAD(view=View(128, 128, "fit"), border=border, has_student=False).eval()
    pixels = random_pixels(6)[..., :128, :128]
    inspected = torch.zeros(6, 128, 128, dtype=torch.bool)
    inspected[..., 48:] = True

    def fit(pixels):
        images = HeldImages(pixels, inspected)
        features = TeacherFeatures(model, 1e9, torch.device("cpu"), "fp32")
        fit_teacher_statistics(model, images, range(4), features)
        fit_memory(model, images, range(4), features, 5000, seed=1)  # all patches, in any order
        maps = map_held_out(model, images, range(4, 6), "fp32")
        fit_map_quantiles(model, maps)
        fit_calibration(model, score_held_out(model, maps) * 2, 0, 0.5)
        fitted = {**model.state_dict(), "scores": torch.tensor(model.calibration.scores)}
        for key in ("memory", "memory_weights"):
            fitted[key] = fitted[key].sort(dim=0).values
        return fitted

    before = {key: value.clone() for key, value in fit(pixels).items()}
    pixels = pixels.clone()
    pixels[..., : 48 - 32] = 7  # beyond the reach of patches, and of the averages of 2 x 2 of them
    for key, value in fit(pixels).items():  # rounded by the first image, the whole of it
        torch.testing.assert_close(value, before[key], rtol=0.02, atol=0.02, msg=key)
    counted = model.counted(inspected)[:4].expand(-1, 384, -1, -1)
    with torch.no_grad():
        raw = model.teacher(model.normalize(model.cut(to_unit_range(pixels[:4])))).double()
    expected = raw.masked_select(counted).view(4, 384, -1).mean(dim=(0, 2))
    torch.testing.assert_close(model.teacher_mean.flatten().double(), expected, rtol=1e-3, atol=1e-5)
