"""The memory of GPUs that share the machine's."""

from __future__ import annotations

import psutil


def unified_memory() -> tuple[int, int]:
    """The machine's memory and how much of it is in use, in bytes."""
    memory = psutil.virtual_memory()
    return memory.total, memory.total - memory.available
