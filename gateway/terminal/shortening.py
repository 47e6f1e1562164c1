"""Names that are too long for their column: cut in the middle, and still told apart where that is possible."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from rich.cells import cell_len

_CUT: Final = "…"

#: Names that look alike are looked at again so often: each time further to where they differ.
_ROUNDS: Final = 8

#: Where there is so much room for the rest, its last characters are shown, too: a mark behind a name stays.
_ROOMY: Final = 8
_TAIL: Final = 2

#: Of what stands in front of where names differ, so much is shown.
_BEFORE: Final = 2


def shortened(names: Collection[str], width: int) -> Mapping[str, str]:
    """Every name in at most `width` cells, beginning and end kept; different names look different if there is a way."""
    shown = {name: middle_cut(name, width) for name in names}
    for _ in range(_ROUNDS):
        alike: dict[str, list[str]] = {}
        for name, short in shown.items():
            alike.setdefault(short, []).append(name)
        changed = False
        for group in alike.values():
            if len(group) > 1:
                place = max(0, _same(group) - _BEFORE)
                for name in group:
                    short = _around(name, place, width)
                    changed = changed or short != shown[name]
                    shown[name] = short
        if not changed:
            break
    return shown


def middle_cut(text: str, width: int) -> str:
    """The text in at most `width` cells: its beginning, an ellipsis, its end."""
    if cell_len(text) <= width:
        return text
    if width < 3:
        return _begin_of(text, width - 1) + _CUT if width > 0 else ""
    tail = (width - 1) // 2
    return _begin_of(text, width - 1 - tail) + _CUT + _end_of(text, tail)


def _around(name: str, place: int, width: int) -> str:
    """The name's beginning, then what stands at `place`, where it differs from others that begin and end alike."""
    if cell_len(name) <= width:
        return name
    head = _begin_of(name, width // 3)
    if place <= len(head) + 1:
        return _begin_of(name, width - 1) + _CUT
    rest, room = name[place:], width - cell_len(head) - 1
    if cell_len(rest) > room:
        tail = _TAIL if room >= _ROOMY else 0
        rest = _begin_of(rest, room - 1 - tail) + _CUT + _end_of(rest, tail)
    return head + _CUT + rest


def _begin_of(text: str, width: int) -> str:
    """As much of the text's beginning as takes at most `width` cells."""
    cells = 0
    for place, character in enumerate(text):
        cells += cell_len(character)
        if cells > width:
            return text[:place]
    return text


def _end_of(text: str, width: int) -> str:
    cells = 0
    for place in range(len(text) - 1, -1, -1):
        cells += cell_len(text[place])
        if cells > width:
            # What takes no cell of its own belongs to the character before it, which is not there.
            rest = text[place + 1 :]
            while rest and not cell_len(rest[0]):
                rest = rest[1:]
            return rest
    return text


def _same(names: Collection[str]) -> int:
    """How many characters all of them begin with."""
    first, last = min(names), max(names)
    return next(
        (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first)
    )
