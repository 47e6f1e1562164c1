"""NVIDIA GPUs through `nvidia-smi`, where NVML's bindings are not installed."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Collection
from typing import Final

from hostler.supervisor.devices.command_output import command_output
from hostler.supervisor.devices.reading import DeviceError, DeviceReading, finite_number
from hostler.supervisor.devices.unified_memory import unified_memory

_FIELDS: Final = ("uuid", "name", "memory.total", "memory.used", "utilization.gpu", "temperature.gpu", "power.draw")
_MIB: Final = 1024**2
#: What stands for a value that a device does not have, unlike `[Unknown Error]` and `[GPU is lost]`.
_NOT_SUPPORTED: Final = ("[N/A]", "N/A", "[Not Supported]")


class NvidiaSmiSource:
    """Runs the tool twice per reading: for the devices, and for the processes on them. The driver is asked for once."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._driver: str | None = None

    @classmethod
    def find(cls) -> NvidiaSmiSource | None:
        """The source, if the tool is on the PATH."""
        program = shutil.which("nvidia-smi")
        return None if program is None else cls(program)

    def read(self, pids: Collection[int]) -> list[DeviceReading]:
        """See `DeviceSource`."""
        processes = self._processes()
        rows = self._query("gpu", _FIELDS)
        if self._driver is None:
            self._driver = self._read_driver()
        return [self._device(row, processes) for row in rows]

    def close(self) -> None:
        """Nothing is open."""

    def _read_driver(self) -> str:
        """Its version, which is the same for all devices; empty if the tool does not tell."""
        try:
            rows = self._query("gpu", ("driver_version",))
        except DeviceError:
            return ""
        return rows[0][0] if rows and rows[0][0] not in _NOT_SUPPORTED else ""

    def _processes(self) -> dict[str, dict[int, int]] | None:
        """By the device's UUID. `None` if the driver does not report their memory, as in some containers."""
        found: dict[str, dict[int, int]] = {}
        for uuid, pid, mib in self._query("compute-apps", ("gpu_uuid", "pid", "used_gpu_memory")):
            amount = finite_number(mib)
            if amount is None or not pid.isdecimal():
                return None
            found.setdefault(uuid, {})[int(pid)] = int(amount * _MIB)
        return found

    def _query(self, what: str, fields: tuple[str, ...]) -> list[list[str]]:
        output = command_output([self._program, f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"])
        rows = [[cell.strip() for cell in row] for row in csv.reader(output.splitlines()) if row]
        if any(len(row) != len(fields) for row in rows):
            raise DeviceError(f"{self._program}: unexpected output {output[:200]!r}")
        return rows

    def _device(self, row: list[str], processes: dict[str, dict[int, int]] | None) -> DeviceReading:
        uuid, name, total_mib, used_mib, utilization, temperature_c, power_w = row
        total, used = finite_number(total_mib), finite_number(used_mib)
        unified = total_mib in _NOT_SUPPORTED
        if total is None and not unified:
            raise DeviceError(f"{self._program}: memory of {uuid}: {total_mib}")
        sizes = unified_memory() if unified else (_bytes(total), _bytes(used))
        return DeviceReading(
            id=uuid, vendor="nvidia", model=name, total=sizes[0], used=sizes[1], utilization=finite_number(utilization),
            temperature_c=finite_number(temperature_c), power_w=finite_number(power_w),
            processes=None if processes is None else processes.get(uuid, {}), unified=unified,
            driver=self._driver or "",
        )  # fmt: skip


def _bytes(mib: float | None) -> int | None:
    return None if mib is None else int(mib * _MIB)
