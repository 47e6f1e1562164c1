"""Loads the adapters: built-in and third-party ones are entry points of the same group."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points

from hostler.adapters.base import Adapter

GROUP = "hostler.adapters"

# Built-in adapters come first, in this order: where path patterns overlap, the more specific protocol is matched first.
_ORDER = ("openai", "anthropic", "ollama", "llamacpp", "lmstudio")

logger = logging.getLogger(__name__)


class AdapterConflict(Exception):
    """Two adapters claim the same path without a header or query parameter that distinguishes them."""


def load_adapters(points: Iterable[EntryPoint] | None = None) -> tuple[Adapter, ...]:
    """All adapters that can be loaded, the built-in ones first, then the others by name.

    One that fails to load is logged and skipped. Raises `AdapterConflict`.
    """
    if points is None:
        points = entry_points(group=GROUP)
    ordered = sorted(points, key=lambda point: (_rank(point.name), point.name, point.value))
    adapters: list[Adapter] = []
    for point in ordered:
        adapter = _load(point)
        if adapter is None:
            continue
        if any(loaded.name == adapter.name for loaded in adapters):
            logger.error("adapter %s (%s) skipped: another adapter has this name", adapter.name, point.value)
            continue
        adapters.append(adapter)
    check_conflicts(adapters)
    return tuple(adapters)


def check_conflicts(adapters: Sequence[Adapter]) -> None:
    """Raise `AdapterConflict` if two adapters claim the same method, path, header and query parameter."""
    claimed: dict[tuple[str, str, str | None, str | None], str] = {}
    for adapter in adapters:
        for operation in adapter.operations:
            header = operation.header.lower() if operation.header else None
            for method in operation.methods:
                key = (method, operation.path, header, operation.query)
                other = claimed.setdefault(key, adapter.name)
                if other != adapter.name:
                    suffix = f" with the header {header}" if header else ""
                    raise AdapterConflict(
                        f"adapters {other} and {adapter.name} both claim {method} {operation.path}{suffix}: "
                        "uninstall one of them, or give one operation a header"
                    )


def _load(point: EntryPoint) -> Adapter | None:
    try:
        adapter = point.load()()
        if not isinstance(adapter, Adapter):
            raise TypeError("not a subclass of hostler.adapters.base.Adapter")
        check_conflicts([adapter])  # it must have a name and operations
    except Exception as error:
        logger.error(
            "adapter %s (%s) skipped: %s: %s", point.name, point.value, type(error).__name__, error, exc_info=True
        )
        return None
    return adapter


def _rank(name: str) -> int:
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)
