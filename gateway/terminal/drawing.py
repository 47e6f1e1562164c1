"""The live view of `hostler up` as lines of text: models and requests at the bottom, the log scrolling by above them.

Plain values in, lines out; what paints them is `screen.py`.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from rich.cells import cell_len
from rich.color import ColorSystem
from rich.console import Console
from rich.text import Text

from hostler.gateway.events import RequestFinished, printable
from hostler.gateway.records.journal import Lines
from hostler.gateway.terminal import inspecting
from hostler.gateway.terminal.figures import NOTHING, clock, count, seconds, size
from hostler.gateway.terminal.shortening import middle_cut
from hostler.gateway.terminal.tables import PAST, STYLES, Column, aligned

#: The lines that stand at the bottom are no more than this part of the screen, and no more than so many.
_SHARE: Final = 0.7
_MOST: Final = 24

_BAR: Final = 10

#: What is said of models without a process; of those that are elsewhere, nothing has to be loaded.
_WITHOUT: Final = {"available": "available elsewhere", "unavailable": "unavailable"}
_KINDS: Final = ("not loaded", *_WITHOUT.values())

#: What lines are rendered with; it is never printed to.
_CONSOLE: Final = Console()

#: From this height on, a rule stands between the log and the view.
_RULED: Final = 16


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """What the view shows. `status` is as `GET /admin/status` tells it, `last` the newest requests that ended first.

    `switches` are those under way: host, and the phase as events tell it. `stopping` is what is said while it stops.
    """

    title: str
    addresses: tuple[str, ...]
    status: Any
    last: tuple[RequestFinished, ...] = ()
    switches: tuple[tuple[str, Any], ...] = ()
    stopping: str = ""
    requests: bool = True


class Drawing:
    """Draws pictures and log records, in colours if they are wanted."""

    def __init__(self, *, colours: bool = True) -> None:
        self._colours = colours

    def above(self, item: object, width: int) -> list[str]:
        """A log record as it scrolls by, or a text. Requests that were answered are shown below, and need no line."""
        if isinstance(item, str):
            return [printable(item)]
        if not isinstance(item, logging.LogRecord):
            return []
        texts: list[tuple[float, str, str]] = []
        if isinstance(item, Lines):
            for (at, text), event in zip(item.lines, item.events or (None,) * len(item.lines), strict=True):
                if event is None or event.outcome != "ok":
                    texts.append((at, "info" if event is None else "warning", text))
        else:
            message = item.getMessage()
            if item.exc_info and item.exc_info[0] is not None:
                message += "\n" + "".join(traceback.format_exception(*item.exc_info)).rstrip()
            texts.append((item.created, item.levelname.lower(), message))
        lines = []
        for at, level, text in texts:
            first, *more = text.splitlines() or [""]
            shown = Text(f"{clock(at)} ", "dim")
            if level not in ("info", "debug"):
                shown.append(f"{level}: ", STYLES.get(level, ""))
            shown.append(printable(first, 2000), "dim" if level == "debug" else "")
            lines += [shown, *(Text(f"  {printable(line, 2000)}") for line in more)]
        # The terminal breaks what is too long: then it can be copied as one line.
        return self._coloured(lines)

    def below(self, picture: object, width: int, height: int) -> list[str]:
        """The view, in at most `height` lines and at most as many as leave room for the log."""
        assert isinstance(picture, Picture)
        room = min(height, max(3, round(height * _SHARE)), _MOST)
        status = msgspec.to_builtins(picture.status)
        lines = [Text("─" * width, "dim")] if height >= _RULED else []
        lines.append(self._title(picture, width))
        left = room - len(lines) - 1
        lines += self._models(picture, status, width, left if left < 4 else max(3, left // 2))
        left = room - len(lines) - 1
        if picture.requests and left >= 3:
            lines += self._requests(status, picture.last, width, left)
        return self._cut([*lines[: room - 1], self._hint(picture, width)], width)

    def _title(self, picture: Picture, width: int) -> Text:
        """What runs, and as many of its addresses as there is room for."""
        title = Text(picture.title, "bold")
        for address in picture.addresses:
            if title.cell_len + 2 + len(address) <= width:
                title.append("  ")
                title.append(address, "cyan")
        return title

    def _hint(self, picture: Picture, width: int) -> Text:
        if picture.stopping:
            return Text(_first_that_fits(picture.stopping.split("|"), width), "yellow")
        hints = ["Ctrl-C stops it", "hostler ps", "hostler logs -f MODEL", "hostler --help"]
        return Text(
            _first_that_fits([" · ".join(hints[:number]) for number in range(len(hints), 0, -1)], width),
            "dim",
        )

    def _models(self, picture: Picture, status: Mapping[str, Any], width: int, room: int) -> list[Text]:
        """The models that run or are about to; the others in one line."""
        moving = {(host, switch["model"]): switch for host, switch in msgspec.to_builtins(picture.switches)}
        running = list(inspecting.processes(status))
        shown: list[tuple[str, ...]] = []
        for host in status["hosts"]:
            if not host["reachable"]:
                shown.append((NOTHING, host["backend"], "silent: its supervisor does not answer", "", "", "", ""))
        for each in running:
            switch = moving.pop((each["host"], each["model"]), None)
            shown.append(self._model(each, switch))
        for (host, model), switch in moving.items():  # not started yet: draining, fetching, saving
            shown.append((model, host, _moving(switch), NOTHING, NOTHING, NOTHING, NOTHING))
        busy = {each["model"] for each in running} | {model for _, model in moving}
        others = self._others([card for card in status["models"] if card["name"] not in busy], width)
        columns = [
            Column("MODEL", named=True),
            Column("HOST", drop=3, named=True, least=12),
            Column("STATE", least=24),
            Column("BUSY", right=True, drop=1),
            Column("WAITS", right=True, drop=5),
            Column("MEMORY", right=True, drop=2),
            Column("UNLOADS", right=True, drop=4),
        ]
        # What runs comes first: a head and a line at least.
        others = others[: max(0, room - 2)] if shown else others
        room -= len(others)
        lines: list[Text] = []
        if shown and room >= 2:
            if len(shown) > room - 1 > 1:
                more = len(shown) - (room - 2)
                shown = [*shown[: room - 2], (f"and {more} more", *[""] * 6)]
            lines = aligned(columns, shown[: room - 1], width)
        elif not shown:
            lines.append(Text("No model runs: the first request for one starts it."))
        return [*lines, *others]

    def _others(self, cards: Sequence[Mapping[str, Any]], width: int) -> list[Text]:
        """Models without a process, a line for each way to be so, with as many names as there is room for."""
        kinds: dict[str, list[str]] = {}
        for card in cards:
            kinds.setdefault(_WITHOUT.get(card["state"], "not loaded"), []).append(printable(card["name"]))
        return [Text(_listed(words, kinds[words], width), "dim") for words in _KINDS if words in kinds]

    def _model(self, each: Mapping[str, Any], switch: Mapping[str, Any] | None) -> tuple[str, ...]:
        state = inspecting.state_words(each)
        if switch is not None and each["state"] != "ready":
            state = _moving(switch)
        if each["failure"] and each["state"] in ("failed", "backoff"):
            state = f"{each['state']}: {each['failure']}"
        return (
            each["model"],
            each["host"],
            state,
            inspecting.slots(each),
            str(each["waiting"]) if each["waiting"] else NOTHING,
            size(each["memory_bytes"] + each["gpu_bytes"]),
            inspecting.end_words(each),
        )

    def _requests(
        self, status: Mapping[str, Any], last: Sequence[RequestFinished], width: int, room: int
    ) -> list[Text]:
        """Those on their way first, then the last ones that ended."""
        flights = inspecting.requests({**status, "at": time.time()})
        rows: list[tuple[str, ...]] = [
            (
                clock(each["at"]),
                f"place {each['position']}, {seconds(each['eta_s'])}" if each["position"] else each["phase"],
                each["model"] or each["asked"] or NOTHING,
                inspecting.via(each),
                seconds(each["for_s"]),
                seconds(each["first_word_s"]),
                NOTHING,
                each["client"],
            )
            for each in flights
        ]
        most = room - 1
        if len(rows) > most - 1 and len(rows) > 1:
            more = len(rows) - (most - 1)
            rows = rows[: most - 1]
            rows.append((NOTHING, f"and {count(more, 'more request')}", *[""] * 6))
        rows += inspecting.past_rows(msgspec.to_builtins(last[: max(0, most - len(rows))]))
        if not rows:
            return []
        return aligned(PAST, rows, width)

    def _cut(self, lines: Sequence[Text], width: int) -> list[str]:
        """The lines as a terminal takes them, none longer than `width` cells."""
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return self._coloured(lines)

    def _coloured(self, lines: Sequence[Text]) -> list[str]:
        if not self._colours:
            return [line.plain for line in lines]
        return [
            "".join(
                piece.text if piece.style is None else piece.style.render(piece.text, color_system=ColorSystem.STANDARD)
                for piece in line.render(_CONSOLE)
            )
            for line in lines
        ]


def _moving(switch: Mapping[str, Any]) -> str:
    """A switch in a few words, with a bar as soon as it is known how far it is."""
    words = str(switch["phase"])
    percent = switch["percent"]
    if percent is not None:
        done = round(_BAR * min(100.0, percent) / 100)
        words += f" {'█' * done}{'░' * (_BAR - done)} {percent:.0f} %"
    return words + (f", {seconds(switch['eta_s'])} left" if switch["eta_s"] else "")


def _listed(words: str, names: Sequence[str], width: int) -> str:
    """So many of the names as fit into a line; of the others it is told how many they are."""
    line = f"{words}: {', '.join(names)}"
    if cell_len(line) <= width:
        return line
    for shown in range(min(len(names) - 1, width), 0, -1):
        line = f"{words}: {', '.join(names[:shown])} and {len(names) - shown} more"
        if cell_len(line) <= width:
            return line
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{words}: {middle_cut(names[0], max(3, width - len(words) - 2 - len(more)))}{more}"


def _first_that_fits(texts: Sequence[str], width: int) -> str:
    return next((text for text in texts if len(text) <= width), texts[-1])
