"""Intel GPUs with memory of their own, through the files of the drivers `i915` and `xe`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from hostler.supervisor.devices.drm import (
    Card,
    all_pids,
    find_cards,
    kernel_driver,
    process_memory,
    read_number,
    read_sensor,
    read_text,
)
from hostler.supervisor.devices.reading import DeviceReading

_VENDOR: Final = "0x8086"
_REGIONS: Final = ("local0", "local1", "vram0", "vram1")
#: A smaller window into memory is one of registers, not of a card's memory.
_LEAST: Final = 1024**3


class IntelSource:
    """Reads files only. `root` contains `sys` and `proc`. GPUs without memory of their own are left out."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    @classmethod
    def find(cls, root: Path = Path("/")) -> IntelSource | None:
        """The source, if there is a card with memory of its own."""
        return cls(root) if any(_total(card) for card in find_cards(root, _VENDOR)) else None

    def read(self, pids: Collection[int]) -> list[DeviceReading]:
        """See `DeviceSource`. What the driver does not report as used is summed up over all readable processes."""
        memory = process_memory(self._root, all_pids(self._root), _REGIONS)
        found = []
        for card in find_cards(self._root, _VENDOR):
            total = _total(card)
            if total:
                found.append(_device(card, total, memory.get(card.address, {}), kernel_driver(self._root, card)))
        return found

    def close(self) -> None:
        """Nothing is open."""


def _device(card: Card, total: int, processes: dict[int, int], driver: str) -> DeviceReading:
    available = read_number(card.folder / "lmem_avail_bytes")
    used = sum(processes.values()) if available is None else max(0, total - available)
    return DeviceReading(
        id=card.address, vendor="intel", model=read_text(card.folder / "label") or "Intel GPU", total=total, used=used,
        temperature_c=read_sensor(card, ("temp2_input", "temp1_input"), 1000),
        power_w=read_sensor(card, ("power1_input", "power1_average"), 1_000_000), processes=processes, driver=driver,
    )  # fmt: skip


def _total(card: Card) -> int:
    """As the driver reports it, else the size of the window into it, which is all of it with resizable BAR; else 0."""
    for name in ("lmem_total_bytes", "tile0/physical_vram_size_bytes"):
        total = read_number(card.folder / name)
        if total:
            return total
    lines = (read_text(card.folder / "resource") or "").splitlines()[:6]
    windows = [_window(line) for line in lines]
    largest = max(windows, default=0)
    return largest if largest >= _LEAST else 0


def _window(line: str) -> int:
    try:
        first, last = (int(number, 16) for number in line.split()[:2])
    except ValueError:
        return 0
    return last - first + 1 if last else 0
