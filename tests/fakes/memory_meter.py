"""A memory meter with scripted measurements."""

from __future__ import annotations

from collections.abc import Collection

from hostler.supervisor.devices.reading import DeviceReading
from hostler.supervisor.memory import MemoryUsage
from hostler.supervisor.memory_meter import Measurement


class FakeMemoryMeter:
    """Measures the same `usage` for every process, and the same `devices`."""

    def __init__(self, usage: MemoryUsage, devices: tuple[DeviceReading, ...] = ()) -> None:
        self.usage = usage
        self.devices = devices

    def measure(self, pids: Collection[int]) -> Measurement:
        return Measurement(usages=dict.fromkeys(pids, self.usage), devices=self.devices)

    def close(self) -> None:
        pass
