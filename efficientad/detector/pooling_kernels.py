"""Triton kernels for a GPU: the bias, the ReLU and the pooling behind a convolution in one pass over its output.

The first layers of a PDN give large maps, and torch passes over them once for each of the three (and slowly, where
channels come last): together these took more time than the convolutions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 2048  # of the pooled map, that a program computes


class BiasReluPool(torch.autograd.Function):
    """avg_pool2d(relu(values + bias), 2), of N x C x H x W in channels_last order; C is a power of two."""

    @staticmethod
    def forward(ctx, values: Tensor, bias: Tensor) -> Tensor:
        """N x C x H/2 x W/2, rounded down; computed in float32.

        Args:
            values: of any floating dtype, on a GPU.
            bias: C.
        """
        values = values.contiguous(memory_format=torch.channels_last)
        count, channels, height, width = values.shape
        shape, order = (count, channels, height // 2, width // 2), torch.channels_last
        pooled = torch.empty(shape, dtype=values.dtype, device=values.device, memory_format=order)
        grid, block = _programs(pooled)
        _pool[grid](values, bias, pooled, height, width, *shape[2:], channels, block)
        ctx.save_for_backward(values, bias)
        return pooled

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of both; the bias's from sums of a fixed order, so always the same."""
        values, bias = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        grid, block = _programs(gradient)
        (height, width), channels = gradient.shape[2:], values.shape[1]
        of_values = torch.empty_like(values, memory_format=torch.channels_last)
        of_values[:, :, 2 * height :] = 0  # what pooling leaves out
        of_values[..., 2 * width :] = 0
        sums = torch.empty((grid[0] * grid[1], channels), dtype=torch.float32, device=values.device)
        _unpool[grid](
            values, bias, gradient, of_values, sums, *values.shape[2:], height, width, channels, block
        )  # fmt: skip
        return of_values, sums.sum(dim=0).to(bias.dtype)


def _programs(pooled: Tensor) -> tuple[tuple[int, int], int]:
    """The grid of programs, and the columns of the pooled map that each of them computes."""
    count, channels, height, width = pooled.shape
    block = max(1, _ELEMENTS // channels)
    return (count * height, triton.cdiv(width, block)), block


@triton.jit
def _pool(values, bias, pooled, rows, columns, height, width, channels: tl.constexpr, block: tl.constexpr):
    place = tl.program_id(0).to(tl.int64)  # a row of a pooled map
    column = tl.program_id(1) * block + tl.arange(0, block)
    channel = tl.arange(0, channels)
    inside = (column < width)[:, None]
    added = tl.load(bias + channel).to(tl.float32)[None, :]
    first = values + ((place // height) * rows + 2 * (place % height)) * columns * channels
    offsets = 2 * column[:, None] * channels + channel[None, :]
    total = tl.zeros((block, channels), tl.float32)
    for down in tl.static_range(2):
        for right in tl.static_range(2):
            value = tl.load(first + (down * columns + right) * channels + offsets, mask=inside, other=0.0)
            total += tl.maximum(value.to(tl.float32) + added, 0.0)
    targets = pooled + (place * width + column)[:, None] * channels + channel[None, :]
    tl.store(targets, (0.25 * total).to(pooled.dtype.element_ty), mask=inside)


@triton.jit
def _unpool(
    values, bias, gradient, of_values, sums, rows, columns, height, width,
    channels: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    channel = tl.arange(0, channels)
    inside = (column < width)[:, None]
    added = tl.load(bias + channel).to(tl.float32)[None, :]
    start = ((place // height) * rows + 2 * (place % height)) * columns * channels
    offsets = 2 * column[:, None] * channels + channel[None, :]
    sources = gradient + (place * width + column)[:, None] * channels + channel[None, :]
    quarter = 0.25 * tl.load(sources, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((block, channels), tl.float32)
    for down in tl.static_range(2):
        for right in tl.static_range(2):
            corner = start + (down * columns + right) * channels
            value = tl.load(values + corner + offsets, mask=inside, other=0.0)
            passed = tl.where(value.to(tl.float32) + added > 0, quarter, 0.0)
            tl.store(of_values + corner + offsets, passed.to(of_values.dtype.element_ty), mask=inside)
            total += passed
    program = place * tl.num_programs(1) + tl.program_id(1)
    tl.store(sums + program * channels + channel, tl.sum(total, axis=0))
