"""AMD GPUs through the files of the driver `amdgpu`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from hostler.supervisor.devices.drm import (
    Card,
    find_cards,
    kernel_driver,
    process_memory,
    read_number,
    read_sensor,
    read_text,
)
from hostler.supervisor.devices.reading import DeviceReading

_VENDOR: Final = "0x1002"


class AmdSource:
    """Reads files only. `root` contains `sys` and `proc`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    @classmethod
    def find(cls, root: Path = Path("/")) -> AmdSource | None:
        """The source, if the driver reports the memory of a card."""
        cards = find_cards(root, _VENDOR)
        return cls(root) if any(read_number(card.folder / "mem_info_vram_total") for card in cards) else None

    def read(self, pids: Collection[int]) -> list[DeviceReading]:
        """See `DeviceSource`."""
        cards = [card for card in find_cards(self._root, _VENDOR) if read_number(card.folder / "mem_info_vram_total")]
        return [self._device(card, pids) for card in cards]

    def close(self) -> None:
        """Nothing is open."""

    def _device(self, card: Card, pids: Collection[int]) -> DeviceReading:
        total = read_number(card.folder / "mem_info_vram_total") or 0
        used = read_number(card.folder / "mem_info_vram_used")
        unified = _is_integrated(card, total)
        if unified:
            total += read_number(card.folder / "mem_info_gtt_total") or 0
            used = None if used is None else used + (read_number(card.folder / "mem_info_gtt_used") or 0)
        memory = process_memory(self._root, pids, ("vram", "vram0", "gtt") if unified else ("vram", "vram0"))
        return DeviceReading(
            id=card.address, vendor="amd", model=read_text(card.folder / "product_name") or "AMD GPU", total=total,
            used=used, utilization=read_number(card.folder / "gpu_busy_percent"),
            temperature_c=read_sensor(card, ("temp1_input",), 1000),
            power_w=read_sensor(card, ("power1_average", "power1_input"), 1_000_000),
            processes=memory.get(card.address, {}), unified=unified, driver=kernel_driver(self._root, card),
        )  # fmt: skip


def _is_integrated(card: Card, vram: int) -> bool:
    """Whether the GPU also works in GTT, which is the machine's memory: that of a separate card is too slow to count.

    The driver names the maker of the memory for separate cards only.
    """
    maker = read_text(card.folder / "mem_info_vram_vendor")
    return maker in (None, "", "unknown") and vram < (read_number(card.folder / "mem_info_gtt_total") or 0)
