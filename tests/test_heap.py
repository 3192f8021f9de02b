"""Freed memory is kept for the next tensors, counted by page faults."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from epns_pyro.heap import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()

def work():
    a, b = torch.ones(2**21), torch.ones(2**21)  # 8 MiB each
    return float((a + b).sum())

for _ in range(5):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **more: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | more
    done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts page faults as Linux does")
def test_freed_memory_is_kept_unless_the_environment_says_otherwise():
    at_once = {"MALLOC_MMAP_THRESHOLD_": "131072"}  # every larger piece is mapped for itself, wherever the heap ends
    returned, kept = faults("returned", **at_once), faults("kept")
    if returned < 1000:
        pytest.skip("this C library keeps freed memory by itself")
    assert kept < returned / 20
    assert faults("kept", **at_once) > returned / 4
