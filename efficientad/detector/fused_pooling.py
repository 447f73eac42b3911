"""On a GPU, one pass for the bias, the ReLU and the pooling behind a convolution, where Triton can compile it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from efficientad.system.distributed import say

Fused = Callable[[Tensor, Tensor], Tensor]  # see pooling_kernels.BiasReluPool


def fused_pooling(device: torch.device) -> Fused | None:
    """bias_relu_pool's fast version for this device; None: there is none."""
    return _compiled() if device.type == "cuda" and torch.cuda.is_available() else None


def bias_relu_pool(values: Tensor, bias: Tensor) -> Tensor:
    """Averages over 2 x 2 of relu(values + bias): N x C x H/2 x W/2, rounded down.

    Args:
        values: N x C x H x W, of a convolution without its bias.
        bias: C.
    """
    return F.avg_pool2d(F.relu(values + bias.view(1, -1, 1, 1)), 2)


@cache
def _compiled() -> Fused | None:
    """The kernels, once they have given the right answers; a note says why not."""
    try:
        from efficientad.detector.pooling_kernels import BiasReluPool

        with torch.inference_mode(False), torch.enable_grad():
            _compare(BiasReluPool.apply)
    except Exception as error:  # Triton is not there, or it finds no compiler, or does not know this GPU
        lines = str(error).strip().splitlines() or [type(error).__name__]
        say(f"Note: Triton does not work here, so the GPU takes about twice as long: {lines[0]}")
        return None
    return BiasReluPool.apply


def _compare(fused: Fused) -> None:
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator).cuda() for shape in ((2, 128, 7, 9), (128,), (2, 128, 3, 4))]
    answers = []
    for function in (fused, bias_relu_pool):
        values, bias = (tensor.clone().requires_grad_() for tensor in given[:2])
        pooled = function(values, bias)
        answers.append((pooled, *torch.autograd.grad(pooled, (values, bias), given[2])))
    for found, right in zip(*answers, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-3)
