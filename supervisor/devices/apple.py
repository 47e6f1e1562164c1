"""Apple's GPUs, which share the machine's memory, through `sysctl` and `ioreg`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Final

from hostler.supervisor.devices.command_output import command_output
from hostler.supervisor.devices.reading import DeviceError, DeviceReading
from hostler.supervisor.devices.unified_memory import unified_memory

_UTILIZATION: Final = re.compile(r'"Device Utilization %"\s*=\s*(\d+)')
_MODEL: Final = re.compile(r'"model"\s*=\s*"([^"]+)"')
_MIB: Final = 1024**2

#: The part of the memory that macOS leaves to the GPU unless `iogpu.wired_limit_mb` is set.
DEFAULT_SHARE: Final = 0.75


class AppleSource:
    """Reads the one GPU of a Mac. `run` executes a command; `memory` is the machine's memory and the used part of it.

    Memory of processes, temperature and power are not available without root; engines' resident memory includes what
    they use on the GPU.
    """

    def __init__(
        self,
        run: Callable[[Sequence[str]], str] = command_output,
        memory: Callable[[], tuple[int, int]] = unified_memory,
    ) -> None:
        self._run = run
        self._memory = memory
        self._system: str | None = None

    @classmethod
    def find(cls) -> AppleSource | None:
        """The source, on macOS."""
        return cls() if sys.platform == "darwin" else None

    def read(self, pids: Collection[int]) -> list[DeviceReading]:
        """See `DeviceSource`."""
        machine, used = self._memory()
        limit_mb = self._number(["sysctl", "-n", "iogpu.wired_limit_mb"])
        limit = limit_mb * _MIB if limit_mb else int(machine * DEFAULT_SHARE)
        registry = self._run(["ioreg", "-r", "-d", "1", "-c", "IOAccelerator"])
        utilization, model = _UTILIZATION.search(registry), _MODEL.search(registry)
        # What other programs use of the rest of the memory leaves the GPU its part.
        return [
            DeviceReading(
                id="apple", vendor="apple", model=model[1] if model else "Apple GPU", total=limit,
                used=max(0, used - (machine - limit)), utilization=float(utilization[1]) if utilization else None,
                unified=True, driver=self._driver(),
            )
        ]  # fmt: skip

    def close(self) -> None:
        """Nothing is open."""

    def _driver(self) -> str:
        """The system, whose part the driver is. It does not change while it runs."""
        if self._system is None:
            try:
                self._system = f"macOS {self._run(['sw_vers', '-productVersion']).strip()}"
            except DeviceError:
                self._system = ""
        return self._system

    def _number(self, command: Sequence[str]) -> int:
        try:
            return int(self._run(command))
        except (DeviceError, ValueError):
            return 0
