"""A plain version of the method to compare the toolkit with: fp32, NCHW, whole passes, sorting."""

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
    """Student-teacher, autoencoder-student and memory map, N x 1 x 56 x 56; None where the model has none."""
    normalized = model.normalize(images)
    teacher, st, ae, memory = features(model, normalized), None, None, None
    if model.student is not None:
        student = model.student(normalized)
        st = ((teacher - student[:, :384]) ** 2).mean(dim=1, keepdim=True)
        ae = ((model.autoencoder(normalized) - student[:, 384:]) ** 2).mean(dim=1, keepdim=True)
    if len(model.memory):
        memory = memory_map(teacher, model.memory, model.memory_weights)
    return st, ae, memory


def memory_map(teacher, memory, weights):
    """The weighted distance of each average of 2 x 2 features to the nearest patch, interpolated bilinearly."""
    count, channels, height, width = teacher.shape
    averages = teacher.reshape(count, channels, height // 2, 2, width // 2, 2).mean(dim=(3, 5))
    distances = torch.cdist(averages.permute(0, 2, 3, 1).reshape(-1, channels).double(), memory.double())
    away, place = distances.min(dim=1)
    nearest = (away**2 / channels * weights[place]).float().view(count, 1, height // 2, width // 2)
    return F.interpolate(nearest, (height, width), mode="bilinear")


def quantile(values, q):
    ordered = values.flatten().sort().values.double()
    position = q * (len(ordered) - 1)
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    return float(low + (position - math.floor(position)) * (high - low))


def anomaly_maps(model, images):
    """N x 256 x 256 maps on the 0-255 scale, of images N x 3 x 256 x 256."""
    total = 0
    for raw, (start, end), weight in zip(
        raw_maps(model, images), model.quantiles.tolist(), model.map_weights.tolist(), strict=True
    ):
        if raw is not None:
            total = total + weight * 0.1 * (raw - start) / (end - start)
    padded = torch.zeros(len(images), 1, 64, 64, device=images.device)
    padded[:, :, 4:60, 4:60] = total
    return 255 * F.interpolate(padded, (256, 256), mode="bilinear")[:, 0]


def scores(anomaly_maps):
    """The mean of the highest 0.6 % of each map: of 393 of 65,536 values."""
    highest = anomaly_maps.flatten(1).sort(dim=1, descending=True).values
    return highest[:, : round(0.006 * highest.shape[1])].mean(dim=1)


def paper_target(layers):
    """The paper's 384 channels, before normalization, of layers with the same grid."""
    pooled = []
    for layer in layers:
        patches = F.unfold(layer, 3, padding=1)  # N x C*9 x positions
        pooled.append(F.adaptive_avg_pool1d(patches.transpose(1, 2), 1024))
    together = F.adaptive_avg_pool1d(torch.cat(pooled, dim=2), 384)
    return together.transpose(1, 2).unflatten(2, layers[0].shape[2:])
