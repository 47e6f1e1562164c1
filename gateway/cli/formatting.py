"""Tables and lines for people: aligned, without boxes, as wide as the terminal, coloured where colours are seen.

Into a pipe goes everything, uncut and uncoloured. What is told by others is made harmless before it is shown.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, TextIO

import msgspec
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from hostler.gateway.events import printable

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


_PIPE_WIDTH: Final = 10_000
_GAP: Final = 2
_LONGEST: Final = 2000

#: What wraps, and names, are content with so many cells.
_LEAST: Final = 20

#: How states, outcomes and answers look. Words carry the meaning; colours only repeat it.
STYLES: Final = {
    "ready": "green",
    "loaded": "green",
    "available": "green",
    "answers": "green",
    "ok": "green",
    "starting": "yellow",
    "loading": "yellow",
    "stopping": "yellow",
    "backoff": "yellow",
    "waiting": "yellow",
    "client_disconnected": "yellow",
    "silent": "red",
    "unavailable": "red",
    "failed": "red",
    "broken": "red",
    "warning": "yellow",
    "error": "bold red",
    "critical": "bold red",
    "stopped": "dim",
    "unloaded": "dim",
}


class Column(msgspec.Struct, frozen=True):
    """A column. Where there is no room, those with the highest `drop` are left out first; 0 stays.

    `wraps`: its text goes on in the next line; others are cut with an ellipsis. `named`: it holds names, which are cut
    in the middle, and different ones stay different. Before others are left out, what wraps, names, and what has a
    `least` width become as narrow as that.
    """

    title: str
    right: bool = False
    drop: int = 0
    wraps: bool = False
    named: bool = False
    least: int = 0


#: Requests that ended or are on their way, as `inspecting.past_rows` tells them.
PAST: Final = (
    Column("AT", drop=4),
    Column("REQUEST", least=16),
    Column("MODEL", named=True),
    Column("VIA", drop=2, named=True),
    Column("TOOK", right=True, drop=1),
    Column("FIRST WORD", right=True, drop=3),
    Column("SPEED", right=True, drop=5),
    Column("CLIENT", drop=6, named=True),
)


def console(stream: TextIO | None = None, *, width: int | None = None) -> Console:
    """Where lines go. Only a terminal has a width and colours (which `NO_COLOR` turns off)."""
    stream = stream or sys.stdout
    terminal = stream.isatty()
    return Console(
        file=stream,
        width=width if terminal or width else _PIPE_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
        force_terminal=terminal,
    )


def styled(text: str) -> Text:
    """One cell: harmless, and in its colour if its first word has one."""
    clean = printable(text, _LONGEST)
    return Text(clean, STYLES.get(clean.split(" ", 1)[0].rstrip(","), ""))


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int) -> Table:
    """The rows as far as `width` goes."""
    cells = [[styled(cell) for cell in row] for row in rows]
    shown, widths = _fitted(columns, cells, width)
    made = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold", collapse_padding=True)
    for place in shown:
        column = columns[place]
        made.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=not column.wraps,
            overflow="fold" if column.wraps else "ellipsis",
            width=widths[place],
        )
    for row in cells:
        made.add_row(*(row[place] for place in shown))
    return made


def aligned(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int) -> list[Text]:
    """The same as lines in which nothing wraps: less beautiful where it is narrow, and a tenth of the work."""
    cells = [[styled(cell) for cell in row] for row in rows]
    shown, widths = _fitted(columns, cells, width)
    lines = []
    for row in ([Text(column.title, "bold") for column in columns], *cells):
        line = Text()
        for number, place in enumerate(shown):
            cell = row[place]
            cell.truncate(widths[place], overflow="ellipsis")
            blanks = " " * (widths[place] - cell.cell_len)
            line.append(" " * _GAP if number else "")
            if columns[place].right:
                line.append(blanks).append_text(cell)
            else:
                line.append_text(cell).append(blanks)
        line.rstrip()
        lines.append(line)
    return lines


def _fitted(columns: Sequence[Column], cells: Sequence[list[Text]], width: int) -> tuple[list[int], list[int]]:
    """The columns for which there is room, and how wide each is. Names in `cells` become as short as their columns."""
    wanted = [
        max([cell_len(column.title), *(row[place].cell_len for row in cells)]) for place, column in enumerate(columns)
    ]
    widths = [
        max(cell_len(column.title), min(wish, _least(column) or wish))
        for column, wish in zip(columns, wanted, strict=True)
    ]
    shown = list(range(len(columns)))
    for place in sorted(shown, key=lambda each: -columns[each].drop):
        if _together(widths, shown) <= width or not columns[place].drop:
            break
        shown.remove(place)
    # Too narrow for all that: the widest give. Room that is left goes to those who want it, the narrowest first.
    while _together(widths, shown) > width and max(widths[place] for place in shown) > 1:
        widths[max(shown, key=lambda place: widths[place])] -= 1
    left = width - _together(widths, shown)
    while left > 0 and (wanting := [place for place in shown if widths[place] < wanted[place]]):
        for place in sorted(wanting, key=lambda place: widths[place])[:left]:
            widths[place] += 1
            left -= 1
    for place in shown:
        if columns[place].named and widths[place] < wanted[place]:
            short = shortened({row[place].plain for row in cells}, widths[place])
            for row in cells:
                row[place].plain = short[row[place].plain]
    return shown, widths


def _least(column: Column) -> int:
    return column.least or (_LEAST if column.wraps or column.named else 0)


def _together(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[place] for place in shown) + _GAP * (len(shown) - 1)


def show(*parts: RenderableType) -> None:
    """Print to standard output; lines have no blanks at their ends, and texts nothing that moves the cursor."""
    out = console()
    with out.capture() as captured:
        for part in parts:
            if isinstance(part, str):
                out.print(printable(part, _PIPE_WIDTH), soft_wrap=True)
            else:
                out.print(part)
    text = captured.get()
    if not out.is_terminal:
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    sys.stdout.write(text)
    sys.stdout.flush()


def show_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as wide as the terminal is."""
    show(table(columns, rows, console().width))
