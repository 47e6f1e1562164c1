"""Measures how much memory processes take, in RAM and on GPUs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

import msgspec
import psutil

from hostler.supervisor.devices.discovery import DeviceReader
from hostler.supervisor.devices.reading import DeviceReading, by_name
from hostler.supervisor.memory import MemoryUsage


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What processes take, by process id, and all GPUs in the order of their names: `gpu0`, `gpu1` and so on."""

    usages: Mapping[int, MemoryUsage] = {}
    devices: tuple[DeviceReading, ...] = ()


class Meter(Protocol):
    """Measures processes. All methods block."""

    def measure(self, pids: Collection[int]) -> Measurement:
        """The memory that each process and its descendants take now. Those that have exited are left out."""
        ...

    def close(self) -> None:
        """Release drivers' libraries."""
        ...


class MemoryMeter:
    """The `Meter` of this machine. Takes milliseconds, where a vendor's tool has to be run up to seconds."""

    def __init__(self, devices: DeviceReader | None = None) -> None:
        self._devices = devices or DeviceReader()

    def measure(self, pids: Collection[int]) -> Measurement:
        """See `Meter`."""
        resident: dict[int, dict[int, int]] = {pid: _resident(pid) for pid in pids}
        devices = tuple(self._devices.read({each for tree in resident.values() for each in tree}))
        usages = {}
        for pid, tree in resident.items():
            if tree:
                on_devices = _on_devices(tree, devices)
                usages[pid] = MemoryUsage(
                    rss=sum(tree.values()), gpu=sum(on_devices.values()), devices=on_devices
                )  # fmt: skip
        return Measurement(usages=usages, devices=devices)

    def close(self) -> None:
        """See `Meter`."""
        self._devices.close()


def mapped_memory(pids: Collection[int]) -> int:
    """The bytes of files that these processes and their descendants have in memory, such as the weights of models: the
    system counts them as available, but they are in use. Where that is not known, 0. Takes a moment."""
    mapped = 0
    for pid in pids:
        for each in _with_descendants(pid):
            try:
                mapped += getattr(psutil.Process(each).memory_info(), "shared", 0)
            except psutil.Error:
                continue
    return mapped


def _on_devices(pids: Collection[int], devices: Collection[DeviceReading]) -> dict[str, int]:
    """The memory that processes take on each device whose driver reports it; devices without any are left out."""
    found = {}
    for name, device in by_name(devices).items():
        amount = sum((device.processes or {}).get(pid, 0) for pid in pids)
        if amount:
            found[name] = amount
    return found


def _resident(pid: int) -> dict[int, int]:
    """The resident memory of a process and of each of its descendants, in bytes."""
    found = {}
    for each in _with_descendants(pid):
        try:
            found[each] = psutil.Process(each).memory_info().rss
        except psutil.Error:
            continue
    return found


def _with_descendants(pid: int) -> list[int]:
    found = [pid]
    try:
        for parent in found:
            # Linux lists children per thread; elsewhere every process must be read.
            for children in Path(f"/proc/{parent}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        if len(found) == 1 and not Path(f"/proc/{pid}/task/{pid}/children").exists():
            found += [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except (OSError, psutil.Error):
        pass
    return found
