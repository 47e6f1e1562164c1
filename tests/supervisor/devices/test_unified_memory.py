"""The machine's memory, for GPUs that share it."""

from __future__ import annotations

import psutil

from hostler.supervisor.devices.unified_memory import unified_memory


def test_is_the_machines() -> None:
    total, used = unified_memory()
    assert total == psutil.virtual_memory().total
    assert 0 < used < total
