"""What commands show of a gateway and of the configuration, as rows of words: no terminal, no network."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hostler.gateway.auth.keys import KeyRecord
from hostler.gateway.cli.formatting import NOTHING, clock, count, middle_cut, seconds, size, speed
from hostler.gateway.config import Configuration
from hostler.gateway.events import printable
from hostler.profiles.fetch import cached

Row = tuple[str, ...]


def models(configuration: Configuration, status: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Every configured model, and those that only the running gateway knows of."""
    running = {card["name"]: card for card in status["models"]} if status else {}
    rows = []
    for profile in configuration.profiles:
        card = running.pop(profile.name, None)
        path = cached(profile)
        rows.append(
            {
                "name": profile.name,
                "state": card["state"] if card else "unknown",
                "failure": card["failure"] if card else None,
                "context": profile.context,
                "parallel": profile.parallel,
                "aliases": list(profile.aliases),
                "default": profile.default,
                "model": profile.model,
                "file": str(path) if path else None,
            }
        )
    for card in running.values():
        rows.append(
            {
                "name": card["name"],
                "state": card["state"],
                "failure": card["failure"],
                "context": card["context"],
                "parallel": card["parallel"],
                "aliases": card["aliases"],
                "default": False,
                "model": None,
                "file": None,
            }
        )
    return rows


def model_rows(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The rows of `models` as cells."""
    return [
        (
            row["name"] + (" *" if row["default"] else ""),
            NOTHING if row["state"] == "unknown" else row["state"],
            str(row["context"] or NOTHING),
            str(row["parallel"]),
            ", ".join(row["aliases"]) or NOTHING,
            row["file"] or (f"not fetched: {row['model']}" if row["model"] else _place_words(row["state"])),
        )
        for row in rows
    ]


def _place_words(state: str) -> str:
    return "elsewhere" if state in ("available", "unavailable") else "on its host"


def processes(status: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every model that has a process, with what the gateway knows of its use."""
    for host in status["hosts"]:
        engines = {each["model"]: each for each in host["engines"]}
        pinned = {each["name"] for each in (host["host"] or {}).get("profiles", ()) if each.get("pinned")}
        for model in (host["host"] or {}).get("models", ()):
            if model["state"] == "stopped":
                continue
            engine = engines.get(model["model"], {})
            yield {
                "model": model["model"],
                "host": host["backend"],
                "state": model["state"] if host["reachable"] else "silent",
                "since": model["since"],
                "percent": model["percent"],
                "eta_s": model["eta_s"],
                "pid": model["pid"],
                "memory_bytes": model["memory_bytes"],
                "gpu_bytes": model["gpu_bytes"],
                "running": engine.get("running"),
                "waiting": engine.get("waiting"),
                "parallel": engine.get("parallel"),
                "idle_until": engine.get("idle_until"),
                "pinned": model["model"] in pinned,
                "draining": engine.get("draining", False),
                "failure": (model["failure"] or {}).get("message"),
            }


def process_rows(running: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The models of `processes` as cells."""
    return [
        (
            each["model"],
            each["host"],
            state_words(each),
            clock(each["since"]),
            size(each["memory_bytes"] + each["gpu_bytes"]),
            slots(each),
            end_words(each),
        )
        for each in running
    ]


def end_words(process: Mapping[str, Any]) -> str:
    """When a model will be unloaded, if nobody asks for it."""
    if process["pinned"]:
        return "pinned"
    return clock(process["idle_until"]) if process["idle_until"] else NOTHING


def state_words(process: Mapping[str, Any]) -> str:
    """A process' state, and how far it is with what it does."""
    if process["draining"]:
        return "ready, until its last answer has ended"
    if process["state"] != "starting":
        return str(process["state"])
    words = "loading"
    if process["percent"]:
        words += f" {process['percent']:.0f} %"
    return words + (f", {seconds(process['eta_s'])} left" if process["eta_s"] else "")


def slots(process: Mapping[str, Any]) -> str:
    """How many of its answers at a time are being given."""
    return NOTHING if process["parallel"] is None else f"{process['running']}/{process['parallel']}"


def requests(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every request on its way: those in line with their place and how long they will probably wait."""
    line = {each["id"]: each for host in status["hosts"] for each in host["queue"]}
    found = []
    for flight in status["in_flight"]:
        place = line.get(flight["id"], {})
        found.append(
            {
                **flight,
                "for_s": round(max(0.0, status["at"] - flight["at"]), 3),
                "position": place.get("position"),
                "eta_s": place.get("eta_s"),
            }
        )
    return found


def request_rows(found: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The requests of `requests` as cells."""
    return [
        (
            each["id"],
            each["client"],
            each["model"] or each["requested_model"] or NOTHING,
            each["backend"] or NOTHING,
            phase_words(each),
            seconds(each["for_s"]),
        )
        for each in found
    ]


def phase_words(request: Mapping[str, Any]) -> str:
    """What a request on its way is doing."""
    if request["phase"] != "waiting":
        return str(request["phase"])
    words = "waiting"
    if request.get("position"):
        words += f", place {request['position']}"
    eta = request.get("eta_s")
    return words + (f", about {seconds(eta)}" if eta and math.isfinite(eta) else "")


def past_rows(events: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Requests that ended, as the events told them, as cells."""
    return [
        (
            clock(each["at"]),
            each["outcome"]
            if each["outcome"] in ("ok", "client_disconnected")
            else f"{each['outcome']} {each['status']}",
            each["model"] or each["requested_model"] or NOTHING,
            via(each),
            seconds(each["seconds"]),
            seconds(each["first_token_s"]),
            speed(each["completion_tokens"], each["seconds"] - (each["first_token_s"] or 0.0)),
            each["client"],
        )
        for each in events
    ]


def via(request: Mapping[str, Any]) -> str:
    """Who answers, and that it was not the first who was asked."""
    if not request["backend"]:
        return NOTHING
    return str(request["backend"]) + (f", hop {request['hop'] + 1}" if request["hop"] else "")


def active_words(status: Mapping[str, Any], width: int) -> str:
    """The active model and how much there is to do, in one line if the name can be cut so far."""
    rest = f"; {count(len(status['in_flight']), 'request')} in progress"
    name = printable(status["active"] or "none")
    return f"active model: {middle_cut(name, max(20, width - len(rest) - 14))}{rest}"


def host_rows(status: Mapping[str, Any]) -> list[Row]:
    """The hosts of a status as cells."""
    return [
        (
            host["backend"],
            "answers" if host["reachable"] else "silent",
            NOTHING if host["serving"] is None else str(host["serving"]),
            NOTHING if host["waiting"] is None else str(host["waiting"]),
            memory_words(host["host"] or {}),
        )
        for host in status["hosts"]
    ]


def memory_words(host: Mapping[str, Any]) -> str:
    """What a host's models take, and may take."""
    used = sum(each["memory_bytes"] + each["gpu_bytes"] for each in host.get("models", ()))
    budget = host.get("budget_bytes")
    return f"{size(used)} of {size(budget)}" if budget else size(used)


def status_rows(status: Mapping[str, Any]) -> list[Row]:
    """The models of a status as cells."""
    return [
        (
            card["name"] + (" *" if card["name"] == status["active"] else ""),
            card["state"] + (f" {card['percent']:.0f} %" if card["state"] == "loading" and card["percent"] else ""),
            str(card["context"] or NOTHING),
            str(card["parallel"]),
            (card["failure"] if card["state"] not in ("loading", "loaded") else "") or card["description"] or NOTHING,
        )
        for card in status["models"]
    ]


def chain_rows(status: Mapping[str, Any]) -> list[Row]:
    """The hops of a status as cells; none if there is but one."""
    hops = status.get("chain", {}).get("hops", ())
    if len(hops) < 2:
        return []
    return [
        (
            hop["backend"],
            hop["kind"],
            "in the house" if hop["local"] else "outside",
            _hop_words(hop),
            NOTHING if hop["cost"] is None else f"${hop['cost']:.4f}",
        )
        for hop in hops
    ]


def _hop_words(hop: Mapping[str, Any]) -> str:
    if not hop["reachable"]:
        return "silent"
    if words := _left_alone(hop["breaker"]):
        return words
    models = [(each["model"], words) for each in hop["models"] if (words := _left_alone(each))]
    if len(models) > 1:
        return f"answers, {len(models)} of its models left alone"
    return f"answers; {models[0][0]} is {models[0][1]}" if models else "answers"


def _left_alone(breaker: Mapping[str, Any]) -> str:
    """Until when nobody is sent there, and why; nothing if somebody may be."""
    if breaker["state"] == "closed" and not breaker["retry_at"]:
        return ""
    if breaker["state"] == "half_open":
        return "tried again by the next request"
    until = f" until {clock(breaker['retry_at'])}" if breaker["retry_at"] else ""
    # A gateway of an older version does not tell why.
    return f"left alone{until}: it {breaker.get('reason') or 'failed'}"


def key_rows(records: Iterable[KeyRecord]) -> list[Row]:
    """Keys as cells."""
    return [
        (
            record.name,
            ", ".join(record.scopes),
            datetime.datetime.fromtimestamp(record.created, datetime.UTC).strftime("%Y-%m-%d"),
        )
        for record in records
    ]
