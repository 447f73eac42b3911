"""The plain version of the method, which the toolkit is held against: fp32, NCHW, whole passes, sorting."""

import math

import torch
from torch.nn import functional as F


def features(model, normalized):
    return (model.teacher(normalized) - model.teacher_mean) / model.teacher_std


def hard_loss(teacher, student):
    distances = ((teacher - student) ** 2).flatten()
    ordered = distances.sort().values
    position = 0.999 * (len(ordered) - 1)
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    quantile = low + (position - math.floor(position)) * (high - low)
    return distances[distances >= quantile].mean()


def losses(model, images, augmented, natural):
    plain, changed = model.normalize(images), model.normalize(augmented)
    hard = hard_loss(features(model, plain), model.student(plain)[:, :384])
    autoencoder = model.autoencoder(changed)
    ae = ((features(model, changed) - autoencoder) ** 2).mean()
    stae = ((autoencoder - model.student(changed)[:, 384:]) ** 2).mean()
    if natural is None:
        penalty = torch.zeros((), device=images.device)
    else:
        penalty = (model.student(model.normalize(natural))[:, :384] ** 2).mean()
    return hard, penalty, ae, stae


def raw_maps(model, images):
    normalized = model.normalize(images)
    teacher, student = features(model, normalized), model.student(normalized)
    st = ((teacher - student[:, :384]) ** 2).mean(dim=1, keepdim=True)
    ae = ((model.autoencoder(normalized) - student[:, 384:]) ** 2).mean(dim=1, keepdim=True)
    return st, ae


def quantile(values, q):
    ordered = values.flatten().sort().values.double()
    position = q * (len(ordered) - 1)
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    return float(low + (position - math.floor(position)) * (high - low))


def anomaly_maps(model, images):
    """N x 256 x 256 maps on the 0-255 scale, of images N x 3 x 256 x 256."""
    (st, ae), ((st_start, st_end), (ae_start, ae_end)) = raw_maps(model, images), model.quantiles.tolist()
    st = 0.1 * (st - st_start) / (st_end - st_start)
    ae = 0.1 * (ae - ae_start) / (ae_end - ae_start)
    padded = torch.zeros(len(images), 1, 64, 64, device=images.device)
    padded[:, :, 4:60, 4:60] = 0.5 * st + 0.5 * ae
    return 255 * F.interpolate(padded, (256, 256), mode="bilinear")[:, 0]


def paper_target(layers):
    """The paper's 384 channels of layers that have the same grid, before their normalization."""
    pooled = []
    for layer in layers:
        patches = F.unfold(layer, 3, padding=1)  # N x C*9 x positions
        pooled.append(F.adaptive_avg_pool1d(patches.transpose(1, 2), 1024))
    together = F.adaptive_avg_pool1d(torch.cat(pooled, dim=2), 384)
    return together.transpose(1, 2).unflatten(2, layers[0].shape[2:])
