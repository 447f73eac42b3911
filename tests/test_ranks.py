"""Several processes do what one does."""

import os
import subprocess
import sys
from pathlib import Path

import torch

import joined_worker

TESTS = Path(__file__).parent
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def run_ranks(worker, *words):
    """Two processes with gloo on the CPU; returns the finished launcher."""
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *LAUNCHER, str(TESTS / worker), *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_losses_gradients_and_statistics_are_those_of_the_joined_batch(tiny_networks, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes have; with another number the sums differ a little more
    one = joined_worker.joined_work()
    torch.set_num_threads(threads)
    done = run_ranks("joined_worker.py", tmp_path / "two.pt")
    assert done.returncode == 0, done.stderr
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    for ours, theirs in zip(two["losses"], one["losses"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    for ours, theirs in zip(two["gradients"], one["gradients"], strict=True):
        for gradient, expected in zip(ours, theirs, strict=True):
            scale = expected.abs().max().item()
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * scale)
    for name in ("teacher_mean", "teacher_std", "quantiles", "map_weights"):
        torch.testing.assert_close(two["state"][name], one["state"][name], rtol=1e-6, atol=1e-6)
