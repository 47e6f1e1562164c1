"""Graphics cards as Linux reports them: folders below `/sys/class/drm`, their sensors, and the memory of processes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

_CARD: Final = re.compile(r"card\d+")
_MEMORY: Final = re.compile(r"drm-(?:resident|memory|total)-(\w+)")
_UNITS: Final = {"": 1, "KiB": 1024, "MiB": 1024**2}


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A graphics card: its PCI address and the folder of its device."""

    address: str
    folder: Path


def find_cards(root: Path, vendor: str) -> list[Card]:
    """The cards of a PCI vendor such as `0x1002`, by PCI address. `root` contains `sys`."""
    cards: dict[str, Card] = {}
    try:
        entries = list((root / "sys/class/drm").iterdir())
    except OSError:
        return []
    for entry in entries:
        folder = entry / "device"
        if _CARD.fullmatch(entry.name) and read_text(folder / "vendor") == vendor:
            address = folder.resolve().name
            cards[address] = Card(address=address, folder=folder)
    return [cards[address] for address in sorted(cards)]


def kernel_driver(root: Path, card: Card) -> str:
    """A card's driver with its version: that of a driver installed by itself, else of the kernel that it comes with."""
    link = card.folder / "driver"
    if not link.exists():
        return ""
    name = link.resolve().name
    if version := read_text(root / "sys/module" / name / "version"):
        return f"{name} {version}"
    release = read_text(root / "proc/sys/kernel/osrelease")
    return f"{name} of Linux {release}" if release else name


def read_text(file: Path) -> str | None:
    """The content without surrounding white space; `None` if it cannot be read."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return None


def read_number(file: Path) -> int | None:
    """The content as a number; `None` if it is none or cannot be read."""
    try:
        return int(read_text(file) or "")
    except ValueError:
        return None


def read_sensor(card: Card, names: Iterable[str], scale: float) -> float | None:
    """The first of a card's sensors that can be read, divided by `scale`."""
    folders = sorted((card.folder / "hwmon").glob("hwmon*"))
    for name in names:
        for folder in folders:
            value = read_number(folder / name)
            if value is not None:
                return value / scale
    return None


def process_memory(root: Path, pids: Collection[int], regions: Collection[str]) -> dict[str, dict[int, int]]:
    """The bytes that each process has in memory regions such as `vram`, by PCI address.

    Processes of other users cannot be read, and are left out.
    """
    found: dict[str, dict[int, int]] = {}
    for pid in pids:
        for address, amount in _clients(root / "proc" / str(pid) / "fdinfo", regions):
            devices = found.setdefault(address, {})
            devices[pid] = devices.get(pid, 0) + amount
    return found


def all_pids(root: Path) -> list[int]:
    """All processes."""
    try:
        return [int(entry.name) for entry in (root / "proc").iterdir() if entry.name.isdecimal()]
    except OSError:
        return []


def _clients(folder: Path, regions: Collection[str]) -> Iterator[tuple[str, int]]:
    """PCI address and memory of each connection of a process to a driver. Duplicates of a descriptor count once."""
    seen: set[tuple[str, str]] = set()
    try:
        files = list(folder.iterdir())
    except OSError:
        return
    for file in files:
        text = read_text(file)
        if text is None or "drm-pdev" not in text:
            continue
        lines = dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)
        address, client = lines["drm-pdev"].strip(), lines.get("drm-client-id", file.name).strip()
        if (address, client) not in seen:
            seen.add((address, client))
            yield address, _amount(lines, regions)


def _amount(lines: dict[str, str], regions: Collection[str]) -> int:
    """Resident memory where the driver reports it, else what it calls memory or total."""
    amounts: dict[str, int] = {}
    for kind in ("total", "memory", "resident"):
        for key, value in lines.items():
            match = _MEMORY.fullmatch(key)
            if match and key.startswith(f"drm-{kind}-") and match[1] in regions:
                number, _, unit = value.strip().partition(" ")
                if number.isdecimal():
                    amounts[match[1]] = int(number) * _UNITS.get(unit, 1)
    return sum(amounts.values())
