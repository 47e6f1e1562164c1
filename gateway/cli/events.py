"""The commands `events` and `logs`, and the sentences in which events are printed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import msgspec
import typer

from hostler.gateway.cli.options import (
    ConfigOption,
    FollowOption,
    JsonLinesOption,
    KeyFileOption,
    UrlOption,
    complete_model,
    connect,
    fail,
    failing_calls,
    print_json_line,
)
from hostler.gateway.cli.start_options import FAILED, UNREACHABLE, USAGE

if TYPE_CHECKING:
    from hostler.gateway.cli.client import AdminTarget

#: Finished requests that `events` prints first.
_LAST_REQUESTS: Final = 20

_LEVEL_COLORS: Final = {"warning": "yellow", "error": "red", "critical": "red"}


def events(
    follow: FollowOption = False,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonLinesOption = False,
) -> None:
    """Show recent requests and the current state, or follow events."""
    from hostler.gateway.cli.formatting import REQUEST_COLUMNS, format_time, print_table
    from hostler.gateway.cli.views import finished_rows

    with failing_calls():
        target = connect(config, url, key_file)
        if not follow and not as_json and target.kind == "gateway":
            query = {"kind": "requests", "limit": str(_LAST_REQUESTS)}
            if past := target.client.get_list("/admin/history", query):
                # Those of other gateways of a cluster become known later.
                ended = sorted((each["event"] for each in past), key=lambda event: event["at"])
                print_table(REQUEST_COLUMNS, finished_rows(ended))
        sentences = EventSentences()
        for kind, data in target.client.events("/events"):
            if as_json:
                print_json_line({"event": kind, "data": data})
            elif text := sentences.describe_new(kind, data):
                typer.echo(f"{format_time(data['at'] if kind == 'request' else time.time())}  {text}")
            if not follow and kind == "snapshot":
                return
    fail(f"{target.client.url} has closed the stream; it may be stopping", UNREACHABLE)


def logs(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Model whose engine's log to show.", autocompletion=complete_model),
    ] = None,
    follow: FollowOption = False,
    host: Annotated[
        str | None, typer.Option("--host", metavar="HOST", help="Host to read from, if several have the model.")
    ] = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonLinesOption = False,
) -> None:
    """Show the log of the gateway, or of a model's engine."""
    with failing_calls():
        target = connect(config, url, key_file)
        for line in _log_lines(target, model, host, follow=follow):
            if as_json:
                print_json_line(line)
            else:
                _print_log_line(line)
    if follow:
        fail(f"{target.client.url} has closed the log; it may be stopping", UNREACHABLE)


def _log_lines(target: AdminTarget, model: str | None, host: str | None, *, follow: bool) -> Iterator[dict[str, Any]]:
    """The lines of a log: `text`, and for the gateway's own `at`, `level` and `logger`. Raises `CallFailed`."""
    from urllib.parse import quote

    from hostler.gateway.cli.client import CallFailed

    if target.kind == "supervisor":
        if model is None:
            known = ", ".join(card["name"] for card in target.status["models"])
            raise CallFailed(
                f"{target.client.url} is a supervisor, which serves the logs of engines only; name a model: {known}",
                USAGE,
            )
        query = {"follow": "1"} if follow else {}
        for text in target.client.lines(f"/logs/{quote(target.model_name(model), safe='')}", query):
            yield {"text": text}
        return
    query = {} if follow else {"follow": "0"}
    if model is not None:
        name = target.model_name(model)
        query |= {"backend": _host_with_log(target, name, host), "model": name}
    for kind, lines in target.client.events("/admin/logs", query):
        if kind == "lines":
            yield from cast("list[dict[str, Any]]", lines)


def _host_with_log(target: AdminTarget, model: str, wanted: str | None) -> str:
    """The wanted host, else the one on which the model runs, else the first that has it. Raises `CallFailed`."""
    from hostler.gateway.cli.client import CallFailed

    running_on: dict[str, bool] = {}
    for host in target.status["hosts"]:
        known = host["host"] or {"profiles": (), "models": ()}
        if any(profile["name"] == model for profile in known["profiles"]):
            running = [each["model"] for each in known["models"] if each["state"] != "stopped"]
            running_on[host["backend"]] = model in running
    if wanted is not None and wanted not in running_on:
        raise CallFailed(
            f"host {wanted!r} does not have {model}; hosts with it: {', '.join(running_on) or 'none'}", USAGE
        )
    if not running_on:
        raise CallFailed(f"{model} runs on no host with a supervisor, so its log is not available here", FAILED)
    return wanted or max(running_on, key=lambda name: running_on[name])


def _print_log_line(line: Mapping[str, Any]) -> None:
    from hostler.gateway.cli.formatting import format_time
    from hostler.gateway.events import printable

    at = f"{format_time(line['at'])}  " if line.get("at") else ""
    level = line.get("level") or ""
    text = "\n".join(printable(part, 4000) for part in line["text"].splitlines())
    shown = f"{level:7}  " if at else ""
    if level in _LEVEL_COLORS and not os.environ.get("NO_COLOR"):
        shown = typer.style(shown, fg=_LEVEL_COLORS[level])
    typer.echo(at + shown + text)


class EventSentences:
    """Describes events, leaving out those that repeat the previous one of the same backend or model."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str, str], str] = {}

    def describe_new(self, kind: str, data: Mapping[str, Any]) -> str | None:
        """As `describe_event`; `None` also for repetitions."""
        text = describe_event(kind, data)
        if kind == "snapshot":  # it contains whether each host is reachable
            hosts = [host for host in data.get("hosts", ()) if "reachable" in host]
            self._last = {_subject("host", host): _host(host) for host in hosts}
        if text is None or kind in ("request", "snapshot"):
            return text
        subject = _subject(kind, data)
        if self._last.get(subject) == text:
            return None
        self._last[subject] = text
        return text


def describe_event(kind: str, data: Mapping[str, Any]) -> str | None:
    """An event of `/events` in one line; `None` for those that only carry numbers."""
    from hostler.gateway.events import printable

    describe = _DESCRIBE.get(kind)
    if describe is None:
        return None
    text = describe(data)
    return None if text is None else printable(text, 1000)


def _subject(kind: str, data: Mapping[str, Any]) -> tuple[str, str, str]:
    model = (data.get("status") or data.get("switch") or data).get("model")
    return kind, str(data.get("backend", "")), str(model or "")


def _snapshot(data: Mapping[str, Any]) -> str:
    from hostler.gateway.cli.formatting import plural

    if "host" in data and "version" not in data:
        return f"this host has {plural(len(data['host']['profiles']), 'model')}"
    states = [card["state"] for card in data["models"]]
    text = f"{plural(len(states), 'model')}, {states.count('loaded')} loaded"
    if elsewhere := states.count("available"):
        text += f", {elsewhere} available elsewhere"
    if unavailable := states.count("unavailable"):
        text += f", {unavailable} unavailable"
    return f"{text}; {plural(len(data.get('in_flight', ())), 'request')} in progress"


def _request(data: Mapping[str, Any]) -> str:
    from hostler.gateway.events import RequestFinished
    from hostler.gateway.telemetry.access_log import describe

    request = msgspec.convert(data, RequestFinished)
    text = describe(request)
    return text if request.gateway is None else f"{text} (at {request.gateway})"


def _models(data: Mapping[str, Any]) -> str:
    from hostler.gateway.cli.formatting import plural

    return f"{data['backend']} has {plural(data['models'], 'model')}"


def _breaker(data: Mapping[str, Any]) -> str:
    subject = f"{data['model']} on {data['backend']}" if data["model"] else data["backend"]
    states = {"open": "is paused after failures", "half_open": "is tried again", "closed": "is used again"}
    return f"{subject} {states.get(data['state'], data['state'])}"


def _host(data: Mapping[str, Any]) -> str:
    return f"{data['backend']} is {'reachable' if data['reachable'] else 'unreachable'}"


def _engine(data: Mapping[str, Any]) -> str:
    return f"{data['backend']}: {_model(data['status'])}"


def _model(status: Mapping[str, Any]) -> str:
    text = f"{status['model']} is {status['state']}"
    if status["state"] == "starting" and status["percent"]:
        text += f", {status['percent']:.0f} %"
    if status["failure"] and status["state"] not in ("starting", "ready"):  # there it is the previous run's
        text += f": {status['failure']['message']}"
    return text


def _switch(data: Mapping[str, Any]) -> str:
    if "switch" in data:
        return f"{data['backend']}: {_phase(data['switch'])}"
    return _phase(data)  # a supervisor's own event


def _phase(switch: Mapping[str, Any]) -> str:
    from hostler.gateway.cli.formatting import format_seconds

    source = f" from {', '.join(switch['from_models'])}" if switch["from_models"] else ""
    text = f"switch{source} to {switch['model']}: {switch['phase']}"
    if switch["percent"] and switch["phase"] != "ready":
        text += f" {switch['percent']:.0f} %"
    text += f" after {format_seconds(switch['elapsed_s'])}"
    if switch["eta_s"]:
        text += f", {format_seconds(switch['eta_s'])} left"
    elif switch.get("overdue"):
        text += ", longer than usual"
    if switch["failure"]:
        text += f": {switch['failure']['message']}"
    return text


def _queue(data: Mapping[str, Any]) -> str:
    from hostler.gateway.cli.formatting import plural

    waiting = plural(len(data["waiting"]), "request waits", "requests wait")
    return f"{data['backend']}: {data['serving']} in progress, {waiting}"


_DESCRIBE: Final[Mapping[str, Callable[[Mapping[str, Any]], str | None]]] = {
    "snapshot": _snapshot,
    "request": _request,
    "breaker": _breaker,
    "models": _models,
    "host": _host,
    "engine": _engine,
    "model": lambda data: _model(data["status"]),
    "switch": _switch,
    "queue": _queue,
}
