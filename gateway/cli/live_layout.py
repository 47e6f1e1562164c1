"""Lays out the live view for a terminal's size: models, requests, and the log lines above."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from rich.cells import cell_len
from rich.console import RenderableType
from rich.text import Text

from hostler import __version__
from hostler.adapters.model_list import ModelCard
from hostler.gateway.admin.status import HostView, StatusView, without_facts
from hostler.gateway.cli import host_views, views
from hostler.gateway.cli.formatting import (
    MISSING,
    REQUEST_COLUMNS,
    STYLES,
    Column,
    cut_middle,
    format_bytes,
    format_seconds,
    format_time,
    make_table,
    plural,
)
from hostler.gateway.events import RequestFinished, printable
from hostler.gateway.telemetry.access_log import AccessLogRecord
from hostler.supervisor.contract import HostStatus, ModelStatus

#: The share of the screen and the number of lines that the view takes at most; the rest is for the log.
_SHARE: Final = 0.7
_MAX_LINES: Final = 24

#: From this height on, a rule separates the log from the view.
_RULE_HEIGHT: Final = 16

_BAR_CELLS: Final = 10

#: Displayed states of models without a process. Models of other servers are not called "not loaded".
_WITHOUT_PROCESS: Final = {"available": "available elsewhere", "unavailable": "unavailable"}
_GROUPS: Final = ("not loaded", *_WITHOUT_PROCESS.values())

_MODEL_COLUMNS: Final = (
    Column("MODEL", named=True),
    Column("HOST", drop=3, named=True, least=12),
    Column("STATE", least=24),
    Column("BUSY", right=True, drop=1),
    Column("WAITING", right=True, drop=5),
    Column("MEMORY", right=True, drop=2),
    Column("UNLOADS", right=True, drop=4),
)

_HINTS: Final = ("Ctrl-C to stop", "hostler ps", "hostler logs -f MODEL", "hostler --help")


class LiveState(msgspec.Struct, frozen=True, kw_only=True):
    """The data of the view. `last` are finished requests, newest first; `switches` those in progress, with their host.

    `stopping` is shown instead of the hints: texts separated by `|`, of which the first that fits is taken.
    """

    title: str
    addresses: tuple[str, ...]
    status: StatusView
    last: tuple[RequestFinished, ...] = ()
    switches: tuple[tuple[str, Any], ...] = ()
    stopping: str = ""
    requests: bool = True


def log_lines(record: logging.LogRecord) -> list[Text]:
    """A log record as it scrolls by. Answered requests are left out, since the view lists them.

    Long lines are not wrapped here but by the terminal, so that they can be copied as one.
    """
    entries: list[tuple[float, str, str]] = []
    if isinstance(record, AccessLogRecord):
        for (at, text), event in zip(record.lines, record.events or (None,) * len(record.lines), strict=True):
            if event is None or event.outcome != "ok":
                entries.append((at, "info" if event is None else "warning", text))
    else:
        message = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            message += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        entries.append((record.created, record.levelname.lower(), message))
    lines = []
    for at, level, text in entries:
        first, *more = text.splitlines() or [""]
        line = Text(f"{format_time(at)} ", "dim")
        if level not in ("info", "debug"):
            line.append(f"{level}: ", STYLES.get(level, ""))
        line.append(printable(first, 2000), "dim" if level == "debug" else "")
        lines += [line, *(Text(f"  {printable(each, 2000)}") for each in more)]
    return lines


def view_parts(state: LiveState, width: int, height: int) -> list[RenderableType]:
    """The view in at most `height` lines of `width` cells, and at most as many as leave room for the log."""
    room = min(height, max(3, round(height * _SHARE)), _MAX_LINES)
    status = msgspec.to_builtins(state.status)
    parts = _Parts()
    if height >= _RULE_HEIGHT:
        parts.add_line(Text("─" * width, "dim"))
    parts.add_line(_title(state, width))
    left = room - parts.height - 1
    _add_models(parts, state, status, width, left if left < 4 else max(3, left // 2))
    left = room - parts.height - 1
    if state.requests and left >= 3:
        _add_requests(parts, status, state.last, width, left)
    parts.add_line(_last_line(state, width))
    for part in parts.parts:
        if isinstance(part, Text):
            part.truncate(width, overflow="ellipsis")
    return parts.parts


class _Parts:
    """Lines and tables, and their total height in lines."""

    def __init__(self) -> None:
        self.parts: list[RenderableType] = []
        self.height = 0

    def add_line(self, line: Text) -> None:
        self.parts.append(line)
        self.height += 1

    def add_table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> None:
        self.parts.append(make_table(columns, rows, width))
        self.height += 1 + len(rows)


def _title(state: LiveState, width: int) -> Text:
    title = Text(state.title, "bold")
    for address in state.addresses:
        if title.cell_len + 2 + len(address) <= width:
            title.append("  ")
            title.append(address, "cyan")
    return title


#: What is shown of a host that takes no requests.
_HOST_STATES: Final = {
    "unreachable": "unreachable: its supervisor does not answer",
    "draining": "draining: takes no new requests",
    "drained": "drained: takes no requests until `hostler drain --undo`",
}


def _last_line(state: LiveState, width: int) -> Text:
    if state.stopping:
        return Text(_first_that_fits(state.stopping.split("|"), width), "yellow")
    hints = [" · ".join(_HINTS[:number]) for number in range(len(_HINTS), 0, -1)]
    return Text(_first_that_fits(hints, width), "dim")


def _add_models(parts: _Parts, state: LiveState, status: Mapping[str, Any], width: int, room: int) -> None:
    """A row for each model that runs or is being switched to, and a line for each group of the others."""
    switches = {(host, switch["model"]): switch for host, switch in msgspec.to_builtins(state.switches)}
    running = list(views.processes(status))
    rows: list[tuple[str, ...]] = [
        (MISSING, host["backend"], _HOST_STATES[found], "", "", "", "")
        for host in status["hosts"]
        if (found := host_views.host_state(host)) in _HOST_STATES
    ]
    rows += [_model_row(each, switches.pop((each["host"], each["model"]), None)) for each in running]
    # No process yet: draining, fetching, saving.
    rows += [(model, host, _progress(switch), *[MISSING] * 4) for (host, model), switch in switches.items()]
    busy = {each["model"] for each in running} | {model for _, model in switches}
    others = _groups([card for card in status["models"] if card["name"] not in busy], width)
    # What runs comes first: a header and a row at least.
    others = others[: max(0, room - 2)] if rows else others
    room -= len(others)
    if rows and room >= 2:
        if len(rows) > room - 1 > 1:
            rows = [*rows[: room - 2], (f"and {len(rows) - (room - 2)} more", *[""] * 6)]
        parts.add_table(_MODEL_COLUMNS, rows[: room - 1], width)
    elif not rows:
        parts.add_line(Text("No model is loaded. The first request for a model loads it."))
    for line in others:
        parts.add_line(line)


def _groups(cards: Sequence[Mapping[str, Any]], width: int) -> list[Text]:
    groups: dict[str, list[str]] = {}
    for card in cards:
        groups.setdefault(_WITHOUT_PROCESS.get(card["state"], "not loaded"), []).append(printable(card["name"]))
    return [Text(_listed(group, groups[group], width), "dim") for group in _GROUPS if group in groups]


def _model_row(process: Mapping[str, Any], switch: Mapping[str, Any] | None) -> tuple[str, ...]:
    state = views.process_state(process)
    if switch is not None and process["state"] != "ready":
        state = _progress(switch)
    if process["failure"] and process["state"] in ("failed", "backoff"):
        state = f"{process['state']}: {process['failure']}"
    return (
        process["model"],
        process["host"],
        state,
        views.slots(process),
        str(process["waiting"]) if process["waiting"] else MISSING,
        format_bytes(process["memory_bytes"] + process["gpu_bytes"]),
        views.unload_time(process),
    )


def _add_requests(
    parts: _Parts, status: Mapping[str, Any], last: Sequence[RequestFinished], width: int, room: int
) -> None:
    """Requests in flight first, then the last ones that finished."""
    rows: list[tuple[str, ...]] = [
        (
            format_time(each["at"]),
            _place(each) if each["position"] else each["phase"],
            each["model"] or each["requested_model"] or MISSING,
            views.via(each),
            format_seconds(each["for_s"]),
            format_seconds(each["first_token_s"]),
            MISSING,
            views.client(each),
        )
        for each in views.requests({**status, "at": time.time()})
    ]
    limit = room - 1
    if len(rows) > limit - 1 and len(rows) > 1:
        more = len(rows) - (limit - 1)
        rows = [*rows[: limit - 1], (MISSING, f"and {plural(more, 'more request')}", *[""] * 6)]
    rows += views.finished_rows(msgspec.to_builtins(last[: max(0, limit - len(rows))]))
    if rows:
        parts.add_table(REQUEST_COLUMNS, rows, width)


def _place(request: Mapping[str, Any]) -> str:
    """Where a request stands in the queue, and how long it will wait if that is known."""
    text = f"place {request['position']}"
    return text if request["eta_s"] is None else f"{text}, {format_seconds(request['eta_s'])}"


def _progress(switch: Mapping[str, Any]) -> str:
    """A switch's phase, with a bar where its progress is known."""
    text = str(switch["phase"])
    percent = switch["percent"]
    if percent is not None:
        done = round(_BAR_CELLS * min(100.0, percent) / 100)
        text += f" {'█' * done}{'░' * (_BAR_CELLS - done)} {percent:.0f} %"
    if switch.get("overdue"):
        return f"{text}, longer than usual: {format_seconds(switch['elapsed_s'])}"
    return text + (f", {format_seconds(switch['eta_s'])} left" if switch["eta_s"] else "")


def _listed(group: str, names: Sequence[str], width: int) -> str:
    """The names that fit into a line, and the number of the others."""
    line = f"{group}: {', '.join(names)}"
    if cell_len(line) <= width:
        return line
    for shown in range(min(len(names) - 1, width), 0, -1):
        line = f"{group}: {', '.join(names[:shown])} and {len(names) - shown} more"
        if cell_len(line) <= width:
            return line
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{group}: {cut_middle(names[0], max(3, width - len(group) - 2 - len(more)))}{more}"


def _first_that_fits(texts: Sequence[str], width: int) -> str:
    return next((text for text in texts if len(text) <= width), texts[-1])


def status_of_host(host: HostStatus, name: str) -> StatusView:
    """A supervisor's status in the shape of a gateway's."""
    states = {each.model: each for each in host.models}
    cards = tuple(
        ModelCard(name=profile.name, state="loaded" if _is_ready(states.get(profile.name)) else "unloaded")
        for profile in host.profiles
    )
    view = HostView(backend=name, reachable=True, host=without_facts(host), waiting=0, serving=0)
    return StatusView(version=__version__, active=None, default=None, models=cards, hosts=(view,))


def _is_ready(status: ModelStatus | None) -> bool:
    return status is not None and status.state == "ready"
