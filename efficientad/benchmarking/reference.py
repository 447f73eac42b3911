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


def raw_maps(model, images, teacher=None):
    """Student-teacher, autoencoder-student and memory map, N x 1 x the grid; None where the model has none.

    The teacher's features N x 384 x the grid, if they are known already.
    """
    seen = extended(model, images)
    teacher, st, ae, memory = features(model, seen) if teacher is None else teacher, None, None, None
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


def global_map(fitted, features):
    """The global score's map, N x 1 x 8 x 8, of features N x 384 x the grid, which are 0 where nothing counts.

    How far the averages of each row and each column of 8 x 8 fields are from those of good images; a field is
    marked by what its row and its column have of that.
    """
    fields = F.adaptive_avg_pool2d(features, 8).double()
    return torch.stack([map_of_fields(fitted, image) for image in fields])[:, None].float()


def map_of_fields(fitted, fields):
    """Of one image, 8 x 8, from 384 x 8 x 8; all in float64."""
    components = torch.tensordot(fitted.basis.double(), fields, dims=1)
    median, high = fitted.levels[2].double()
    heights, marks = [], []
    for view, described in enumerate((components.mean(dim=2), components.mean(dim=1))):  # of rows, of columns
        away = described.flatten() - fitted.mean[view]
        root = torch.linalg.inv(fitted.whitening[view].double())  # of the covariance
        distance = away @ torch.linalg.solve(root @ root, away)
        middle, edge = fitted.levels[view].double()
        heights.append((distance - middle) / (edge - middle))
        in_band = torch.linalg.solve(root, away).view(32, 8).square().sum(dim=0)
        marks.append(in_band / in_band.max() * heights[-1].clamp(min=0))
    crossing = marks[0][:, None] + marks[1][None, :]
    if max(heights) <= 0:
        return torch.zeros_like(crossing)
    peak = fitted.peak * (max(heights) - median) / (high - median)
    return peak.clamp(min=0) * crossing / crossing.max()


def quantile(values, q):
    ordered = values.flatten().sort().values.double()
    position = q * (len(ordered) - 1)
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    return float(low + (position - math.floor(position)) * (high - low))


def counted(model, images, inspected):
    """The cells of the grid whose middle is inspected: 1 or 0, N x 1 x the grid."""
    count, _, height, width = images.shape
    margin = 0 if model.border == "mirror" else 4  # of cells without an answer
    cells = torch.ones(count, 1, height // 4, width // 4) if inspected is None else inspected[:, None, ::4, ::4]
    return cells[:, :, margin : height // 4 - margin, margin : width // 4 - margin].float().to(images.device)


def rim(model, counts):
    """The cells of the grid whose patches see something that is not inspected."""
    padded = F.pad(counts, (4, 4, 4, 4), value=0.0 if model.border == "mirror" else 1.0)
    windows = padded.unfold(2, 9, 1).unfold(3, 9, 1)
    return windows.flatten(4).amin(dim=4) == 0


def anomaly_maps(model, images, inspected=None):
    """N x H x W maps on the 0-255 scale, of images N x 3 x H x W; 0 where the bools N x H x W are not true."""
    counts, teacher = counted(model, images, inspected), features(model, extended(model, images))
    at_rim, total = rim(model, counts), 0
    fitted = (model.quantiles.tolist(), model.map_weights.tolist(), model.rim_weights.tolist())
    for raw, (start, end), weight, rim_weight in zip(raw_maps(model, images, teacher), *fitted, strict=True):
        if raw is not None:
            raw = torch.where(at_rim, rim_weight * raw, raw)
            total = total + weight * 0.1 * (raw - start) / (end - start)
    padded = F.pad(total * counts, (0 if model.border == "mirror" else 4,) * 4)
    maps = 255 * F.interpolate(padded, images.shape[2:], mode="bilinear")[:, 0]
    if inspected is not None:
        maps = maps * inspected
    if model.global_score is not None:
        maps = torch.stack([*map(joined, maps, global_map(model.global_score, teacher * counts))])
    return maps if inspected is None else maps * inspected


def joined(local, overall):
    """A map H x W, raised by the global score's 1 x 8 x 8: its score becomes the root of the sum of squares."""
    score, height = scores(local[None]).clamp(min=1), overall.max()
    gain = torch.hypot(score, height) / score - 1
    shape = overall if height == 0 else overall / height
    shape = F.interpolate(shape[None], local.shape, mode="bilinear")[0, 0]
    raised = torch.where(local > 0, local * (1 + gain * (0.5 + 0.5 * shape)), local)
    return torch.where((height - score) * shape > raised.clamp(min=0), (height - score) * shape, raised)


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
