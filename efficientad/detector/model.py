"""The detector: the three networks or a memory beside the teacher, and the fitted statistics, joined to one map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efficientad.data.views import SIDE, View
from efficientad.detector import networks
from efficientad.detector.anomaly_maps import LOCAL_MAPS, MAP_SCALE, UNFITTED_QUANTILES, RawMaps
from efficientad.detector.calibration import Calibration
from efficientad.detector.global_score import GlobalScore, join_global
from efficientad.detector.grid import (
    MAP_PADDING,
    PATCH_CENTRE,
    PATCH_STRIDE,
    Cells,
    Places,
    Upsampling,
    divide,
    grid_side,
    join_tiles,
    resize_matrix,
)
from efficientad.detector.memory_map import MEMORY_POOLING, memory_distances, spread_distances
from efficientad.detector.networks import FEATURE_CHANNELS

NO_BORDER, MIRROR = "none", "mirror"
PIXELS_PER_PASS = 2**20  # that the networks see at once on a CPU: 16 images of 256 x 256
_GPU_BYTES_PER_PIXEL = 6000  # of its whole memory; four times what a pass should take, by calculation
_LAST_UPSAMPLED = 128  # side of what the autoencoder's last upsampling takes


class EfficientAD(nn.Module):
    """Teacher, student, autoencoder, memory and the fitted statistics: the whole detector in one state_dict.

    The PDNs answer for every fourth pixel in both directions, but for a margin of 16 pixels, where their patches
    would reach beyond the image; with a border of mirrored pixels they answer there, too (not in the paper). The
    autoencoder sees the whole image at 256 x 256, whatever its size, and answers on the same grid.

    Buffers, fitted by training.fitting and training.memory:
        teacher_mean, teacher_std: 1 x 384 x 1 x 1, of the teacher's output on good training images.
        memory: P x 384, teacher features of good parts: normalized, averaged over 2 x 2 patches, a coreset of
            them; P is 0 without a memory. Not in the paper.
        memory_weights: P, the weight of a distance to each of them; see memory.weigh_patches.
        quantiles: 3 x 2; rows student-teacher, autoencoder-student and memory map, columns the 0.9 and the
            0.995 quantile over the pixels of held-out good images.
        map_weights: 3, of these maps; see training.options.map_weights.
        rim_weights: 3, at most 1: of these maps where patches reach beyond what is inspected; see training.fitting.

    Attributes:
        global_score: fitted by training.global_fit; None without one. Not in the paper.
        view: of the images; its height H and width W are those of the input.
        grid: height and width of the grid, in the paper 56 x 56.
        student, autoencoder: None in a detector with a memory alone.
        calibration: the threshold and the held-out scores behind it; None where there were too few.
        provenance: how a loaded detector was trained (save_model's `training`); under "versions" the software.
        most_pixels: that the PDNs see at once on a CPU; larger images are divided into tiles that overlap, with
            the same result.
    """

    def __init__(
        self,
        model_size: str = "small",
        view: View | None = None,
        border: str = NO_BORDER,
        has_student: bool = True,
        memory_patches: int = 0,
        has_global_score: bool = False,
    ) -> None:
        super().__init__()
        self.model_size, self.view, self.border = model_size, view or View(), border
        self.margin = PATCH_CENTRE if border == MIRROR else 0  # pixels that are added on each side
        self.grid = tuple(grid_side(side + 2 * self.margin) for side in self.view.size)
        self.most_pixels = PIXELS_PER_PASS
        self.calibration: Calibration | None = None
        self.provenance: dict[str, Any] = {}
        self.teacher = networks.build_pdn(model_size, FEATURE_CHANNELS).requires_grad_(False)
        self.student = networks.build_pdn(model_size, 2 * FEATURE_CHANNELS) if has_student else None
        self.autoencoder = networks.build_autoencoder(self.grid) if has_student else None
        self.upsampling = Upsampling(_LAST_UPSAMPLED, self.grid) if has_student else None
        self.global_score = GlobalScore(self.grid) if has_global_score else None
        # The same for every model, so not saved with it.
        self.register_buffer("image_mean", torch.tensor(networks.IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(networks.IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        for name, side in (("overview_rows", self.view.height), ("overview_columns", self.view.width)):
            matrix = resize_matrix(side, SIDE, antialias=True) if has_student else torch.empty(0)
            self.register_buffer(name, matrix, persistent=False)
        self.register_buffer("teacher_mean", torch.zeros(1, FEATURE_CHANNELS, 1, 1))
        self.register_buffer("teacher_std", torch.ones(1, FEATURE_CHANNELS, 1, 1))
        self.register_buffer("memory", torch.zeros(memory_patches, FEATURE_CHANNELS))
        self.register_buffer("memory_weights", torch.ones(memory_patches))
        self.register_buffer("quantiles", torch.tensor([UNFITTED_QUANTILES] * LOCAL_MAPS))
        self.register_buffer("map_weights", torch.tensor((0.5, 0.5, 0.0)))
        self.register_buffer("rim_weights", torch.ones(LOCAL_MAPS))

    def normalize(self, images: Tensor) -> Tensor:
        """ImageNet-normalize RGB images N x 3 x H x W in [0, 1]; every network takes the result."""
        return (images - self.image_mean) / self.image_std

    def cut(self, images: Tensor, cells: Cells | None = None) -> Tensor:
        """The pixels that the PDNs need to answer for these cells, or for the whole grid, with the border.

        Args:
            images: N x 3 x H x W, any dtype; for the whole grid floating.
        """
        if cells is None:
            return F.pad(images, (self.margin,) * 4, mode="reflect") if self.margin else images
        rows, columns = cells.pixels
        if not self.margin:
            return images[..., rows, columns]
        places = []
        for seen, side in zip((rows, columns), self.view.size, strict=True):
            place = (torch.arange(seen.start, seen.stop, device=images.device) - self.margin).abs()
            places.append(torch.where(place < side, place, 2 * (side - 1) - place))
        return images[..., places[0], :][..., places[1]]

    def overview(self, images: Tensor) -> Tensor:
        """The images as the autoencoder sees them: N x 3 x 256 x 256, float32, antialiased."""
        if images.shape[-2:] == (SIDE, SIDE):
            return images
        with torch.autocast(images.device.type, enabled=False):
            return self.overview_rows @ images.float() @ self.overview_columns.T

    def autoencode(self, overview: Tensor, places: Places | None = None) -> Tensor:
        """The autoencoder's answer: N x 384 x the grid, or windows of it.

        Args:
            overview: N x 3 x 256 x 256, normalized.
            places: where the windows lie, on the same device.
        """
        if places is None:
            return self.autoencoder(overview)
        return self._decode(self.autoencoder[:-4](overview), places)

    def _decode(self, code: Tensor, places: Places) -> Tensor:
        """The autoencoder's last layers, for windows: as if all of the grid were computed and then cut."""
        with torch.autocast(code.device.type, enabled=False):
            upsampled = places.rows[:, None] @ code.float() @ places.columns[:, None].transpose(2, 3)
        first, activation, last = self.autoencoder[-3:]
        hidden = activation(F.conv2d(upsampled.to(code.dtype), first.weight, first.bias))
        return F.conv2d(hidden * places.inside.to(hidden.dtype), last.weight, last.bias)

    def teacher_features(self, normalized: Tensor) -> Tensor:
        """Channel-normalized teacher output, N x 384 x cells, float32, for ImageNet-normalized images."""
        return self.normalize_features(networks.apply_pdn(self.teacher, normalized).float())

    def normalize_features(self, features: Tensor) -> Tensor:
        """Teacher output N x 384 x cells, float32, normalized channel by channel."""
        return (features - self.teacher_mean) / self.teacher_std

    def pixels_per_pass(self) -> int:
        """The pixels that the PDNs should see at once: what suits a CPU, or more on a GPU with much memory."""
        if not (self.quantiles.is_cuda and torch.cuda.is_available()):
            return self.most_pixels
        memory = torch.cuda.get_device_properties(self.quantiles.device).total_memory
        return max(self.most_pixels, memory // _GPU_BYTES_PER_PIXEL)

    def tiles(self) -> list[Cells]:
        """The parts of the grid that are computed one after another."""
        return divide(self.grid, self.pixels_per_pass())

    def images_per_pass(self, most: int) -> int:
        """How many images, at most, should be given at once for speed and bounded memory: 1 to `most`."""
        return max(1, min(most, self.pixels_per_pass() // (self.view.height * self.view.width)))

    def raw_maps(self, images: Tensor, inspected: Tensor | None = None) -> RawMaps:
        """The maps of sections 3.2 and 3.3, means over channels of squared differences, and the other two.

        Args:
            images: N x 3 x H x W, float32 RGB in [0, 1]; for bounded memory N as images_per_pass says.
            inspected: bools N x H x W, which the global score looks at; None: everything.
        """
        tiles = self.tiles()
        overview = self.normalize(self.overview(images)) if self.autoencoder is not None else None
        if len(tiles) == 1:
            normalized = self.normalize(self.cut(images))
            student = None if self.student is None else networks.apply_pdn(self.student, normalized).float()
            autoencoder = None if overview is None else self.autoencoder(overview).float()
            return self.compare(self.teacher_features(normalized), student, autoencoder, inspected)
        code = None if overview is None else self.autoencoder[:-4](overview)
        parts = []
        for cells in tiles:
            normalized = self.normalize(self.cut(images, cells))
            student = autoencoder = None
            if self.student is not None:
                student = networks.apply_pdn(self.student, normalized).float()
                places = Places(*(part.to(images.device) for part in self.upsampling.places([cells])))
                autoencoder = self._decode(code, places).float()
            features = self.teacher_features(normalized)
            parts.append(self._differences(features, student, autoencoder, inspected, cells))
        return self._join(parts)

    def compare(
        self,
        teacher: Tensor,
        student: Tensor | None,
        autoencoder: Tensor | None,
        inspected: Tensor | None = None,
    ) -> RawMaps:
        """The maps, from the normalized output of the teacher and those of the other networks, all float32.

        Args:
            teacher, autoencoder: N x 384 x the grid.
            student: N x 768 x the grid.
            inspected: see raw_maps.
        """
        return self._join([self._differences(teacher, student, autoencoder, inspected)])

    def _differences(
        self,
        teacher: Tensor,
        student: Tensor | None,
        autoencoder: Tensor | None,
        inspected: Tensor | None,
        cells: Cells | None = None,
    ) -> tuple[Tensor | None, ...]:
        """The first two maps, distances to the memory and averages for the global score, of all or some cells."""
        maps, distances, averages = (None, None), None, None
        if student is not None:
            of_teacher, of_autoencoder = student.split(FEATURE_CHANNELS, dim=1)
            pairs = ((teacher, of_teacher), (autoencoder, of_autoencoder))
            maps = tuple((one - other).square().mean(dim=1, keepdim=True) for one, other in pairs)
        if len(self.memory):
            distances = memory_distances(teacher, self.memory, self.memory_weights)
        if self.global_score is not None:
            counted = None if inspected is None else self.counted(inspected)
            if counted is not None and cells is not None:
                counted = counted[(..., *cells.slices)]
            averages = self.global_score.average(teacher, cells, counted)
        return *maps, distances, averages

    def _join(self, parts: Sequence[tuple[Tensor | None, ...]]) -> RawMaps:
        """The maps of the whole grid, from the _differences of its tiles."""
        *others, distances, averages = zip(*parts, strict=True)
        maps = (None if kind[0] is None else join_tiles(kind, self.tiles(), self.grid) for kind in others)
        memory = None if distances[0] is None else self.join_distances(distances)
        global_map = None if self.global_score is None else self.global_score(sum(averages[1:], averages[0]))
        return RawMaps(*maps, memory, global_map)

    def join_distances(self, parts: Sequence[Tensor]) -> Tensor:
        """The memory's map, N x 1 x the grid, from the memory_distances of each tile."""
        return spread_distances(join_tiles(parts, self.tiles(), self.grid, MEMORY_POOLING), self.grid)

    def counted(self, inspected: Tensor) -> Tensor:
        """The cells that count: bools N x 1 x the grid; those whose middle shows what is inspected.

        Args:
            inspected: bools N x H x W; see View.inspected.
        """
        first = PATCH_CENTRE - self.margin
        rows, columns = (slice(first, first + PATCH_STRIDE * length, PATCH_STRIDE) for length in self.grid)
        return inspected[:, None, rows, columns]

    def rim(self, inspected: Tensor | None) -> Tensor | None:
        """The cells whose patches see more than what is inspected: bools N x 1 x the grid; None: there are none.

        With a border these are the outer four rows and columns, and always those near pixels that do not count.

        Args:
            inspected: bools N x H x W; None: everything.
        """
        if inspected is None:
            if not self.margin:
                return None
            rim = torch.ones((1, 1, *self.grid), dtype=torch.bool, device=self.quantiles.device)
            rim[..., MAP_PADDING:-MAP_PADDING, MAP_PADDING:-MAP_PADDING] = False
            return rim
        outside = (~self.counted(inspected)).float()
        padded = F.pad(outside, (MAP_PADDING,) * 4, value=float(self.margin > 0))
        return F.max_pool2d(padded, 2 * MAP_PADDING + 1, stride=1) > 0

    def weigh_rim(self, maps: RawMaps, inspected: Tensor | None) -> RawMaps:
        """The maps times their rim_weights, where these apply."""
        rim = self.rim(inspected)
        if rim is None:
            return maps
        weighted = zip(maps.local, self.rim_weights, strict=True)
        local = (None if raw is None else torch.where(rim, weight * raw, raw) for raw, weight in weighted)
        return RawMaps(*local, maps.global_map)

    def combine_maps(self, maps: RawMaps, inspected: Tensor | None = None) -> Tensor:
        """Quantile-normalize the maps and average them with their weights (section 3.4), at the input's size.

        The global score's map multiplies the result; see join_global.

        Args:
            inspected: bools N x H x W, where the map is not 0; None: everywhere.

        Returns:
            N x 1 x H x W, float32, on the 0-255 scale, where 0 is the 0.9 and 25.5 the 0.995 quantile of good
            pixels of each map, not of their average. Values may be negative and may exceed 255.
        """
        maps = self.weigh_rim(maps, inspected)
        normalized = [
            0.1 * weight * (raw - start) / (end - start)
            for raw, (start, end), weight in zip(maps.local, self.quantiles, self.map_weights, strict=True)
            if raw is not None
        ]
        combined = sum(normalized)
        if inspected is not None:
            combined = torch.where(self.counted(inspected), combined, 0)
        if not self.margin:  # The quantiles ignore this padding: a border of zeros means "unremarkable".
            combined = F.pad(combined, (MAP_PADDING,) * 4)
        anomaly_maps = MAP_SCALE * F.interpolate(combined, self.view.size, mode="bilinear", align_corners=False)
        if inspected is not None:
            anomaly_maps = torch.where(inspected[:, None], anomaly_maps, 0)
        return anomaly_maps if maps.global_map is None else join_global(anomaly_maps, maps.global_map, inspected)

    def forward(self, images: Tensor, inspected: Tensor | None = None) -> Tensor:
        """Anomaly maps N x 1 x H x W, float32, 0-255 scale, of RGB images N x 3 x H x W in [0, 1].

        Args:
            inspected: bools N x H x W; see combine_maps.
        """
        return self.combine_maps(self.raw_maps(images, inspected), inspected)
