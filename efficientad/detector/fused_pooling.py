"""On a GPU: the bias, the ReLU and the pooling behind a convolution, faster than layer by layer.

Torch pools slowly where channels come last. Kernels that Triton compiles do it all in one pass, but starting Triton
takes seconds, so they are for trainings; otherwise another of torch's operations pools.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from efficientad.system.distributed import say

Pooling = Callable[[Tensor, Tensor], Tensor]  # as bias_relu_pool
_compiled_now: list[Pooling] = []  # at most one: the kernels, while compiled_pooling lasts


def bias_relu_pool(values: Tensor, bias: Tensor) -> Tensor:
    """Averages over 2 x 2 of relu(values + bias): N x C x H/2 x W/2, rounded down.

    Args:
        values: N x C x H x W, of a convolution without its bias.
        bias: C.
    """
    return F.avg_pool2d(F.relu(values + bias.view(1, -1, 1, 1)), 2)


@contextmanager
def compiled_pooling(device: torch.device) -> Iterator[None]:
    """Use the compiled kernels, on a GPU where Triton works; a note says why it does not."""
    kernels = _compile() if device.type == "cuda" else None
    if kernels:
        _compiled_now.append(kernels)
    try:
        yield
    finally:
        _compiled_now.clear()


def fast_pooling(device: torch.device, needs_gradient: bool) -> Pooling | None:
    """A faster bias_relu_pool for this device, which may overwrite its `values`; None: there is none.

    Args:
        needs_gradient: of the values or the bias.
    """
    if device.type != "cuda":
        return None
    if _compiled_now:
        return _compiled_now[0]
    return None if needs_gradient else _pool_in_place


def _pool_in_place(values: Tensor, bias: Tensor) -> Tensor:
    values = values.add_(bias.to(values.dtype).view(1, -1, 1, 1)).relu_()
    height, width = (side // 2 for side in values.shape[2:])
    return F.adaptive_avg_pool2d(values[..., : 2 * height, : 2 * width], (height, width))


@cache
def _compile() -> Pooling | None:
    """The kernels, once they have given the right answers."""
    try:
        from efficientad.detector.pooling_kernels import BiasReluPool

        with torch.inference_mode(False), torch.enable_grad():
            _compare(BiasReluPool.apply)
    except Exception as error:  # Triton is not there, or it finds no compiler, or does not know this GPU
        lines = str(error).strip().splitlines() or [type(error).__name__]
        say(f"Note: Triton does not work here, so a step takes up to twice as long: {lines[0]}")
        return None
    return BiasReluPool.apply


def _compare(pooling: Pooling) -> None:
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator).cuda() for shape in ((2, 128, 7, 9), (128,), (2, 128, 3, 4))]
    answers = []
    for function in (pooling, bias_relu_pool):
        values, bias = (tensor.clone().requires_grad_() for tensor in given[:2])
        pooled = function(values, bias)
        answers.append((pooled, *torch.autograd.grad(pooled, (values, bias), given[2])))
    for found, right in zip(*answers, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-3)
