"""What a driver reports of a GPU at one moment, and the sources of such readings."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from hostler.supervisor.contract import DeviceVendor


class DeviceReading(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU. Sizes in bytes; `None` stands for what its driver does not report.

    `id` is NVIDIA's UUID, else the PCI address: it stays the same over restarts. `processes` is the memory of each
    process. `unified`: the GPU shares the machine's memory. `driver`: its driver with the version, empty if unknown.
    """

    id: str
    vendor: DeviceVendor
    model: str = ""
    total: int | None = None
    used: int | None = None
    utilization: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    processes: Mapping[int, int] | None = None
    unified: bool = False
    driver: str = ""


def by_name(readings: Iterable[DeviceReading]) -> dict[str, DeviceReading]:
    """All devices of a host by their names: `gpu0`, `gpu1` and so on, in the order of the readings."""
    return {f"gpu{index}": reading for index, reading in enumerate(readings)}


def finite_number(value: Any) -> float | None:
    """A tool's number; `None` for `[N/A]`, `nan` and everything else that is no amount: none of them is negative."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number >= 0 else None


class DeviceSource(Protocol):
    """A driver's library, tool or files. All methods block, a tool's for up to seconds."""

    def read(self, pids: Collection[int]) -> list[DeviceReading]:
        """All devices, always in the same order. `processes` need to contain those of `pids` only.

        Raises `DeviceError` if the source cannot be read now.
        """
        ...

    def close(self) -> None:
        """Release what is open. The next `read` opens it again."""
        ...


class DeviceError(Exception):
    """A driver did not answer, or not as expected."""
