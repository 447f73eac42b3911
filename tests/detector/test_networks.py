import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from efficientad.benchmarking import reference
from efficientad.detector.anomaly_maps import RawMaps, anomaly_score
from efficientad.detector.grid import grid_side
from efficientad.detector.model import EfficientAD
from efficientad.detector.networks import build_autoencoder, build_pdn
from efficientad.training.options import map_weights

PARAMETERS = {"small": (2_694_144, 4_267_392), "medium": (8_026_624, 11_615_488)}
GIGA_MULTIPLY_ADDS = {"small": (15.31, 20.24), "medium": (52.03, 63.28)}


def count_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def run_on_meta(network, height=256, width=256):
    """Output shape and multiply-adds, without computing anything."""
    with torch.device("meta"):
        image = torch.empty(1, 3, height, width)
    with FlopCounterMode(display=False) as counter:
        shape = network.to("meta").eval()(image).shape
    return tuple(shape), counter.get_total_flops() / 2


@pytest.mark.parametrize("size", ["small", "medium"])
def test_pdn_has_the_papers_size(size):
    for channels, parameters, giga in zip((384, 768), PARAMETERS[size], GIGA_MULTIPLY_ADDS[size], strict=True):
        network = build_pdn(size, channels)
        assert count_parameters(network) == parameters
        shape, multiply_adds = run_on_meta(network)
        assert shape == (1, channels, 56, 56)
        assert multiply_adds / 1e9 == pytest.approx(giga, abs=0.006)


def test_autoencoder_has_the_papers_size():
    network = build_autoencoder()
    assert count_parameters(network) == 1_096_320
    shape, multiply_adds = run_on_meta(network)
    assert shape == (1, 384, 56, 56)
    assert multiply_adds / 1e9 == pytest.approx(2.39, abs=0.006)
    upsampled = [layer.size for layer in network if isinstance(layer, torch.nn.Upsample)]
    assert upsampled == [3, 8, 15, 32, 63, 127, (56, 56)]


def test_layers_have_the_numbers_that_other_tools_save():
    def numbers(network):
        return [index for index, layer in enumerate(network) if isinstance(layer, torch.nn.Conv2d)]

    assert numbers(build_pdn("small", 384)) == [0, 3, 6, 8]
    assert numbers(build_pdn("medium", 384)) == [0, 3, 6, 8, 10, 12]
    assert numbers(build_autoencoder()) == [0, 2, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 36, 38]


def test_latent_code_is_64_numbers():
    encoder = build_autoencoder()[:11]
    assert run_on_meta(encoder)[0] == (1, 64, 1, 1)


@pytest.mark.parametrize("size", [(256, 256), (320, 512), (260, 300), (64, 2000)])
@pytest.mark.parametrize("model_size", ["small", "medium"])
def test_the_grid_is_that_of_the_networks(model_size, size):
    grid = tuple(map(grid_side, size))
    assert run_on_meta(build_pdn(model_size, 384), *size)[0][2:] == grid
    assert run_on_meta(build_autoencoder(grid))[0][2:] == grid


def test_receptive_field_is_33_pixels():
    network = build_pdn("small", 384).double()
    image = torch.rand(1, 3, 65, 65, dtype=torch.double, requires_grad=True)
    output = network(image)
    output[0, :, 3, 3].sum().backward()
    rows = image.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert (rows[0].item(), rows[-1].item()) == (12, 44)  # stride 4 x position 3, and 33 pixels


def test_unknown_size_is_refused():
    with pytest.raises(ValueError, match="small or medium"):
        build_pdn("large", 384)


def test_maps_equal_the_plain_version(tiny_model):
    tiny_model.quantiles.copy_(torch.tensor([[0.1, 0.4], [0.05, 0.3], [0.2, 0.7]]))
    tiny_model.teacher_mean.uniform_(-1, 1)
    tiny_model.teacher_std.uniform_(0.5, 2)
    images = torch.rand(3, 3, 256, 256)
    with torch.inference_mode():
        maps = tiny_model(images)
        expected = reference.anomaly_maps(tiny_model, images)
    assert maps.shape == (3, 1, 256, 256)
    torch.testing.assert_close(maps[:, 0], expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(anomaly_score(maps), reference.scores(expected), rtol=1e-4, atol=1e-3)


def test_quantiles_are_applied_before_the_padding(tiny_model):
    """A map at its 0.9 quantile everywhere is 0 everywhere, padding included: no edge of other height."""
    tiny_model.quantiles.copy_(torch.tensor([[3.0, 5.0], [7.0, 9.0], [0.0, 0.1]]))
    maps = tiny_model.combine_maps(RawMaps(torch.full((1, 1, 56, 56), 3.0), torch.full((1, 1, 56, 56), 7.0)))
    assert maps.abs().max() == 0
    maps = tiny_model.combine_maps(RawMaps(torch.full((1, 1, 56, 56), 5.0), torch.full((1, 1, 56, 56), 9.0)))
    assert maps[0, 0, 128, 128] == pytest.approx(25.5)
    assert maps[0, 0, 0, 0] == 0


def test_maps_count_by_their_weights(tiny_model):
    tiny_model.quantiles.copy_(torch.tensor([[0.0, 1.0]] * 3))
    tiny_model.map_weights.copy_(torch.tensor([0.7, 0.1, 0.2]))
    maps = [torch.full((1, 1, 56, 56), value) for value in (1.0, 3.0, 5.0)]
    centre = tiny_model.combine_maps(RawMaps(*maps))[0, 0, 128, 128]
    assert centre == pytest.approx(25.5 * (0.7 * 1 + 0.1 * 3 + 0.2 * 5))


def test_weights_of_the_maps():
    assert map_weights(has_student=True, has_memory=False) == (0.5, 0.5, 0)  # the paper's
    assert map_weights(has_student=False, has_memory=True) == (0, 0, 1)
    assert map_weights(has_student=True, has_memory=True) == (0.25, 0.25, 0.5)


def test_the_score_is_the_mean_of_the_highest_values():
    maps = torch.randn(3, 1, 256, 256)
    torch.testing.assert_close(anomaly_score(maps), reference.scores(maps[:, 0]))
    maps = torch.zeros(1, 1, 256, 256)
    maps.view(-1)[:393] = 10.0
    assert anomaly_score(maps).tolist() == [10.0]
    maps.view(-1)[392] = -5.0  # and one that is not among them
    assert anomaly_score(maps).item() == pytest.approx(10 * 392 / 393)
    assert anomaly_score(torch.tensor([[[[1.0, 7.0]]]])).tolist() == [4.0]  # all there are
    larger = torch.nn.functional.pad(maps, (0, 500, 0, 300))
    assert torch.equal(anomaly_score(larger), anomaly_score(maps))  # as many pixels at any size


def test_scores_exceed_255_and_are_not_rounded(tiny_model):
    """No int16: strong defects neither saturate nor turn negative, and close scores stay apart."""
    raw = torch.zeros(2, 1, 56, 56)
    raw[0, 0, 20:30, 20:30] = 1000.0
    raw[1, 0, 20:30, 20:30] = 1000.001
    scores = anomaly_score(tiny_model.combine_maps(RawMaps(raw, raw)))
    assert scores.dtype == torch.float32
    assert scores[0] == pytest.approx(255_000, rel=1e-6)
    assert scores[1] > scores[0]


@pytest.mark.parametrize("kinds", [(True, False), (False, True), (True, True)])
def test_real_detector_equals_the_plain_version(kinds):
    torch.manual_seed(0)
    has_student, has_memory = kinds
    model = EfficientAD(has_student=has_student).eval()
    if has_memory:
        model.memory, model.memory_weights = 0.1 * torch.randn(1100, 384), 0.5 + torch.rand(1100)
    model.map_weights.copy_(torch.tensor(map_weights(has_student, has_memory)))
    model.quantiles.copy_(torch.tensor([[0.001, 0.01]] * 3))
    image = torch.rand(1, 3, 256, 256)
    with torch.inference_mode():
        expected = reference.anomaly_maps(model, image)[0]
        model.to(memory_format=torch.channels_last)
        actual = model(image.contiguous(memory_format=torch.channels_last))[0, 0]
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-2)
