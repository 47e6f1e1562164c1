"""Events as sentences: what `hostler events` shows of what happens in the house."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from hostler.gateway.cli.formatting import count, seconds
from hostler.gateway.events import RequestFinished, printable
from hostler.gateway.telemetry.access_log import describe


class Narrator:
    """Tells events, and of each thing only what was not told of it last."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str, str], str] = {}

    def news(self, kind: str, data: Mapping[str, Any]) -> str | None:
        """An event in one line, see `sentence`; `None` also if it says nothing new."""
        words = sentence(kind, data)
        if kind == "snapshot":  # what it says of hosts is no news any more
            hosts = [host for host in data.get("hosts", ()) if "reachable" in host]
            self._told = {_about("host", host): _host(host) for host in hosts}
        if words is None or kind in ("request", "snapshot"):
            return words
        about = _about(kind, data)
        if self._told.get(about) == words:
            return None
        self._told[about] = words
        return words


def _about(kind: str, data: Mapping[str, Any]) -> tuple[str, str, str]:
    """What an event is of: a backend, a model, a model there."""
    model = (data.get("status") or data.get("switch") or data).get("model")
    return kind, str(data.get("backend", "")), str(model or "")


def sentence(kind: str, data: Mapping[str, Any]) -> str | None:
    """An event of `/events` in one line; `None` for those that only move numbers."""
    teller = _TELLERS.get(kind)
    if teller is None:
        return None
    told = teller(data)
    return None if told is None else printable(told, 1000)


def _snapshot(data: Mapping[str, Any]) -> str:
    if "host" in data and "version" not in data:
        return f"this host has {count(len(data['host']['profiles']), 'model')}"
    states = [card["state"] for card in data["models"]]
    words = f"{count(len(states), 'model')}, {states.count('loaded')} loaded"
    if elsewhere := states.count("available"):
        words += f", {elsewhere} available elsewhere"
    if nowhere := states.count("unavailable"):
        words += f", {nowhere} unavailable"
    return f"{words}; {count(len(data.get('in_flight', ())), 'request')} in progress"


def _request(data: Mapping[str, Any]) -> str:
    return describe(msgspec.convert(data, RequestFinished))


def _breaker(data: Mapping[str, Any]) -> str:
    who = f"{data['model']} on {data['backend']}" if data["model"] else data["backend"]
    words = {"open": "is left alone after failures", "half_open": "is tried again", "closed": "is used again"}
    return f"{who} {words.get(data['state'], data['state'])}"


def _host(data: Mapping[str, Any]) -> str:
    return f"{data['backend']} {'answers' if data['reachable'] else 'is silent'}"


def _engine(data: Mapping[str, Any]) -> str:
    return f"{data['backend']}: {_model(data['status'])}"


def _model(status: Mapping[str, Any]) -> str:
    words = f"{status['model']} is {status['state']}"
    if status["state"] == "starting" and status["percent"]:
        words += f", {status['percent']:.0f} %"
    if status["failure"] and status["state"] not in ("starting", "ready"):  # else it is what came before
        words += f": {status['failure']['message']}"
    return words


def _moved_there(data: Mapping[str, Any]) -> str:
    if "switch" not in data:  # a supervisor tells of itself
        return moved(data)
    return f"{data['backend']}: {moved(data['switch'])}"


def moved(switch: Mapping[str, Any]) -> str:
    """A phase of a switch."""
    source = f" from {', '.join(switch['from_models'])}" if switch["from_models"] else ""
    words = f"switch{source} to {switch['model']}: {switch['phase']}"
    if switch["percent"] and switch["phase"] != "ready":
        words += f" {switch['percent']:.0f} %"
    words += f" after {seconds(switch['elapsed_s'])}"
    if switch["eta_s"]:
        words += f", {seconds(switch['eta_s'])} left"
    if switch["failure"]:
        words += f": {switch['failure']['message']}"
    return words


def _queue(data: Mapping[str, Any]) -> str:
    waiting = count(len(data["waiting"]), "request waits", "requests wait")
    return f"{data['backend']}: {data['serving']} served, {waiting}"


_TELLERS: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    "snapshot": _snapshot,
    "request": _request,
    "breaker": _breaker,
    "host": _host,
    "engine": _engine,
    "model": lambda data: _model(data["status"]),
    "switch": _moved_there,
    "queue": _queue,
}
