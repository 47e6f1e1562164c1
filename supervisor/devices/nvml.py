"""NVIDIA GPUs through NVML, the driver's library, by the bindings of the extra `[nvidia]`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from typing import Any

from hostler.supervisor.devices.reading import DeviceError, DeviceReading
from hostler.supervisor.devices.unified_memory import unified_memory


class NvmlSource:
    """Reads all NVIDIA GPUs in a few milliseconds. `library` is the module `pynvml`."""

    def __init__(self, library: Any) -> None:
        self._nvml = library
        self._open = False

    @classmethod
    def find(cls) -> NvmlSource | None:
        """The source, if bindings and driver are installed."""
        try:
            source = cls(importlib.import_module("pynvml"))
            source._start()
        except (ImportError, DeviceError):
            return None
        return source

    def read(self, pids: Collection[int]) -> list[DeviceReading]:
        """See `DeviceSource`."""
        self._start()
        nvml = self._nvml
        driver = _text(self._ask(nvml.nvmlSystemGetDriverVersion) or "")
        try:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            return [self._device(handle, driver) for handle in handles]
        except nvml.NVMLError as error:
            # A driver that was updated needs a new session.
            self.close()
            raise DeviceError(f"NVML: {error}") from error

    def close(self) -> None:
        """See `DeviceSource`."""
        if self._open:
            self._open = False
            self._ask(self._nvml.nvmlShutdown)

    def _start(self) -> None:
        if self._open:
            return
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise DeviceError(f"NVML: {error}") from error
        self._open = True

    def _device(self, handle: Any, driver: str) -> DeviceReading:
        nvml = self._nvml
        total, used, unified = self._memory(handle)
        milliwatts = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        return DeviceReading(
            id=_text(nvml.nvmlDeviceGetUUID(handle)), vendor="nvidia",
            model=_text(self._ask(nvml.nvmlDeviceGetName, handle) or ""), total=total, used=used,
            utilization=None if rates is None else float(rates.gpu),
            temperature_c=self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            power_w=None if milliwatts is None else milliwatts / 1000,
            processes=self._processes(handle), unified=unified, driver=driver,
        )  # fmt: skip

    def _memory(self, handle: Any) -> tuple[int, int, bool]:
        """Total, used, and whether the GPU has none of its own. Any other failure must not pass for that."""
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        except self._nvml.NVMLError_NotSupported:
            return *unified_memory(), True
        return memory.total, memory.used, False

    def _processes(self, handle: Any) -> dict[int, int] | None:
        """A process may appear in both lists with the same amount. In a container the driver may not report amounts."""
        found: dict[int, int] = {}
        nvml = self._nvml
        for ask in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
            for process in self._ask(ask, handle) or ():
                if process.usedGpuMemory is None:
                    return None
                found[process.pid] = max(found.get(process.pid, 0), process.usedGpuMemory)
        return found

    def _ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What a call returns; `None` if the device does not support it."""
        try:
            return call(*arguments)
        except self._nvml.NVMLError:
            return None


def _text(value: str | bytes) -> str:
    # Older bindings return bytes.
    return value.decode(errors="replace") if isinstance(value, bytes) else value
