"""What the teacher learns: the projections of the backbone's features, and where they are read."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from efficientad.benchmarking import reference
from efficientad.pretraining.backbones import Backbone
from efficientad.pretraining.targets import DistillationTarget, averaging_matrix, pooling_weights
from stubs import random_backbone

CPU = torch.device("cpu")


@pytest.mark.parametrize("channels", [(512, 1024), (40, 300), (288,)])
def test_one_convolution_does_what_the_papers_two_averages_do(channels):
    layers = [torch.randn(2, count, 7, 7) for count in channels]
    ours = sum(F.conv2d(x, w, padding=1) for x, w in zip(layers, pooling_weights(channels, CPU), strict=True))
    torch.testing.assert_close(ours, reference.paper_target(layers), atol=1e-5, rtol=1e-4)


def test_averaging_matrix_is_adaptive_average_pooling():
    values = torch.randn(4, 100)
    expected = F.adaptive_avg_pool1d(values[:, None], 37)[:, 0]
    torch.testing.assert_close(values @ averaging_matrix(100, 37).T, expected)


class Ramp(nn.Module):
    """Every output tells the column of the pixel that its receptive field is centred on."""

    def __init__(self, stride):
        super().__init__()
        self.convolution = nn.Conv2d(3, 1, 3, stride=stride, padding=1, bias=False)
        self.convolution.weight.data.fill_(1 / 27)

    def forward(self, images):
        return self.convolution(images)


@pytest.mark.parametrize(("stride", "size"), [(8, 512), (16, 512), (8, 384), (4, 256)])
def test_features_are_read_at_the_centres_of_the_patches(stride, size):
    backbone = Backbone(Ramp(stride), ["convolution"], mean=(0, 0, 0), std=(1, 1, 1))
    target = DistillationTarget(backbone, "pool", 256, size)
    columns = torch.arange(size).float().expand(1, 3, size, size)
    read = target._at_patches(backbone(columns)[0])[0, 0]
    centres = (4 * torch.arange(56) + 16 + 0.5) * size / 256 - 0.5  # in the backbone's pixels
    inner = slice(4, -4)
    torch.testing.assert_close(read[inner, inner], centres[inner].expand(48, 48), atol=1e-2, rtol=0)


def images(count, seed=0):
    return torch.rand(count, 3, 256, 256, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("projection", ["pool", "pca"])
def test_targets_are_normalized_for_any_batches(projection):
    target = DistillationTarget(random_backbone(), projection, 128, 256)
    target.fit(images(7).split(3), "fp32")
    values = target(images(7), "fp32")
    assert values.shape == (7, 384, 24, 24)
    close = 0.02 if projection == "pool" else 0.2  # pca looks at every other patch
    assert values.mean(dim=(0, 2, 3)).abs().max() < close
    assert (values.std(dim=(0, 2, 3)) - 1).abs().max() < close
    whole = DistillationTarget(random_backbone(), projection, 128, 256)
    whole.fit([images(7)], "fp32")
    torch.testing.assert_close(whole(images(2, 1), "fp32"), target(images(2, 1), "fp32"), atol=1e-3, rtol=1e-3)


def test_components_keep_distances_of_standardized_features():
    """With fewer than 384 features nothing is lost: the rotation keeps every distance between two patches."""
    target = DistillationTarget(random_backbone(), "pca", 128, 256)
    target.fit([images(8)], "fp32")
    features = torch.cat([target._at_patches(x) for x in target._features(images(8), "fp32")], dim=1)
    features = features / features.std(dim=(0, 2, 3), keepdim=True)
    projected = target(images(8), "fp32") * target.std
    difference = features[0, :, 3, 4] - features[5, :, 10, 2]
    answer = projected[0, :, 3, 4] - projected[5, :, 10, 2]
    assert float(answer.norm()) == pytest.approx(float(difference.norm()), rel=0.1)


def test_a_channel_that_is_nearly_always_silent_is_not_blown_up():
    class MostlySilent(nn.Module):
        def forward(self, images):
            maps = F.avg_pool2d(images, 8)
            rare = (maps[:, :1] == 1).float()
            return torch.cat([maps, rare], dim=1)

    network = nn.Sequential(MostlySilent())
    target = DistillationTarget(Backbone(network, ["0"], (0, 0, 0), (1, 1, 1)), "pca", 128, 256)
    target.fit([images(4)[:, :, :1, :1].expand(4, 3, 256, 256)], "fp32")
    assert target(torch.ones(1, 3, 256, 256), "fp32").abs().median() < 50


def test_a_fitted_target_can_be_restored():
    fitted = DistillationTarget(random_backbone(), "pca", 128, 256)
    fitted.fit([images(3)], "fp32")
    restored = DistillationTarget(random_backbone(), "pca", 128, 256)
    restored.restore(fitted.fitted())
    assert torch.equal(restored(images(1), "fp32"), fitted(images(1), "fp32"))


def test_components_with_other_signs_give_the_same_target(monkeypatch):
    """Eigenvectors are what a library makes of them; a teacher begun on one machine can go on on another."""
    here = DistillationTarget(random_backbone(), "pca", 128, 256)
    here.fit([images(3)], "fp32")
    eigh = torch.linalg.eigh

    def another_eigh(matrix):
        values, vectors = eigh(matrix)
        return values, vectors * torch.tensor([1.0, -1.0]).repeat(len(values))[: len(values)]

    monkeypatch.setattr(torch.linalg, "eigh", another_eigh)
    there = DistillationTarget(random_backbone(), "pca", 128, 256)
    there.fit([images(3)], "fp32")
    torch.testing.assert_close(there(images(1), "fp32"), here(images(1), "fp32"), atol=1e-4, rtol=1e-4)
