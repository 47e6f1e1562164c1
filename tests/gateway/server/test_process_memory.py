"""A serving process leaves alone what lives until its end."""

from __future__ import annotations

import subprocess
import sys

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
