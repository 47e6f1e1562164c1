"""Finds the adapters: built-in and third-party ones are entry points of the same group."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points

from hostler.adapters.base import Adapter

GROUP = "hostler.adapters"

# The built-in ones come first and in this order: where patterns overlap, the more specific protocol is asked first.
_ORDER = ("openai", "anthropic", "ollama", "llamacpp", "lmstudio")

log = logging.getLogger(__name__)


class AdapterConflict(Exception):
    """Two adapters claim the same path and nothing tells their requests apart."""


def load_adapters(points: Iterable[EntryPoint] | None = None) -> tuple[Adapter, ...]:
    """All adapters that can be loaded: the built-in ones first, then the others by name.

    A broken one is logged with its name and the reason, and left out. Raises `AdapterConflict` if two of them claim
    the same method and path without a header that tells them apart.
    """
    if points is None:
        points = entry_points(group=GROUP)
    ordered = sorted(points, key=lambda point: (_place(point.name), point.name, point.value))
    adapters: list[Adapter] = []
    for point in ordered:
        adapter = _load(point)
        if adapter is None:
            continue
        if any(known.name == adapter.name for known in adapters):
            log.error("adapter %s (%s) is left out: there is one of that name already", adapter.name, point.value)
            continue
        adapters.append(adapter)
    check_conflicts(adapters)
    return tuple(adapters)


def check_conflicts(adapters: Sequence[Adapter]) -> None:
    """Raises `AdapterConflict`, naming both, if two adapters claim one method and path with the same header or none."""
    claimed: dict[tuple[str, str, str | None, str | None], str] = {}
    for adapter in adapters:
        for operation in adapter.operations:
            header = operation.header.lower() if operation.header else None
            for method in operation.methods:
                key = (method, operation.path, header, operation.query)
                other = claimed.setdefault(key, adapter.name)
                if other != adapter.name:
                    told = f" with the header {header}" if header else ""
                    raise AdapterConflict(
                        f"adapters {other} and {adapter.name} both claim {method} {operation.path}{told}: "
                        "uninstall one of them, or let one ask for a header"
                    )


def _load(point: EntryPoint) -> Adapter | None:
    try:
        adapter = point.load()()
        if not isinstance(adapter, Adapter):
            raise TypeError("not a subclass of hostler.adapters.base.Adapter")
        check_conflicts([adapter])  # it must have a name and operations
    except Exception as error:
        log.error(
            "adapter %s (%s) is left out: %s: %s", point.name, point.value, type(error).__name__, error, exc_info=True
        )
        return None
    return adapter


def _place(name: str) -> int:
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)
