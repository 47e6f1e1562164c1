"""Formats numbers, shortened names, and tables as wide as the terminal.

Output to a pipe is neither cut nor coloured. Control characters in text from elsewhere are replaced.
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

#: Shown where there is no value.
MISSING: Final = "-"

#: The cells of a line of a table.
Row = tuple[str, ...]

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def format_bytes(value: float | None) -> str:
    """A size with up to three digits and a unit."""
    if not value:
        return MISSING
    unit = 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 99.95 else f"{value:.1f} {_UNITS[unit]}"


def format_seconds(value: float | None) -> str:
    """A duration, rounded more the longer it is."""
    if value is None or not math.isfinite(value):
        return MISSING
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


def format_time(at: float) -> str:
    """The time of day; for another day than today, its date and the time."""
    then, now = time.localtime(at), time.localtime()
    pattern = "%H:%M:%S" if (then.tm_year, then.tm_yday) == (now.tm_year, now.tm_yday) else "%m-%d %H:%M"
    return time.strftime(pattern, then)


def format_speed(tokens: int, over_s: float) -> str:
    """Tokens per second after the first one."""
    return f"{(tokens - 1) / over_s:.0f} tokens/s" if tokens > 1 and over_s > 0 else MISSING


def plural(number: int, one: str, many: str | None = None) -> str:
    """`1 request`, `2 requests`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


_ELLIPSIS: Final = "…"

#: Rounds in which names that still look alike are cut elsewhere, each time further towards where they differ.
_ROUNDS: Final = 8

#: With this much room after the ellipsis, the last characters of a name are kept, and with them a mark behind it.
_MIN_REST: Final = 8
_TAIL: Final = 2

#: Characters that are shown before the place where names differ.
_BEFORE: Final = 2


def shorten_names(names: Collection[str], width: int) -> Mapping[str, str]:
    """Every name in at most `width` cells, beginning and end kept; different names stay different where possible."""
    shown = {name: cut_middle(name, width) for name in names}
    for _ in range(_ROUNDS):
        alike: dict[str, list[str]] = {}
        for name, short in shown.items():
            alike.setdefault(short, []).append(name)
        changed = False
        for group in alike.values():
            if len(group) > 1:
                at = max(0, _common_prefix(group) - _BEFORE)
                for name in group:
                    short = _cut_before(name, at, width)
                    changed = changed or short != shown[name]
                    shown[name] = short
        if not changed:
            break
    return shown


def cut_middle(text: str, width: int) -> str:
    """The text in at most `width` cells: its beginning, an ellipsis, its end."""
    if cell_len(text) <= width:
        return text
    if width < 3:
        return _first_cells(text, width - 1) + _ELLIPSIS if width > 0 else ""
    tail = (width - 1) // 2
    return _first_cells(text, width - 1 - tail) + _ELLIPSIS + _last_cells(text, tail)


def _cut_before(name: str, at: int, width: int) -> str:
    """The name's beginning, then the part at `at`, where it differs from names with the same beginning and end."""
    if cell_len(name) <= width:
        return name
    head = _first_cells(name, width // 3)
    if at <= len(head) + 1:
        return _first_cells(name, width - 1) + _ELLIPSIS
    rest, room = name[at:], width - cell_len(head) - 1
    if cell_len(rest) > room:
        tail = _TAIL if room >= _MIN_REST else 0
        rest = _first_cells(rest, room - 1 - tail) + _ELLIPSIS + _last_cells(rest, tail)
    return head + _ELLIPSIS + rest


def _first_cells(text: str, width: int) -> str:
    """As much of the text's beginning as takes at most `width` cells."""
    cells = 0
    for place, character in enumerate(text):
        cells += cell_len(character)
        if cells > width:
            return text[:place]
    return text


def _last_cells(text: str, width: int) -> str:
    cells = 0
    for place in range(len(text) - 1, -1, -1):
        cells += cell_len(text[place])
        if cells > width:
            # A combining character at the beginning belongs to one that is not shown.
            rest = text[place + 1 :]
            while rest and not cell_len(rest[0]):
                rest = rest[1:]
            return rest
    return text


def _common_prefix(names: Collection[str]) -> int:
    """The number of characters with which all of them begin."""
    first, last = min(names), max(names)
    return next(
        (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first)
    )


_PIPE_WIDTH: Final = 10_000
_GAP: Final = 2
_MAX_CELL: Final = 2000

#: The least width of wrapping columns and of names, unless a column has its own.
_LEAST: Final = 20

#: Colours by a cell's first word. They add no information.
STYLES: Final = {
    "ready": "green",
    "loaded": "green",
    "available": "green",
    "reachable": "green",
    "ok": "green",
    "starting": "yellow",
    "loading": "yellow",
    "stopping": "yellow",
    "backoff": "yellow",
    "waiting": "yellow",
    "disconnected": "yellow",
    "unreachable": "red",
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
    """A table's column.

    Where a table is too wide, columns with the highest `drop` are left out first; those with 0 stay. Before that, names
    (`named`), text that `wraps` and columns with a `least` width become as narrow as that. Names are cut in the middle
    and stay different from each other; other columns end with an ellipsis.
    """

    title: str
    right: bool = False
    drop: int = 0
    wraps: bool = False
    named: bool = False
    least: int = 0


#: Requests, in flight or finished; see `views.finished_rows`.
REQUEST_COLUMNS: Final = (
    Column("AT", drop=4),
    Column("REQUEST", least=16),
    Column("MODEL", named=True),
    Column("VIA", drop=2, named=True),
    Column("TOOK", right=True, drop=1),
    Column("FIRST TOKEN", right=True, drop=3),
    Column("SPEED", right=True, drop=5),
    Column("CLIENT", drop=6, named=True),
)


def make_console(stream: TextIO | None = None, *, width: int | None = None) -> Console:
    """A console for standard output or `stream`. Only a terminal has a width and colours (not with `NO_COLOR`)."""
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


def make_table(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int) -> Table:
    """A table without lines, at most `width` cells wide."""
    cells = [[_cell(text) for text in row] for row in rows]
    shown, widths = _fit(columns, cells, width)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold", collapse_padding=True)
    for place in shown:
        column = columns[place]
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=not column.wraps,
            overflow="fold" if column.wraps else "ellipsis",
            width=widths[place],
        )
    for row in cells:
        table.add_row(*(row[place] for place in shown))
    return table


def _cell(text: str) -> Text:
    clean = printable(text, _MAX_CELL)
    return Text(clean, STYLES.get(clean.split(" ", 1)[0].rstrip(",:"), ""))


def _fit(columns: Sequence[Column], cells: Sequence[list[Text]], width: int) -> tuple[list[int], list[int]]:
    """The indices of the columns that are shown, and the width of each. Shortens the names in `cells`."""
    wanted = [
        max([cell_len(column.title), *(row[place].cell_len for row in cells)]) for place, column in enumerate(columns)
    ]
    widths = [
        max(cell_len(column.title), min(cells_wanted, _least(column) or cells_wanted))
        for column, cells_wanted in zip(columns, wanted, strict=True)
    ]
    shown = list(range(len(columns)))
    for place in sorted(shown, key=lambda each: -columns[each].drop):
        if _total(widths, shown) <= width or not columns[place].drop:
            break
        shown.remove(place)
    # Still too wide: the widest columns shrink. Room that is left goes to the narrowest first.
    while _total(widths, shown) > width and max(widths[place] for place in shown) > 1:
        widths[max(shown, key=lambda place: widths[place])] -= 1
    left = width - _total(widths, shown)
    while left > 0 and (wanting := [place for place in shown if widths[place] < wanted[place]]):
        for place in sorted(wanting, key=lambda place: widths[place])[:left]:
            widths[place] += 1
            left -= 1
    for place in shown:
        if columns[place].named and widths[place] < wanted[place]:
            short = shorten_names({row[place].plain for row in cells}, widths[place])
            for row in cells:
                row[place].plain = short[row[place].plain]
    return shown, widths


def _least(column: Column) -> int:
    return column.least or (_LEAST if column.wraps or column.named else 0)


def _total(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[place] for place in shown) + _GAP * (len(shown) - 1)


def print_parts(*parts: RenderableType) -> None:
    """Print texts and tables to standard output, without trailing blanks in a pipe."""
    console = make_console()
    with console.capture() as captured:
        for part in parts:
            if isinstance(part, str):
                console.print(printable(part, _PIPE_WIDTH), soft_wrap=True)
            else:
                console.print(part)
    text = captured.get()
    if not console.is_terminal:
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    sys.stdout.write(text)
    sys.stdout.flush()


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as wide as the terminal."""
    print_parts(make_table(columns, rows, make_console().width))
