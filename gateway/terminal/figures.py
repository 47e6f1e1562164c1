"""Numbers as people read them: sizes, durations, times of the day, speeds."""

from __future__ import annotations

import math
import time

#: What stands where there is nothing to tell.
NOTHING = "-"

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(value: float | None) -> str:
    """Bytes with three digits and a unit."""
    if not value:
        return NOTHING
    unit = 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 99.95 else f"{value:.1f} {_UNITS[unit]}"


def seconds(value: float | None) -> str:
    """A duration, the longer the coarser."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value < 0.0005:
        return "0 s"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 9.95:
        return f"{value:.1f} s"
    if value < 89.5:
        return f"{value:.0f} s"
    minutes = round(value / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (24 * 60)} days"


def clock(at: float) -> str:
    """The time of the day; the day, too, unless it is today."""
    then, now = time.localtime(at), time.localtime()
    pattern = "%H:%M:%S" if (then.tm_year, then.tm_yday) == (now.tm_year, now.tm_yday) else "%m-%d %H:%M"
    return time.strftime(pattern, then)


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 request`, `2 requests`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def speed(tokens: int, over_s: float) -> str:
    """Words of a model each second, from the first one on."""
    return f"{(tokens - 1) / over_s:.0f} tokens/s" if tokens > 1 and over_s > 0 else NOTHING
