"""The live view of a running process: looks at what there is a few times a second, and has it painted when it changed.

It imports what draws only when it begins: a process without a terminal never does.
"""

from __future__ import annotations

import logging
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
import msgspec
from rich.cells import cell_len
from rich.color import ColorSystem
from rich.console import Console
from rich.text import Text

from hostler import __version__
from hostler.adapters.model_list import ModelCard
from hostler.gateway.admin.status import HostView, StatusView, without_facts
from hostler.gateway.cli import views as inspecting
from hostler.gateway.cli.formatting import (
    NOTHING,
    PAST,
    STYLES,
    Column,
    aligned,
    clock,
    count,
    middle_cut,
    seconds,
    size,
)
from hostler.gateway.events import Event, RequestFinished, SwitchChanged, printable
from hostler.gateway.telemetry.access_log import AccessLogRecord
from hostler.supervisor.contract import HostStatus, ModelStatus

if TYPE_CHECKING:
    from hostler.gateway.cli.logging import Handler


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
        if isinstance(item, AccessLogRecord):
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
                each["model"] or each["requested_model"] or NOTHING,
                inspecting.via(each),
                seconds(each["for_s"]),
                seconds(each["first_token_s"]),
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


#: So long passes at least between two paintings, in seconds.
PACE_S: Final = 0.25

#: Lines that wait for a terminal which stands still; older ones are gone, and it is told how many.
_MOST_LINES: Final = 1000

#: At the end, a terminal that stands still is waited for this long, in seconds.
_FAREWELL_S: Final = 2.0

_SMALLEST: Final = (20, 3)

_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")


class Artist(Protocol):
    """Turns what there is to show into lines of at most `width` cells. Called in the screen's thread."""

    def above(self, item: object, width: int) -> list[str]:
        """What scrolls by."""
        ...

    def below(self, picture: object, width: int, height: int) -> list[str]:
        """What stays at the bottom: at most `height` lines."""
        ...


class Screen:
    """The terminal at `descriptor`. `say` and `show` never wait; nothing is painted before `open` and after `close`."""

    def __init__(self, descriptor: int, artist: Artist, *, pace_s: float = PACE_S) -> None:
        self._descriptor = descriptor
        self._artist = artist
        self._pace_s = pace_s
        self._news = threading.Condition()
        self._said: deque[object] = deque(maxlen=_MOST_LINES)
        self._missed = 0
        self._picture: object = None
        self._fresh = False
        self._closed = False
        self._ending = threading.Event()
        self._painted: list[int] = []
        self._thread = threading.Thread(target=self._run, name="screen", daemon=True)

    def open(self) -> None:
        """Begin to paint."""
        self._thread.start()

    def say(self, item: object) -> None:
        """Something that scrolls by. From any thread."""
        with self._news:
            if len(self._said) == _MOST_LINES:
                self._missed += 1
            self._said.append(item)
            self._news.notify()

    def show(self, picture: object) -> None:
        """What stands at the bottom from now on."""
        with self._news:
            self._picture, self._fresh = picture, True
            self._news.notify()

    def close(self, farewell: object = None) -> None:
        """Print what was said last, take away what stands at the bottom, and leave the terminal to others."""
        with self._news:
            if farewell is not None:
                self._said.append(farewell)
            self._closed = True
            self._news.notify()
        self._ending.set()
        self._thread.join(_FAREWELL_S)

    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        try:
            columns, lines = os.get_terminal_size(self._descriptor)
        except OSError:
            return 80, 24
        return columns or 80, lines or 24

    def forget(self) -> None:
        """What was painted is not there any more: somebody else has used the terminal."""
        with self._news:
            self._painted = []
            self._fresh = True
            self._news.notify()

    def _run(self) -> None:
        closed = False
        while not closed:
            with self._news:
                while not (self._said or self._fresh or self._closed):
                    self._news.wait()
                closed, picture = self._closed, self._picture
                said, missed = list(self._said), self._missed
                self._said.clear()
                self._missed, self._fresh = 0, False
            try:
                self._paint(said, missed, None if closed or not self._in_front() else picture)
            except OSError:
                return  # the terminal is gone
            self._ending.wait(self._pace_s)

    def _in_front(self) -> bool:
        """Whether the terminal is ours just now, rather than a shell's that put us into the background."""
        try:
            return os.tcgetpgrp(self._descriptor) == os.getpgrp()
        except OSError:
            return True

    def _paint(self, said: Sequence[object], missed: int, picture: object) -> None:
        width, height = self.size()
        above = [f"[{missed} lines were missed]"] if missed else []
        for item in said:
            above += self._artist.above(item, width)
        below: list[str] = []
        if picture is not None and width >= _SMALLEST[0] and height >= _SMALLEST[1]:
            below = self._artist.below(picture, width - 1, height - 1)
        back = sum(max(1, -(-painted // width)) for painted in self._painted)
        text = "\r" + (f"\x1b[{min(back, height)}A" if back else "")
        text += "".join(f"{line}\x1b[K\r\n" for line in (*above, *below)) + "\x1b[J"
        self._painted = [cell_len(_COLOURS.sub("", line)) for line in below]
        self._write(text.encode("utf-8", "replace"))

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [], 1.0)


#: As many requests that ended are remembered for the view.
_LAST = 20

_LOOK_S = 0.25


class Live:
    """What stands at the bottom of the terminal while a gateway or a supervisor runs.

    `handler` is the log's: its lines scroll by above as long as the view is there.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._title = ""
        self._requests = True
        self._last: deque[RequestFinished] = deque(maxlen=_LAST)
        self._switches: dict[tuple[str, str], SwitchChanged] = {}
        self._addresses: tuple[str, ...] = ()
        self._begun = anyio.Event()
        self._stopping = ""
        self._moved = False

    def begin(self, title: str, addresses: Sequence[str], *, requests: bool = True) -> None:
        """The process serves; show it from now on, with the addresses at which it does, and `requests` if it has any."""
        self._title = title
        self._addresses = tuple(addresses)
        self._requests = requests
        self._begun.set()

    def hear(self, event: Event) -> None:
        """A listener for the bus."""
        if isinstance(event, RequestFinished):
            self._last.appendleft(event)
            self._moved = True
        elif isinstance(event, SwitchChanged):
            place = event.backend, event.switch.model
            if event.switch.phase in ("ready", "failed"):
                self._switches.pop(place, None)
            else:
                self._switches[place] = event
            self._moved = True

    def stopping(self, words: str) -> None:
        """The process is told to stop: say so from now on. Shorter ways to say it follow after a `|`."""
        self._stopping = words
        self._moved = True

    @asynccontextmanager
    async def shown(self, look: Callable[[], StatusView | None]) -> AsyncIterator[None]:
        """Show it inside, once it has begun; afterwards the terminal is as if it had never been there."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._run, look)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    async def _run(self, look: Callable[[], StatusView | None]) -> None:
        await self._begun.wait()
        from hostler.gateway.cli.live import Drawing, Screen

        screen = Screen(sys.stdout.fileno(), Drawing(colours=not os.environ.get("NO_COLOR")))
        sys.stdout.flush()
        sys.stderr.flush()
        screen.open()
        if sys.stderr.isatty():
            self._handler.above = screen.say
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_come_back, screen)
                await self._look_on(look, screen)
        finally:
            self._handler.above = None
            # Not printed, since a terminal that stands still would keep the process from ending.
            screen.close(f"{self._title.partition(',')[0]} has stopped.")

    async def _look_on(self, look: Callable[[], StatusView | None], screen: Screen) -> None:
        before: StatusView | None = None
        size = (0, 0)
        while True:
            view = look()
            if view is not None:
                view = msgspec.structs.replace(view, at=0.0)
                # Who is on the way grows older by the moment; everything else changes when it changes.
                if self._moved or view != before or view.in_flight or size != screen.size():
                    before, size, self._moved = view, screen.size(), False
                    screen.show(self._picture(view))
            await anyio.sleep(_LOOK_S)

    def _picture(self, view: StatusView) -> object:
        from hostler.gateway.cli.live import Picture

        return Picture(
            title=self._title,
            addresses=self._addresses,
            status=view,
            last=tuple(self._last),
            switches=tuple((event.backend, event.switch) for event in self._switches.values()),
            stopping=self._stopping,
            requests=self._requests,
        )


def view_of(host: HostStatus, name: str) -> StatusView:
    """A supervisor's status as if a gateway had told it."""
    states = {each.model: each for each in host.models}
    cards = tuple(
        ModelCard(name=profile.name, state="loaded" if _is_ready(states.get(profile.name)) else "unloaded")
        for profile in host.profiles
    )
    view = HostView(backend=name, reachable=True, host=without_facts(host), waiting=0, serving=0)
    return StatusView(version=__version__, active=None, default=None, models=cards, hosts=(view,))


def _is_ready(status: ModelStatus | None) -> bool:
    return status is not None and status.state == "ready"


async def _come_back(screen: Screen) -> None:
    """After Ctrl-Z and `fg` the shell has written where we were."""
    with anyio.open_signal_receiver(signal.SIGCONT) as signals:
        async for _ in signals:
            screen.forget()
