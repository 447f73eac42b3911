"""What a GPU does in one pass behind a convolution: the same as layer by layer."""

import os
import subprocess
import sys

import pytest
import torch

from efficientad.detector import fused_pooling, networks
from efficientad.detector.fused_pooling import bias_relu_pool, compiled_pooling, fast_pooling
from efficientad.detector.networks import apply_pdn, build_pdn

GPU = torch.device("cuda")
KERNELS = """
import torch
from efficientad.detector.fused_pooling import bias_relu_pool
from efficientad.detector.pooling_kernels import BiasReluPool

torch.manual_seed(0)
for dtype in (torch.float32, torch.float16):
    for shape in ((2, 128, 7, 6), (1, 256, 6, 37), (3, 512, 5, 5), (1, 128, 3, 2)):
        values = torch.randn(shape).to(dtype).requires_grad_()
        bias = torch.randn(shape[1], requires_grad=True)
        pooled = BiasReluPool.apply(values, bias)
        assert pooled.dtype == dtype and pooled.is_contiguous(memory_format=torch.channels_last)
        weights = torch.randn_like(pooled)
        found = (pooled, *torch.autograd.grad(pooled, (values, bias), weights))
        exact = values.detach().float().requires_grad_()
        pooled = bias_relu_pool(exact, bias)
        right = (pooled, *torch.autograd.grad(pooled, (exact, bias), weights.float()))
        for one, other in zip(found, right, strict=True):
            torch.testing.assert_close(one.float(), other, rtol=1e-3, atol=1e-3)
print("compared")
"""


def test_the_kernels_compute_what_they_should():
    """Interpreted on the CPU, which Triton decides when it is imported."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", KERNELS], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "compared\n", done.stderr


@pytest.mark.parametrize("model_size", ["small", "medium"])
def test_a_pdn_is_the_same_with_fused_pooling(model_size, monkeypatch):
    torch.manual_seed(0)
    pdn, images, calls = build_pdn(model_size, 384), torch.randn(2, 3, 41, 46, requires_grad=True), []

    def fused(values, bias):
        calls.append(values.shape)
        return bias_relu_pool(values, bias)

    for layers in (pdn, pdn[:-1]):
        right = layers(images)
        wanted = torch.autograd.grad(right.sum(), [*layers.parameters(), images])
        with monkeypatch.context() as patched:
            patched.setattr(networks, "fast_pooling", lambda device, needs_gradient: fused)
            found = apply_pdn(layers, images)
        torch.testing.assert_close(found, right)
        gradients = torch.autograd.grad(found.sum(), [*layers.parameters(), images])
        torch.testing.assert_close(gradients, wanted, rtol=1e-4, atol=1e-3)
    assert len(calls) == 4


def test_no_images_have_no_answer(monkeypatch):
    monkeypatch.setattr(networks, "fast_pooling", lambda *_: lambda *_: pytest.fail("launched"))
    pdn = build_pdn("small", 384)
    assert apply_pdn(pdn, torch.empty(0, 3, 41, 41)).shape == (0, 384, 3, 3)


def test_without_gradients_torch_pools_otherwise(monkeypatch):
    """As on a GPU: in place, but not in the caller's images."""
    torch.manual_seed(0)
    pdn, images = build_pdn("small", 384).requires_grad_(False), torch.randn(2, 3, 41, 46)
    right, before = pdn(images), images.clone()
    monkeypatch.setattr(networks, "fast_pooling", lambda *_: fused_pooling._pool_in_place)
    torch.testing.assert_close(apply_pdn(pdn, images), right)
    assert torch.equal(images, before)


@pytest.mark.parametrize("learns", [False, True])
def test_a_gradient_is_asked_for_only_where_one_is_needed(learns, monkeypatch):
    asked = []
    monkeypatch.setattr(networks, "fast_pooling", lambda device, needs_gradient: asked.append(needs_gradient))
    pdn = build_pdn("small", 384).requires_grad_(learns)
    apply_pdn(pdn, torch.randn(1, 3, 41, 41))
    with torch.no_grad():
        apply_pdn(pdn, torch.randn(1, 3, 41, 41))
    assert asked == [learns, False]


@pytest.fixture
def uncached():
    fused_pooling._compile.cache_clear()
    yield
    fused_pooling._compile.cache_clear()


def test_where_triton_fails_a_note_says_so_once(uncached, monkeypatch, capsys):
    def fail(pooling):
        raise RuntimeError("Failed to find C compiler\nmore lines")

    monkeypatch.setattr(fused_pooling, "_compare", fail)
    for _ in range(2):
        with compiled_pooling(GPU):
            assert fast_pooling(GPU, needs_gradient=True) is None
    said = capsys.readouterr().out
    assert said.count("Note: Triton does not work here") == 1 and said.endswith("Failed to find C compiler\n")


def test_kernels_are_used_on_a_gpu_while_a_training_lasts(uncached, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(fused_pooling, "_compare", lambda pooling: None)
    with pytest.raises(KeyError), compiled_pooling(GPU):
        assert fast_pooling(GPU, needs_gradient=True) is fast_pooling(GPU, needs_gradient=False) is not None
        assert fast_pooling(torch.device("cpu"), needs_gradient=True) is None
        raise KeyError
    assert fast_pooling(GPU, needs_gradient=True) is None
    assert fast_pooling(GPU, needs_gradient=False) is fused_pooling._pool_in_place


@pytest.mark.cuda
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_computes_the_same_in_one_pass(precision):
    torch.manual_seed(0)
    values = torch.randn(3, 128, 61, 58, device="cuda").to(precision)
    bias = torch.randn(128, device="cuda")
    values, bias = values.requires_grad_(), bias.requires_grad_()
    with compiled_pooling(GPU):
        found, right = fast_pooling(GPU, needs_gradient=True)(values, bias), bias_relu_pool(values.float(), bias)
    torch.testing.assert_close(found.float(), right, rtol=0.01, atol=0.01)
    gradient = torch.randn_like(found)
    found = torch.autograd.grad(found, (values, bias), gradient)
    right = torch.autograd.grad(right, (values, bias), gradient.float())
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=0.01, atol=0.01)


@pytest.mark.cuda
def test_sums_have_a_fixed_order():
    with compiled_pooling(GPU):
        fused = fast_pooling(GPU, needs_gradient=True)
    values = torch.randn(8, 128, 253, 253, device="cuda").bfloat16().to(memory_format=torch.channels_last)
    bias = torch.randn(128, device="cuda", requires_grad=True)
    sums = [torch.autograd.grad(fused(values, bias).float().sum(), bias)[0] for _ in range(5)]
    assert all(torch.equal(one, sums[0]) for one in sums)
