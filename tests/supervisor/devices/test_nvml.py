"""NVIDIA's library, replaced by a fake with two devices."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hostler.supervisor.devices.nvml import NvmlSource
from hostler.supervisor.devices.reading import DeviceError, DeviceReading
from hostler.supervisor.memory import GIB


class _Nvml:
    """The second device, of a laptop, supports little."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        """What the library raises."""

    class NVMLError_NotSupported(NVMLError):
        """A device does not have it."""

    def __init__(self) -> None:
        self.installed = True
        self.starts = self.stops = 0
        self.processes = [SimpleNamespace(pid=7, usedGpuMemory=3 * GIB), SimpleNamespace(pid=8, usedGpuMemory=GIB)]
        self.lost = False

    def nvmlInit(self) -> None:
        if not self.installed:
            raise self.NVMLError("Driver Not Loaded")
        self.starts += 1

    def nvmlShutdown(self) -> None:
        self.stops += 1

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"570.124.06"

    def nvmlDeviceGetCount(self) -> int:
        if self.lost:
            raise self.NVMLError("GPU is lost")
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str | bytes:
        return b"GPU-old" if handle else "GPU-new"

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA GeForce RTX 4090"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return self._first(handle, SimpleNamespace(total=24 * GIB, used=5 * GIB))

    def nvmlDeviceGetPowerUsage(self, handle: int) -> Any:
        return self._first(handle, 121_500)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return self._first(handle, SimpleNamespace(gpu=37, memory=12))

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> Any:
        return self._first(handle, 61)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> Any:
        return self._first(handle, self.processes)

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: int) -> Any:
        return self._first(handle, [SimpleNamespace(pid=7, usedGpuMemory=2 * GIB)])

    def _first(self, handle: int, value: Any) -> Any:
        if handle:
            raise self.NVMLError_NotSupported("Not Supported")
        return value


def test_reads_what_each_device_supports() -> None:
    full, poor = NvmlSource(_Nvml()).read(())
    assert full == DeviceReading(
        id="GPU-new", vendor="nvidia", model="NVIDIA GeForce RTX 4090", total=24 * GIB, used=5 * GIB, utilization=37,
        temperature_c=61, power_w=121.5, processes={7: 3 * GIB, 8: GIB}, driver="570.124.06",
    )  # fmt: skip
    # One without a memory of its own uses the machine's.
    assert (poor.id, poor.unified, poor.utilization, poor.power_w) == ("GPU-old", True, None, None)
    assert poor.total is not None and poor.used is not None and 0 < poor.used < poor.total


def test_a_device_whose_memory_cannot_be_read_does_not_use_the_machines() -> None:
    nvml: Any = _Nvml()

    def fail(handle: int) -> Any:
        raise nvml.NVMLError("Unknown Error")

    nvml.nvmlDeviceGetMemoryInfo = fail
    with pytest.raises(DeviceError, match="Unknown Error"):
        NvmlSource(nvml).read(())


def test_a_driver_that_hides_amounts_reports_no_processes() -> None:
    nvml = _Nvml()
    nvml.processes[0].usedGpuMemory = None
    assert NvmlSource(nvml).read(())[0].processes is None


def test_opens_the_library_once_and_again_after_an_error() -> None:
    nvml = _Nvml()
    source = NvmlSource(nvml)
    source.read(())
    source.read(())
    assert nvml.starts == 1
    nvml.lost = True
    with pytest.raises(DeviceError, match="GPU is lost"):
        source.read(())
    assert nvml.stops == 1
    nvml.lost = False
    assert len(source.read(())) == 2
    source.close()
    source.close()
    assert (nvml.starts, nvml.stops) == (2, 2)


def test_a_library_without_a_driver_cannot_be_read() -> None:
    nvml = _Nvml()
    nvml.installed = False
    with pytest.raises(DeviceError, match="Driver Not Loaded"):
        NvmlSource(nvml).read(())
