"""What commands and the live view show, as JSON values and as table rows. Pure: no terminal, no network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hostler.gateway.cli.formatting import (
    MISSING,
    Row,
    cut_middle,
    format_bytes,
    format_seconds,
    format_speed,
    format_time,
    plural,
)
from hostler.gateway.config import HOST_LIMITS, Configuration
from hostler.gateway.events import printable
from hostler.profiles.fetch import cached


def models(configuration: Configuration, status: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The configured models, then those that only the running gateway knows. Without a status, states are unknown."""
    running = {card["name"]: card for card in status["models"]} if status else {}
    found = []
    for profile in configuration.profiles:
        card = running.pop(profile.name, None)
        path = cached(profile)
        found.append(
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
        found.append(
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
    return found


def model_rows(found: Iterable[Mapping[str, Any]]) -> list[Row]:
    return [
        (
            each["name"] + (" *" if each["default"] else ""),
            MISSING if each["state"] == "unknown" else each["state"],
            str(each["context"] or MISSING),
            str(each["parallel"]),
            ", ".join(each["aliases"]) or MISSING,
            each["file"] or _file_elsewhere(each),
        )
        for each in found
    ]


def _file_elsewhere(model: Mapping[str, Any]) -> str:
    if model["model"]:
        return f"not downloaded: {model['model']}"
    return "on another server" if model["state"] in ("available", "unavailable") else "on its host"


def config_errors(status: Mapping[str, Any]) -> list[str]:
    """What is wrong with the gateway's configuration file, as lines."""
    found = status.get("config_errors")
    if not found:
        return []
    since = format_time(found["since"])
    heading = f"The configuration has mistakes since {since}. Its last good state is in use until they are corrected:"
    return [heading, *(f"  {mistake}" for mistake in found["mistakes"])]


def processes(status: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every model with a process, and its use."""
    for host in status["hosts"]:
        engines = {each["model"]: each for each in host["engines"]}
        leases = {each["model"]: each for each in (host["host"] or {}).get("leases", ())}
        pinned = {each["name"] for each in (host["host"] or {}).get("profiles", ()) if each.get("pinned")}
        for model in (host["host"] or {}).get("models", ()):
            sleeping = model.get("sleeping", False)
            if model["state"] == "stopped" and not sleeping:
                continue
            engine = engines.get(model["model"], {})
            yield {
                "model": model["model"],
                "host": host["backend"],
                "state": "silent" if not host["reachable"] else "sleeping" if sleeping else model["state"],
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
                "lease": leases.get(model["model"]),
                "draining": engine.get("draining", False),
                "conversations": model.get("conversations"),
                "failure": (model["failure"] or {}).get("message"),
            }


def process_rows(running: Iterable[Mapping[str, Any]]) -> list[Row]:
    return [
        (
            each["model"],
            each["host"],
            process_state(each),
            format_time(each["since"]),
            format_bytes(each["memory_bytes"] + each["gpu_bytes"]),
            slots(each),
            unload_time(each),
        )
        for each in running
    ]


def process_state(process: Mapping[str, Any]) -> str:
    """A process's state, and its progress while it loads."""
    if process["state"] == "silent":
        return "unreachable"
    if process["draining"]:
        return "ready, unloads after its last answer"
    if process["state"] != "starting":
        return str(process["state"])
    text = "loading"
    if process["percent"]:
        text += f" {process['percent']:.0f} %"
    return text + (f", {format_seconds(process['eta_s'])} left" if process["eta_s"] else "")


def slots(process: Mapping[str, Any]) -> str:
    """Used slots and all slots, as `1/2`."""
    return MISSING if process["parallel"] is None else f"{process['running']}/{process['parallel']}"


def unload_time(process: Mapping[str, Any]) -> str:
    """When an idle model is unloaded."""
    if process["pinned"]:
        return "pinned"
    if process["lease"]:
        return f"leased until {format_time(process['lease']['expires_at'])}"
    return format_time(process["idle_until"]) if process["idle_until"] else MISSING


def requests(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every request in flight; those that wait with their place and the estimated wait."""
    queued = {each["id"]: each for host in status["hosts"] for each in host["queue"]}
    found = []
    for request in status["in_flight"]:
        place = queued.get(request["id"], {})
        found.append(
            {
                **request,
                "for_s": round(max(0.0, status["at"] - request["at"]), 3),
                "position": place.get("position"),
                "eta_s": place.get("eta_s"),
            }
        )
    return found


def request_rows(found: Iterable[Mapping[str, Any]]) -> list[Row]:
    return [
        (
            each["id"],
            client(each),
            each["model"] or each["requested_model"] or MISSING,
            each["backend"] or MISSING,
            _request_phase(each),
            format_seconds(each["for_s"]),
        )
        for each in found
    ]


def _request_phase(request: Mapping[str, Any]) -> str:
    if request["phase"] != "waiting":
        return str(request["phase"])
    text = "waiting"
    if request.get("position"):
        text += f", place {request['position']}"
    eta = request.get("eta_s")
    return text + (f", about {format_seconds(eta)}" if eta and math.isfinite(eta) else "")


def finished_rows(events: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Finished requests, given as `RequestFinished` in JSON; for `formatting.REQUEST_COLUMNS`."""
    return [
        (
            format_time(each["at"]),
            _outcome(each),
            each["model"] or each["requested_model"] or MISSING,
            via(each),
            format_seconds(each["seconds"]),
            format_seconds(each["first_token_s"]),
            format_speed(each["completion_tokens"], each["seconds"] - (each["first_token_s"] or 0.0)),
            client(each),
        )
        for each in events
    ]


def client(request: Mapping[str, Any]) -> str:
    """The client of a request, and in a cluster the gateway that serves it."""
    gateway = request.get("gateway")  # older gateways have none
    return f"{request['client']} at {gateway}" if gateway else str(request["client"])


def _outcome(request: Mapping[str, Any]) -> str:
    if request["outcome"] == "client_disconnected":
        return "disconnected"
    return "ok" if request["outcome"] == "ok" else f"{request['outcome']} {request['status']}"


def via(request: Mapping[str, Any]) -> str:
    """The backend that answers, and its place in the chain unless it is the first."""
    if not request["backend"]:
        return MISSING
    return str(request["backend"]) + (f", hop {request['hop'] + 1}" if request["hop"] else "")


def active_model(status: Mapping[str, Any], width: int) -> str:
    """The active model and the number of requests, in one line if the name can be cut that far."""
    rest = f"; {plural(len(status['in_flight']), 'request')} in progress"
    name = printable(status["active"] or "none")
    return f"active model: {cut_middle(name, max(20, width - len(rest) - 14))}{rest}"


def status_rows(status: Mapping[str, Any]) -> list[Row]:
    """The models of a status; the active one is marked."""
    return [
        (
            card["name"] + (" *" if card["name"] == status["active"] else ""),
            card["state"] + (f" {card['percent']:.0f} %" if card["state"] == "loading" and card["percent"] else ""),
            str(card["context"] or MISSING),
            str(card["parallel"]),
            (card["failure"] if card["state"] not in ("loading", "loaded") else "") or card["description"] or MISSING,
        )
        for card in status["models"]
    ]


def chain_rows(status: Mapping[str, Any]) -> list[Row]:
    """The backends of the fallback chain; none if there is but one."""
    hops = status.get("chain", {}).get("hops", ())
    if len(hops) < 2:
        return []
    return [
        (
            hop["backend"],
            hop["kind"],
            "local" if hop["local"] else "external",
            _hop_state(hop),
            MISSING if hop["cost"] is None else f"${hop['cost']:.4f}",
        )
        for hop in hops
    ]


def _hop_state(hop: Mapping[str, Any]) -> str:
    if not hop["reachable"]:
        return "unreachable"
    if text := _circuit(hop["breaker"]):
        return text
    paused = [(each["model"], text) for each in hop["models"] if (text := _circuit(each))]
    if len(paused) > 1:
        return f"reachable, {len(paused)} of its models paused"
    return f"reachable; {paused[0][0]} is {paused[0][1]}" if paused else "reachable"


def _circuit(breaker: Mapping[str, Any]) -> str:
    """Until when a circuit breaker lets no request through, and why; empty if it does."""
    if breaker["state"] == "closed" and not breaker["retry_at"]:
        return ""
    if breaker["state"] == "half_open":
        return "tried again with the next request"
    until = f" until {format_time(breaker['retry_at'])}" if breaker["retry_at"] else ""
    # Older gateways do not send the reason.
    return f"paused{until}: {breaker.get('reason') or 'failed'}"


def host_limits(configuration: Configuration) -> Iterator[tuple[str, float, str]]:
    """Name and value of each limit of a host's queue that the file sets, and where it applies."""
    supervisors = [name for name, each in configuration.settings.backends.items() if each.kind == "supervisor"]
    places = []
    if configuration.profiles and not configuration.shipped:
        places.append("to the models of this file, for all gateways")
    elif configuration.profiles and not supervisors:
        places.append("to the bundled models of `hostler up`")
    if supervisors:
        places.append(f"to {', '.join(supervisors)} unless set there; of several gateways the largest value applies")
    for section, names in HOST_LIMITS.items():
        for name in names:
            value = getattr(configuration.host_limits, name)
            if value is not None and places:
                yield f"gateway.{section}.{name}", value, ", and ".join(places)
