"""Whether what was received from the store is as a gateway would have written it: types alone leave room for harm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

#: Texts are not longer, in characters, nor numbers larger than this: times, tokens, bytes.
_MAX_TEXT: Final = 2000
_MAX_NUMBER: Final = 1e13
#: Nor are times later than this from now, in seconds.
_MAX_AHEAD_S: Final = 24 * 3600.0


def are_plausible(values: Iterable[object]) -> bool:
    """Whether texts are short, and numbers not negative, infinite or huge. Values of other types are not looked at, but for
    structs and tuples, whose parts are."""
    for value in values:
        if isinstance(value, str):
            plausible = len(value) <= _MAX_TEXT
        elif isinstance(value, int | float):
            plausible = 0 <= value <= _MAX_NUMBER
        elif isinstance(value, msgspec.Struct):
            plausible = is_plausible(value)
        else:
            plausible = not isinstance(value, tuple) or are_plausible(value)
        if not plausible:
            return False
    return True


def is_plausible(value: msgspec.Struct) -> bool:
    """The same for the fields of a struct."""
    return are_plausible(getattr(value, name) for name in value.__struct_fields__)


def is_past(at: float, now: float) -> bool:
    """Whether a time may have been, by a clock that is not quite right; both in seconds since the epoch."""
    return 0 <= at <= now + _MAX_AHEAD_S
