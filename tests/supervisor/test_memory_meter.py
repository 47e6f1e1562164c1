"""What processes take, in RAM and on GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection

from hostler.supervisor.devices.discovery import DeviceReader
from hostler.supervisor.devices.reading import DeviceReading
from hostler.supervisor.memory import GIB, MIB, MemoryUsage
from hostler.supervisor.memory_meter import MemoryMeter

NO_DEVICES = DeviceReader([])


class _Devices:
    """Two GPUs; the second does not report what processes take."""

    def read(self, pids: Collection[int]) -> list[DeviceReading]:
        return [
            DeviceReading(id="GPU-1", vendor="nvidia", processes={os.getpid(): 3 * GIB, 1: 9 * GIB}),
            DeviceReading(id="GPU-2", vendor="nvidia", used=GIB),
        ]

    def close(self) -> None:
        pass


def test_measures_processes_with_their_descendants() -> None:
    child = "import sys; block = b'x' * (40 << 20); print(len(block), flush=True); sys.stdin.read()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        usages = MemoryMeter(NO_DEVICES).measure([process.pid]).usages
        process.communicate(b"")
    assert usages[process.pid].rss > 45 * MIB
    assert usages[process.pid].gpu == 0
    assert MemoryMeter(NO_DEVICES).measure([process.pid]).usages == {}


def test_adds_what_a_process_takes_of_each_gpu() -> None:
    measured = MemoryMeter(DeviceReader([_Devices()])).measure([os.getpid()])
    usage = measured.usages[os.getpid()]
    assert usage == MemoryUsage(rss=usage.rss, gpu=3 * GIB, devices={"gpu0": 3 * GIB})
    assert [device.id for device in measured.devices] == ["GPU-1", "GPU-2"]


def test_gpus_are_read_without_any_process() -> None:
    assert len(MemoryMeter(DeviceReader([_Devices()])).measure([]).devices) == 2
