"""A Mac's GPU, by output in the form of its commands."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hostler.supervisor.devices.apple import AppleSource
from hostler.supervisor.devices.reading import DeviceError, DeviceReading
from hostler.supervisor.memory import GIB

REGISTRY = """+-o AGXAcceleratorG14X  <class AGXAcceleratorG14X, id 0x100000a44>
    {
      "PerformanceStatistics" = {"In use system memory (driver)"=0,"Device Utilization %"=17,"Tiler Utilization %"=17}
      "model" = "Apple M2 Max"
    }
"""


@pytest.mark.parametrize(("limit", "total"), [("0", 48 * GIB), ("57344", 56 * GIB), (None, 48 * GIB)])
def test_the_gpu_shares_the_machines_memory(limit: str | None, total: int) -> None:
    def run(command: Sequence[str]) -> str:
        if command[0] == "ioreg":
            return REGISTRY
        if command[0] == "sw_vers":
            return "15.3.1\n"
        if limit is None:
            raise DeviceError("unknown oid")
        return f"{limit}\n"

    (device,) = AppleSource(run, memory=lambda: (64 * GIB, 30 * GIB)).read(())
    assert device == DeviceReading(
        id="apple", vendor="apple", model="Apple M2 Max", total=total, used=30 * GIB - (64 * GIB - total),
        utilization=17, unified=True, driver="macOS 15.3.1",
    )  # fmt: skip
