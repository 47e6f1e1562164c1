"""The values that a model accepts for reasoning: on, off, and named levels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

ThinkingValue = bool | str

#: Levels of templates that take an effort, as gpt-oss's does.
_LEVELS = ("low", "medium", "high")
_MAX_VALUES = 16
_MAX_LENGTH = 32


def template_thinking(template: str) -> tuple[ThinkingValue, ...]:
    """What a chat template accepts; empty if it has no reasoning."""
    if "reasoning_effort" in template:
        return _LEVELS
    if "enable_thinking" in template:
        return (True, False)
    return (True,) if "<think>" in template else ()


def default_thinking(values: tuple[ThinkingValue, ...]) -> ThinkingValue | None:
    """What a model does where neither it nor its server names a default."""
    if not values:
        return None
    return True if True in values else "medium" if "medium" in values else values[0]


def read_values(given: Any) -> tuple[ThinkingValue, ...]:
    """The values in a server's list."""
    return tuple(_distinct(map(read_value, given[:_MAX_VALUES]))) if isinstance(given, list) else ()


def read_value(given: Any) -> ThinkingValue | None:
    """A server's value: LM Studio says `on` and `off` for true and false."""
    if isinstance(given, str):
        return {"on": True, "off": False}.get(given, given[:_MAX_LENGTH] or None)
    return given if isinstance(given, bool) else None


def _distinct(values: Iterable[ThinkingValue | None]) -> Iterable[ThinkingValue]:
    seen: set[ThinkingValue] = set()
    for value in values:
        if value is not None and value not in seen:
            seen.add(value)
            yield value
