"""Streams of random numbers: the same for the same seed, and no two alike."""

import torch

from efficientad.system.random_streams import STREAMS, random_stream, seed_torch

CALLS = [
    (seed, stream, *numbers) for seed in range(3) for stream in STREAMS for numbers in ((), (0,), (1,), (0, 1))
]


def test_no_two_streams_of_neighbouring_seeds_are_alike():
    """Not even shifted: no value of a stream of 64-bit numbers is found in another one."""
    values = torch.stack(
        [torch.empty(200).double().random_(2**53, generator=random_stream(*call)) for call in CALLS]
    )
    assert values.unique().numel() == values.numel()


def test_a_stream_begins_alike_each_time():
    first, again = (torch.randperm(100, generator=random_stream(5, "crops", 7, 1)) for _ in range(2))
    assert torch.equal(first, again)


def test_streams_are_uniform():
    numbers = torch.rand(100_000, generator=random_stream(0, "order"))
    assert abs(numbers.mean() - 0.5) < 0.005 and abs(numbers.var() - 1 / 12) < 0.002


def test_default_generators_begin_a_stream():
    """That of the CPU here; torch.manual_seed sets those of GPUs, too."""
    seed_torch(1, "dropout", 0)
    assert torch.equal(torch.rand(9), torch.rand(9, generator=random_stream(1, "dropout", 0)))
