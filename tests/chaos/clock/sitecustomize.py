"""Loaded by the storm's programs: their clock can be set to another time. The monotonic clock is not affected."""

import os
import time

_FILE = os.environ.get("STORM_CLOCK", "")
_real = time.time
_known = [0.0, 0.0]  # looked at, offset


def _now():
    now = _real()
    if _FILE and abs(now - _known[0]) > 0.05:
        _known[0] = now
        try:
            with open(_FILE) as file:  # noqa: PTH123 - runs at the start of every program
                _known[1] = float(file.read() or 0)
        except (OSError, ValueError):
            pass
    return now + _known[1]


time.time = _now
time.time_ns = lambda: int(_now() * 1e9)
