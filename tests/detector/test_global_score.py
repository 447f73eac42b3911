"""The global score: its distances, its map, and what it does not look at."""

import numpy as np
import pytest
import torch

from efficientad.data.views import View
from efficientad.detector.anomaly_maps import RawMaps, anomaly_score
from efficientad.detector.global_score import BANDS, CHANNELS, SIZE, VIEWS, GlobalScore, join_global
from efficientad.detector.model import EfficientAD

PEAK = 20.0


def fill(score, seed=0):
    """Some orthonormal basis, and distances of random means and covariances; returns the latter, float64."""
    generator = torch.Generator().manual_seed(seed)
    score.basis.copy_(torch.linalg.qr(torch.randn(384, CHANNELS, generator=generator))[0].T)
    score.mean.copy_(torch.randn(score.mean.shape, generator=generator))
    covariances = []
    for view in range(VIEWS):
        root = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64) / SIZE**0.5
        covariances.append(root @ root.T + 0.1 * torch.eye(SIZE))
        values, vectors = torch.linalg.eigh(covariances[view])
        score.whitening[view] = (vectors / values.sqrt()) @ vectors.T
    score.levels.copy_(torch.tensor([(100.0, 200.0), (120.0, 220.0), (-0.5, 1.5)]))
    score.peak.fill_(PEAK)
    return covariances


def features_of(count, grid, seed=1):
    return torch.randn(count, 384, *grid, generator=torch.Generator().manual_seed(seed))


def bands(length):
    """Where the eight bands of a side begin and end; some share a cell if their number does not divide it."""
    return [(band * length // BANDS, -(-(band + 1) * length // BANDS)) for band in range(BANDS)]


def described(score, features):
    """Rows and columns of each image, N x 2 x 256, float64, from one mean for each of 8 x 8 fields."""
    values = features.double().numpy()
    fields = np.array(
        [
            [values[:, :, top:bottom, left:right].mean(axis=(2, 3)) for left, right in bands(values.shape[3])]
            for top, bottom in bands(values.shape[2])
        ]
    )  # 8 x 8 x N x 384
    components = np.einsum("rcni,ki->nkrc", fields, score.basis.double().numpy())
    return np.stack([components.mean(axis=3), components.mean(axis=2)], axis=1).reshape(len(values), VIEWS, SIZE)


@pytest.mark.parametrize("grid", [(56, 56), (8, 16), (19, 30)])
def test_energies_are_shares_of_the_mahalanobis_distance(grid):
    score = GlobalScore(grid)
    covariances = fill(score)
    features = features_of(3, grid)
    energies = score.energies(score.average(features))
    assert energies.shape == (3, VIEWS, BANDS) and (energies >= 0).all()
    deviations = described(score, features) - score.mean.double().numpy()
    for view, covariance in enumerate(covariances):
        expected = [row @ np.linalg.solve(covariance.numpy(), row) for row in deviations[:, view]]
        np.testing.assert_allclose(energies[:, view].sum(dim=1).numpy(), expected, rtol=1e-3)


@pytest.fixture
def plain():
    """Means of 0, covariances of 1, and the first channels."""
    score = GlobalScore((16, 16))
    score.basis.copy_(torch.eye(CHANNELS, 384))
    score.whitening.copy_(torch.eye(SIZE).expand(VIEWS, -1, -1))
    score.levels.copy_(torch.tensor([(1.0, 3.0), (2.0, 5.0), (0.25, 0.75)]))
    score.peak.fill_(PEAK)
    return score


def one_field(row, column, distance):
    """Averages that are 0 but for one field: the squared distance of its row and of its column is this."""
    averages = torch.zeros(1, 384, BANDS, BANDS)
    averages[0, 5, row, column] = BANDS * distance**0.5
    return averages


# Rows are at their 0.95 quantile at 3, columns at 5; the larger of both is 0 at 1.5 and 1 at 2.5, both of rows
@pytest.mark.parametrize(("distance", "share"), [(0.0, 0), (1.0, 0), (1.49, 0), (2.0, 0.5), (2.5, 1), (3.5, 2)])
def test_its_height_is_that_of_the_larger_distance(plain, distance, share):
    overall = plain(one_field(6, 1, distance))
    assert overall.shape == (1, 1, BANDS, BANDS) and overall.dtype == torch.float32
    assert overall.min() >= 0
    assert overall.max().item() == pytest.approx(share * PEAK, abs=1e-4)
    if not share:
        assert not overall.any()


def test_it_is_highest_where_row_and_column_cross(plain):
    overall = torch.cat([plain(one_field(*place, 9.0)) for place in ((6, 1), (0, 7))])
    assert [divmod(int(image.argmax()), BANDS) for image in overall] == [(6, 1), (0, 7)]
    row, column = 8 / 2, 7 / 3  # by how many times the way from median to quantile they are above the median
    first = overall[0, 0] / overall[0].max()
    torch.testing.assert_close(first[6, 2:], torch.full((6,), row / (row + column)))
    torch.testing.assert_close(first[:6, 1], torch.full((6,), column / (row + column)))
    assert not first[:6, 2:].any()
    both = plain(torch.cat([one_field(6, 1, 9.0), one_field(0, 7, 9.0)]))
    torch.testing.assert_close(both, overall)  # images do not depend on each other


def test_factors_are_those_of_the_distances(plain):
    averages = one_field(6, 1, 2.0)
    torch.testing.assert_close(plain(averages, torch.ones(1, VIEWS)), plain(averages))
    torch.testing.assert_close(plain(averages, torch.full((1, VIEWS), 2.5)), plain(one_field(6, 1, 5.0)))
    columns = plain(averages, torch.tensor([[0.0, 10.0]]))[0, 0]
    assert columns[:, 1].min() == columns.max() > 0 and not columns[:, 2:].any()


def test_the_score_of_the_joined_map_is_the_root_of_the_sum_of_squares():
    overall = torch.zeros(2, 1, BANDS, BANDS)
    overall[0, 0, :4] = 40.0
    local = torch.full((2, 1, 64, 64), -30.0)
    local[..., 40:, :] = 6.0
    local[..., :8, :] = 9.0
    joined = join_global(local, overall)
    assert torch.equal(joined[1], local[1])
    gain = (9.0**2 + 40**2) ** 0.5 / 9
    torch.testing.assert_close(joined[0, 0, :8], torch.full((8, 64), 9 * gain))
    torch.testing.assert_close(joined[0, 0, 8:28], torch.full((20, 64), 40.0 - 9))  # there the global map itself
    assert (joined[0, 0, 36:40] == -30).all()  # what is unremarkable remains so
    torch.testing.assert_close(joined[0, 0, 48:], torch.full((16, 64), 6 * (1 + gain) / 2))
    assert anomaly_score(joined)[0].item() == pytest.approx((9.0**2 + 40**2) ** 0.5)


def test_a_map_with_nothing_above_zero_becomes_the_global_one():
    overall, local = torch.full((1, 1, BANDS, BANDS), 40.0), torch.full((1, 1, 64, 64), -30.0)
    torch.testing.assert_close(join_global(local, overall), torch.full((1, 1, 64, 64), 39.0))
    assert torch.equal(join_global(local, 0 * overall), local)


@pytest.fixture
def model(tiny_networks):
    torch.manual_seed(0)
    model = EfficientAD(view=View(160, 96), border="mirror", memory_patches=5, has_global_score=True).eval()
    model.memory.copy_(torch.randn(5, 384))
    model.map_weights.copy_(torch.tensor((0.25, 0.25, 0.5)))
    fill(model.global_score)
    return model


def left_half(model, count=2):
    inspected = torch.zeros(count, *model.view.size, dtype=torch.bool)
    inspected[:, :, : model.view.width // 2] = True
    return inspected


@pytest.mark.parametrize("part", [False, True])
def test_tiles_give_the_same(model, part):
    images = torch.rand(2, 3, 160, 96)
    inspected = left_half(model) if part else None
    with torch.inference_mode():
        whole, answer = model.raw_maps(images, inspected), model(images, inspected)
        model.most_pixels = 64 * 64
        assert len(model.tiles()) > 3
        tiled, tiled_answer = model.raw_maps(images, inspected), model(images, inspected)
    assert whole.global_map.max() > PEAK
    torch.testing.assert_close(tiled.global_map, whole.global_map, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(tiled_answer, answer, rtol=1e-3, atol=1e-2)


def test_what_is_not_inspected_changes_nothing(model):
    features, others = features_of(2, model.grid), features_of(2, model.grid, seed=2)
    inspected = left_half(model)
    counted = model.counted(inspected)
    assert 0.4 < counted.float().mean() < 0.6

    def global_map(of, inspected):
        student, autoencoder = torch.zeros(2, 768, *model.grid), torch.zeros_like(of)
        return model.compare(of, student, autoencoder, inspected).global_map

    found = global_map(features, inspected)
    assert found.max() > 0
    assert torch.equal(global_map(torch.where(counted, features, others), inspected), found)
    assert torch.equal(global_map(torch.where(counted, features, 0), None), found)
    assert not torch.allclose(global_map(features, None), found)
    with torch.inference_mode():
        answer = model(torch.rand(2, 3, 160, 96), inspected)
    assert not answer[..., 48:].any() and answer[..., :48].max() > PEAK


def test_the_answer_is_the_joined_map_and_without_it_the_local_one(model):
    images = torch.rand(2, 3, 160, 96)
    with torch.inference_mode():
        raw, answer = model.raw_maps(images), model(images)
        local = model.combine_maps(RawMaps(*raw.local))
        model.global_score = None
        assert model.raw_maps(images).global_map is None
        torch.testing.assert_close(model(images), local)
    torch.testing.assert_close(answer, join_global(local, raw.global_map))
    assert (answer > local).any() and not torch.allclose(answer, local)


def test_half_precision_of_the_networks_does_not_reach_it(model):
    features = features_of(1, model.grid)
    exact = model.global_score(model.global_score.average(features))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.global_score(model.global_score.average(features)), exact)
