"""AMD GPUs through `rocm-smi`, where the driver's files cannot be read, as in some containers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Mapping
from typing import Any, Final

from hostler.supervisor.devices.command_output import command_output
from hostler.supervisor.devices.reading import DeviceError, DeviceReading, finite_number

_OPTIONS: Final = (
    "--showmeminfo", "vram", "--showuse", "--showtemp", "--showpower", "--showbus", "--showproductname",
    "--showdriverversion", "--json",
)  # fmt: skip
#: Where a line begins with an object.
_OBJECT: Final = re.compile(r"^[ \t]*\{\s*\"", re.MULTILINE)


class RocmSmiSource:
    """Runs the tool once per reading. It does not report the memory of processes."""

    def __init__(self, program: str) -> None:
        self._program = program

    @classmethod
    def find(cls) -> RocmSmiSource | None:
        """The source, if the tool is on the PATH."""
        program = shutil.which("rocm-smi")
        return None if program is None else cls(program)

    def read(self, pids: Collection[int]) -> list[DeviceReading]:
        """See `DeviceSource`."""
        output = command_output([self._program, *_OPTIONS])
        start = _OBJECT.search(output)
        try:
            # Warnings may stand before the object, and after it.
            cards, _ = json.JSONDecoder().raw_decode(output, start.start() if start else 0)
            if not isinstance(cards, dict):
                raise ValueError("no object")
        except ValueError as error:
            raise DeviceError(f"{self._program}: unexpected output {output[:200]!r}") from error
        system = cards.get("system")
        driver = str(system.get("Driver version", "")) if isinstance(system, dict) else ""
        return [
            _device(name, card, driver)
            for name, card in cards.items()
            if name.startswith("card") and isinstance(card, dict)
        ]

    def close(self) -> None:
        """Nothing is open."""


def _device(name: str, card: Mapping[str, Any], driver: str) -> DeviceReading:
    total, used = _number(card, "VRAM Total Memory (B)"), _number(card, "VRAM Total Used Memory (B)")
    return DeviceReading(
        id=str(card.get("PCI Bus", name)).lower(), vendor="amd",
        model=str(card.get("Card Series") or card.get("Card series") or "AMD GPU"),
        total=None if total is None else int(total), used=None if used is None else int(used),
        utilization=_number(card, "GPU use (%)"), temperature_c=_number(card, "Temperature"),
        power_w=_number(card, "Power (W)"), driver=f"amdgpu {driver}" if driver else "",
    )  # fmt: skip


def _number(card: Mapping[str, Any], words: str) -> float | None:
    """The first number whose label contains `words`: labels differ between versions and cards."""
    found = (finite_number(value) for label, value in card.items() if words in label)
    return next((number for number in found if number is not None), None)
