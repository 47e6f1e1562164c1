"""The memory of this machine that models may take."""

from __future__ import annotations

from pathlib import Path

import psutil

#: Where a container finds its own limit: of control groups, version 2 and 1.
_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def available_memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that are free now, without swapping, and within the limit of a container. `groups` are its control groups."""
    free: int = psutil.virtual_memory().available
    for limit, usage in _LIMITS:
        try:
            allowed, used = int((groups / limit).read_text()), int((groups / usage).read_text())
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
        free = min(free, max(0, allowed - used))
    return free
