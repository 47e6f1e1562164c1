"""Which sources of readings this machine has."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from hostler.supervisor.devices.amd import AmdSource
from hostler.supervisor.devices.apple import AppleSource
from hostler.supervisor.devices.intel import IntelSource
from hostler.supervisor.devices.nvidia_smi import NvidiaSmiSource
from hostler.supervisor.devices.nvml import NvmlSource
from hostler.supervisor.devices.reading import DeviceError, DeviceReading, DeviceSource
from hostler.supervisor.devices.rocm_smi import RocmSmiSource

logger = logging.getLogger(__name__)


def find_sources(root: Path = Path("/")) -> list[DeviceSource]:
    """One source for each vendor that is present, in the order in which devices are numbered. Blocks briefly.

    Libraries and the driver's files are preferred to tools. `root` contains `sys` and `proc`.
    """
    nvidia: DeviceSource | None = NvmlSource.find() or NvidiaSmiSource.find()
    amd: DeviceSource | None = AmdSource.find(root) or RocmSmiSource.find()
    candidates: tuple[DeviceSource | None, ...] = (nvidia, amd, IntelSource.find(root), AppleSource.find())
    return [source for source in candidates if source is not None]


class DeviceReader:
    """All GPUs of this machine, from several sources. `None` finds the sources at the first reading."""

    def __init__(self, sources: Collection[DeviceSource] | None = None) -> None:
        self._sources = None if sources is None else list(sources)
        self._latest: dict[int, list[DeviceReading]] = {}
        self._failing: set[int] = set()

    def read(self, pids: Collection[int]) -> list[DeviceReading]:
        """All devices, always in the same order. Blocks, for a tool up to seconds.

        A source that fails is logged once; its devices stay in the list, without what changes.
        """
        if self._sources is None:
            self._sources = find_sources()
        found: list[DeviceReading] = []
        for index, source in enumerate(self._sources):
            try:
                self._latest[index] = source.read(pids)
                self._failing.discard(index)
            except DeviceError as error:
                if index not in self._failing:
                    self._failing.add(index)
                    logger.warning("GPUs cannot be read: %s", error)
                self._latest[index] = [_without_values(reading) for reading in self._latest.get(index, [])]
            found += self._latest[index]
        return found

    def close(self) -> None:
        """Close all sources."""
        for source in self._sources or ():
            source.close()


def _without_values(reading: DeviceReading) -> DeviceReading:
    return DeviceReading(
        id=reading.id, vendor=reading.vendor, model=reading.model, total=reading.total, unified=reading.unified,
        driver=reading.driver,
    )  # fmt: skip
