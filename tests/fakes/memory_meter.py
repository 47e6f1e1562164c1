"""A memory meter with scripted measurements."""

from __future__ import annotations

from hostler.supervisor.memory import MemoryUsage


class FakeMemoryMeter:
    """Measures the same `usage` for every process."""

    def __init__(self, usage: MemoryUsage) -> None:
        self.usage = usage

    def measure(self, pid: int) -> MemoryUsage:
        return self.usage

    def close(self) -> None:
        pass
