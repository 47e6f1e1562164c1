"""How much of a stream is parsed in one go. A backend may send thousands of events at once, and other requests wait."""

from __future__ import annotations

from collections.abc import Sequence

#: Bytes that are parsed in one go.
TURN = 16 * 1024

#: Up to so many lines are parsed in one go however long they are: a long event, which has two of them, is complete only at its
#: end. To collect one of 64 KB in pieces took 35 µs, and takes 12.
TURN_LINES = 32


def turns(segment: bytes, size: int) -> Sequence[bytes]:
    """The pieces of a segment that are parsed in one go each, of `size` bytes if it has many lines."""
    if 0 < len(segment) <= size or (segment and _has_few_lines(segment)):
        return (segment,)
    return [segment[at : at + size] for at in range(0, len(segment), size)]


def _has_few_lines(segment: bytes) -> bool:
    at = -1
    for _ in range(TURN_LINES):  # `count` would take 30 µs for 64 KB
        at = segment.find(b"\n", at + 1)
        if at < 0:
            return True
    return False
