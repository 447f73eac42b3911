"""Networks as other EfficientAD tools build and save them, from the paper's tables."""

import enum

import torch
from torch import nn

ANOMALIB_PARTS = {"teacher": "teacher", "student": "student", "autoencoder": "ae"}


class ModelSize(str, enum.Enum):
    """A class that the file names and the reader does not know."""

    S = "small"


def paper_pdn(channels, padding=0):
    """Table 5."""
    return nn.Sequential(
        nn.Conv2d(3, 128, kernel_size=4, padding=3 * padding),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(kernel_size=2, stride=2, padding=padding),
        nn.Conv2d(128, 256, kernel_size=4, padding=3 * padding),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(kernel_size=2, stride=2, padding=padding),
        nn.Conv2d(256, 256, kernel_size=3, padding=padding),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, channels, kernel_size=4),
    )


def paper_autoencoder():
    """Table 7."""
    layers, before = [], 3
    for after in (32, 32, 64, 64, 64):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU(inplace=True)]
        before = after
    layers.append(nn.Conv2d(64, 64, 8))
    for size in (3, 8, 15, 32, 63, 127):
        layers += [nn.Upsample(size=size, mode="bilinear"), nn.Conv2d(64, 64, 4, padding=2), nn.ReLU(inplace=True)]
        layers.append(nn.Dropout(0.2))
    layers += [nn.Upsample(size=56, mode="bilinear"), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(64, 384, 3, padding=1))


def save_whole(folder, **networks):
    """As torch.save leaves whole networks."""
    folder.mkdir(exist_ok=True)
    for name, network in networks.items():
        torch.save(network, folder / f"{name}_final.pth")


def anomalib_names(network, part):
    """Anomalib's names of the weights of a network."""
    convolutions = [index for index, layer in enumerate(network) if isinstance(layer, nn.Conv2d)]
    encoding = sum(layer.stride == (2, 2) for layer in network if isinstance(layer, nn.Conv2d)) + 1
    names = {}
    for number, index in enumerate(convolutions, start=1):
        name = f"conv{number}"
        if part == "autoencoder":
            name = f"encoder.en{name}" if number <= encoding else f"decoder.deconv{number - encoding}"
        names[f"{index}."] = f"{ANOMALIB_PARTS[part]}.{name}."
    return {key: names[f"{key.partition('.')[0]}."] + key.partition(".")[2] for key in network.state_dict()}


def save_anomalib(path, model, prefix="model.", change=None, **more):
    """A checkpoint of Lightning with the networks, statistics and quantiles of a detector of ours."""
    state = {}
    for part in ANOMALIB_PARTS:
        network = model.get_submodule(part)
        for key, name in anomalib_names(network, part).items():
            state[prefix + name] = network.state_dict()[key]
    state |= {f"{prefix}mean_std.mean": model.teacher_mean, f"{prefix}mean_std.std": model.teacher_std}
    rows = zip(("st", "ae"), model.quantiles.tolist(), strict=False)
    state |= {
        f"{prefix}quantiles.q{end}_{kind}": torch.tensor(x)
        for kind, row in rows
        for end, x in zip("ab", row, strict=True)
    }
    state["image_threshold.value"] = torch.tensor(0.5)
    if change:
        change(state)
    settings = {"model_size": ModelSize.S, "padding": False, "pad_maps": True, "teacher_out_channels": 384}
    torch.save({"state_dict": state, "epoch": 3, "hyper_parameters": settings | more}, path)
