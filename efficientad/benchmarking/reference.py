"""A plain version of the method to compare the toolkit with: fp32, NCHW, whole images in one pass, sorting."""

import math

import torch
from torch.nn import functional as F


def features(model, normalized):
    return (model.teacher(normalized) - model.teacher_mean) / model.teacher_std


def extended(model, images):
    """What the teacher and the student see: the images with the model's border, normalized."""
    if model.border == "mirror":
        images = F.pad(images, (16, 16, 16, 16), mode="reflect")
    return model.normalize(images)


def overview(model, images):
    """What the autoencoder sees: the whole images at 256 x 256, normalized."""
    if images.shape[2:] != (256, 256):
        images = F.interpolate(images, (256, 256), mode="bilinear", antialias=True)
    return model.normalize(images)


def hard_loss(teacher, student):
    distances = ((teacher - student) ** 2).flatten()
    ordered = distances.sort().values
    position = 0.999 * (len(ordered) - 1)
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    quantile = low + (position - math.floor(position)) * (high - low)
    return distances[distances >= quantile].mean()


def losses(model, images, augmented, natural):
    plain, changed = extended(model, images), extended(model, augmented)
    hard = hard_loss(features(model, plain), model.student(plain)[:, :384])
    autoencoder = model.autoencoder(overview(model, augmented))
    ae = ((features(model, changed) - autoencoder) ** 2).mean()
    stae = ((autoencoder - model.student(changed)[:, 384:]) ** 2).mean()
    if natural is None:
        penalty = torch.zeros((), device=images.device)
    else:
        penalty = (model.student(model.normalize(natural))[:, :384] ** 2).mean()
    return hard, penalty, ae, stae


def raw_maps(model, images):
    """Student-teacher, autoencoder-student and memory map, N x 1 x the grid; None where the model has none."""
    seen = extended(model, images)
    teacher, st, ae, memory = features(model, seen), None, None, None
    if model.student is not None:
        student = model.student(seen)
        autoencoder = model.autoencoder(overview(model, images))
        st = ((teacher - student[:, :384]) ** 2).mean(dim=1, keepdim=True)
        ae = ((autoencoder - student[:, 384:]) ** 2).mean(dim=1, keepdim=True)
    if len(model.memory):
        memory = memory_map(teacher, model.memory, model.memory_weights)
    return st, ae, memory


def memory_map(teacher, memory, weights):
    """The weighted distance of each average of 2 x 2 features to the nearest patch, interpolated bilinearly.

    An odd side is made even by repeating its last row or column, which is cut off from the map again.
    """
    height, width = teacher.shape[2:]
    if height % 2:
        teacher = torch.cat([teacher, teacher[:, :, -1:]], dim=2)
    if width % 2:
        teacher = torch.cat([teacher, teacher[:, :, :, -1:]], dim=3)
    count, channels, rows, columns = teacher.shape
    averages = teacher.reshape(count, channels, rows // 2, 2, columns // 2, 2).mean(dim=(3, 5))
    distances = torch.cdist(averages.permute(0, 2, 3, 1).reshape(-1, channels).double(), memory.double())
    away, place = distances.min(dim=1)
    nearest = (away**2 / channels * weights[place]).float().view(count, 1, rows // 2, columns // 2)
    return F.interpolate(nearest, (rows, columns), mode="bilinear")[:, :, :height, :width]


def quantile(values, q):
    ordered = values.flatten().sort().values.double()
    position = q * (len(ordered) - 1)
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    return float(low + (position - math.floor(position)) * (high - low))


def rim(model, images, inspected, margin):
    """The cells of the grid whose patches see something that is not inspected."""
    count, _, height, width = images.shape
    counts = torch.ones(count, 1, height // 4, width // 4) if inspected is None else inspected[:, None, ::4, ::4]
    counts = counts[:, :, margin : height // 4 - margin, margin : width // 4 - margin].float()
    padded = F.pad(counts, (4, 4, 4, 4), value=0.0 if model.border == "mirror" else 1.0)
    windows = padded.unfold(2, 9, 1).unfold(3, 9, 1)
    return (windows.flatten(4).amin(dim=4) == 0).to(images.device)


def anomaly_maps(model, images, inspected=None):
    """N x H x W maps on the 0-255 scale, of images N x 3 x H x W; 0 where the bools N x H x W are not true."""
    count, _, height, width = images.shape
    margin = 0 if model.border == "mirror" else 4  # of cells without an answer
    at_rim, total = rim(model, images, inspected, margin), 0
    fitted = (model.quantiles.tolist(), model.map_weights.tolist(), model.rim_weights.tolist())
    for raw, (start, end), weight, rim_weight in zip(raw_maps(model, images), *fitted, strict=True):
        if raw is not None:
            raw = torch.where(at_rim, rim_weight * raw, raw)
            total = total + weight * 0.1 * (raw - start) / (end - start)
    padded = torch.zeros(count, 1, height // 4, width // 4, device=images.device)
    padded[:, :, margin : height // 4 - margin, margin : width // 4 - margin] = total
    if inspected is not None:
        padded *= inspected[:, None, ::4, ::4]  # the pixel in the middle of each patch
    maps = 255 * F.interpolate(padded, (height, width), mode="bilinear")[:, 0]
    return maps if inspected is None else maps * inspected


def scores(anomaly_maps):
    """The mean of the 393 highest values of each map, whatever its size."""
    highest = anomaly_maps.flatten(1).sort(dim=1, descending=True).values
    return highest[:, :393].mean(dim=1)


def paper_target(layers):
    """The paper's 384 channels, before normalization, of layers with the same grid."""
    pooled = []
    for layer in layers:
        patches = F.unfold(layer, 3, padding=1)  # N x C*9 x positions
        pooled.append(F.adaptive_avg_pool1d(patches.transpose(1, 2), 1024))
    together = F.adaptive_avg_pool1d(torch.cat(pooled, dim=2), 384)
    return together.transpose(1, 2).unflatten(2, layers[0].shape[2:])
