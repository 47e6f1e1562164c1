"""Durations and times as Go reads and writes them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from hostler.adapters.errors import BadRequest
from hostler.adapters.ollama.gojson import quoted

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"(\d*)(?:\.(\d*))?", re.ASCII)
_UNIT = re.compile(r"[^.0-9]*")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TYPES: dict[type, str] = {bool: "bool", list: "[]interface {}", dict: "map[string]interface {}"}

#: Ollama's "never": the end of its longest duration.
FOREVER = "2318-01-01T00:00:00Z"


def keep_alive(value: object) -> float | None:
    """Seconds for which a model stays after its last answer: `inf` for anything negative, `None` if nothing is said."""
    if value is None:
        return None
    if isinstance(value, str):
        seconds = duration(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise BadRequest(f"Unsupported type: '{_TYPES[type(value)]}'", param="keep_alive")
    return float("inf") if seconds < 0 else seconds


def duration(text: str) -> float:
    """Seconds of a duration like `1h30m`. Raises `BadRequest` in Go's words."""
    rest = text.removeprefix("-") if text.startswith("-") else text.removeprefix("+")
    if rest == "0":
        return 0.0
    if not rest:
        raise BadRequest(f"time: invalid duration {quoted(text)}")
    seconds = 0.0
    while rest:
        number = _NUMBER.match(rest)
        if number is None or not (number[1] or number[2]):
            raise BadRequest(f"time: invalid duration {quoted(text)}")
        rest = rest[number.end() :]
        unit = _UNIT.match(rest)
        name = unit[0] if unit else ""
        if not name:
            raise BadRequest(f"time: missing unit in duration {quoted(text)}")
        if name not in _UNITS:
            raise BadRequest(f"time: unknown unit {quoted(name)} in duration {quoted(text)}")
        seconds += float(f"{number[1] or 0}.{number[2] or 0}") * _UNITS[name]
        rest = rest[len(name) :]
    return -seconds if text.startswith("-") else seconds


def timestamp(seconds: float) -> str:
    """A moment in UTC, as in RFC 3339, without trailing zeros."""
    try:
        moment = _EPOCH + timedelta(microseconds=round(seconds * 1e6))
    except (OverflowError, ValueError):
        return FOREVER
    text = moment.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
    fraction = f".{moment.microsecond:06}".rstrip("0").rstrip(".")
    return f"{text}{fraction}Z"


def nanoseconds(seconds: float) -> int:
    """A duration as it stands in an answer."""
    return max(0, round(seconds * 1e9))
