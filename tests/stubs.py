"""Stand-ins that make a distillation take milliseconds: a random backbone at strides 8 and 16, tiny teachers."""

import torch
from torch import nn

from conftest import tiny_autoencoder, tiny_pdn
from efficientad.detector import networks
from efficientad.pretraining.backbones import Backbone
from efficientad.training.cache import ImageBatch


def random_backbone(name="random", layers=None, weights=None):
    torch.manual_seed(7)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 17, stride=8, padding=8), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU()
    )
    return Backbone(network, layers or ["1", "3"])


def use_tiny_networks():
    networks.build_pdn, networks.build_autoencoder = tiny_pdn, tiny_autoencoder


class HeldImages:
    """What ImageSet gives, for images that stand in a uint8 tensor N x 3 x H x W, and bools N x H x W or None."""

    def __init__(self, pixels, inspected=None):
        self.pixels, self.inspected = pixels, inspected
        self.digests = [str(image.tolist()) for image in pixels]

    def __len__(self):
        return len(self.pixels)

    def batches(self, order):
        for indices in order:
            inspected = None if self.inspected is None else self.inspected[indices]
            yield ImageBatch(indices, self.pixels[indices], inspected)
