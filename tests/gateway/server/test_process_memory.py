"""A serving process leaves alone what lives until its end."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import gc
from hostler.gateway.server.process_memory import freeze_garbage_collector, return_large_buffers

return_large_buffers()
freeze_garbage_collector()
print(gc.get_freeze_count() > 1000, gc.get_threshold()[0])
"""


def test_what_exists_at_the_start_is_not_collected() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "10000"]


FREED = """
import resource
from hostler.gateway.server.process_memory import return_large_buffers

return_large_buffers()
faults = []
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        del [b"x" * 100_000 for _ in range(4)][:]
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory in their own ways")
def test_the_memory_of_large_events_is_used_again_for_the_next_ones() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50  # a page fault for each 4 KB, 5,000 in all, if it were given back each time
