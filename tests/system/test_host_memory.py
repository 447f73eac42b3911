import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COUNT_PAGES = """
import resource
import torch
from efficientad.system.devices import keep_freed_memory, release_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(25_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.ones(50_000_000)  # so that there is room to choose from
print(pages())
keep_freed_memory(torch.device("cuda"))
print(pages())
keep_freed_memory(torch.device("cpu"))
torch.ones(50_000_000)
print(pages())
release_freed_memory()
print(pages())
"""


@pytest.mark.skipif(
    platform.system() != "Linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="not with this C library"
)
def test_memory_that_was_freed_is_used_again():
    """Pages that the system has to give for 100 MB that were there a moment ago; for a GPU nothing changes."""
    done = subprocess.run([sys.executable, "-c", COUNT_PAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    before, for_a_gpu, kept, released = map(int, done.stdout.split())
    assert min(before, for_a_gpu, released) > 10 * max(kept, 1)
