"""Several sources of one machine, some of which fail."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from hostler.supervisor.devices.amd import AmdSource
from hostler.supervisor.devices.discovery import DeviceReader, find_sources
from hostler.supervisor.devices.nvidia_smi import NvidiaSmiSource
from hostler.supervisor.devices.reading import DeviceError, DeviceReading
from hostler.supervisor.devices.rocm_smi import RocmSmiSource

from .conftest import FakeFiles, FakeTool
from .test_amd import CARD


class _Source:
    def __init__(self, *readings: DeviceReading) -> None:
        self.readings = readings
        self.broken = self.closed = False

    def read(self, pids: Collection[int]) -> list[DeviceReading]:
        if self.broken:
            raise DeviceError("the driver has left")
        return list(self.readings)

    def close(self) -> None:
        self.closed = True


FIRST = DeviceReading(id="a", vendor="nvidia", model="A", total=8, used=3, utilization=50, processes={1: 2})
SECOND = DeviceReading(id="b", vendor="amd", total=4, used=1)


def test_a_source_that_fails_keeps_the_names_of_the_others(caplog: pytest.LogCaptureFixture) -> None:
    nvidia, amd = _Source(FIRST), _Source(SECOND)
    reader = DeviceReader([nvidia, amd])
    assert reader.read(()) == [FIRST, SECOND]
    nvidia.broken = True
    for _ in range(2):
        assert reader.read(()) == [DeviceReading(id="a", vendor="nvidia", model="A", total=8), SECOND]
    assert caplog.messages == ["GPUs cannot be read: the driver has left"]
    nvidia.broken = False
    assert reader.read(()) == [FIRST, SECOND]
    reader.close()
    assert nvidia.closed and amd.closed


def test_files_are_preferred_to_tools(files: FakeFiles, tool: FakeTool) -> None:
    tool("rocm-smi", "exit 1")
    tool("nvidia-smi", "exit 1")
    root = files({})
    assert [type(source) for source in find_sources(root)] == [NvidiaSmiSource, RocmSmiSource]
    files(CARD)
    assert [type(source) for source in find_sources(root)] == [NvidiaSmiSource, AmdSource]


def test_a_machine_without_gpus_has_no_source(tool: FakeTool, tmp_path: Path) -> None:
    assert find_sources(tmp_path) == []
