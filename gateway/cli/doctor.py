"""Gets a gateway's route for a request, and sends a test request through each of its backends."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from hostler.gateway.cli.backends import state
from hostler.gateway.cli.client import AdminClient, AdminResponse, CallFailed, error_message
from hostler.gateway.cli.formatting import MISSING, format_bytes, format_seconds
from hostler.gateway.cli.speed import SpeedCheck, model_speeds
from hostler.gateway.cli.start_options import UNAUTHORIZED

#: Time limit of a test request, in seconds: the model may have to be loaded first.
TEST_S: Final = 300.0

_KIND: Final = re.compile(r"\((\w+)\)")
_ADVICE: Final[Mapping[str, str]] = {
    "unreachable": "start it; check backends.{0}.url and firewalls",
    "connect_timeout": "its machine is off, asleep or behind a firewall; backends.{0}.wake can wake it",
    "loading": "it was still loading; try again, or raise gateway.queue.max_wait_s",
    "model_unavailable": "see `hostler status` for why the model cannot be loaded there",
    "busy": "it is overloaded; try again later",
    "server_error": "check its log",
    "rejected": "check backends.{0}.models: it may not know `{1}`",
    "auth_failed": "set backends.{0}.api_key to a valid key",
    "payment_required": "add credit to the account, or remove {0} from the chain",
    "first_byte_timeout": "it hangs: restart it, or raise gateway.timeouts.first_byte_s",
    "broken": "check its log",
    "budget_exhausted": "raise gateway.spending.daily_limit, or wait until tomorrow",
    "rate_limited": "wait a minute, or raise backends.NAME.limits",
    "budget_reserved": "raise gateway.spending.daily_limit, or wait for the requests in progress",
    "draining": "it is out of service; `hostler drain --undo {0}` takes it back",
    "non_local": "local-only requests are not sent to external backends",
    "no_models": "check backends.{0}.url, or name its models in backends.{0}.models",
}
#: What a test request asks, by the kind of the model.
_TESTS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "chat": (
        "/v1/chat/completions",
        {"max_tokens": 1, "messages": [{"role": "user", "content": "Say one word."}]},
    ),
    "embedding": ("/v1/embeddings", {"input": "One word."}),
}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a test request; `kind`, `message` and `advice` if it failed."""

    backend: str
    name_there: str
    ok: bool
    seconds: float
    model: str = ""
    queue_s: float = 0.0
    switch_s: float = 0.0
    kind: str = ""
    message: str = ""
    advice: str = ""


class Machines(msgspec.Struct, frozen=True, kw_only=True):
    """The llama-servers of all hosts with their builds and devices, the GPUs with their drivers, and the loaded models: whether
    GPUs are used, and how fast they are. Programs and GPUs name their host as `backend`."""

    programs: list[dict[str, Any]]
    devices: list[dict[str, Any]]
    speeds: list[SpeedCheck]


class Doctor:
    """Examines the gateway of a client. All methods raise `CallFailed`."""

    def __init__(self, client: AdminClient) -> None:
        self._client = client

    def route(self, model: str | None, *, local_only: bool = False, client: str | None = None) -> dict[str, Any]:
        """How the gateway would route a request now, of this client (the name of a key, or an address); sends none."""
        query = {"model": model, "local_only": "true" if local_only else None, "client": client}
        return self._client.get("/admin/route", {name: value for name, value in query.items() if value})

    def machines(self) -> Machines:
        """What the hosts have: asked for after test requests, which may have loaded models."""
        status = self._client.get("/admin/status")
        return Machines(
            programs=_of_hosts(status, "programs"), devices=_of_hosts(status, "devices"), speeds=model_speeds(status)
        )

    def ask(self, name: str, model: str) -> dict[str, Any]:
        """Send a test request for `name`, which stands for `model`, and report which backend answered it."""
        response = self._test_request(name, self._kind(model))
        if response.status in (401, 403):
            raise CallFailed(error_message(response.body), UNAUTHORIZED, response.status)
        failure = "" if response.status == 200 else error_message(response.body)
        return {
            "status": response.status,
            "backend": response.headers.get("x-hostler-backend"),
            "hop": response.headers.get("x-hostler-hop"),
            "reason": response.headers.get("x-hostler-reason", "") or failure,
        }

    def examine_all(self) -> tuple[str | None, list[Finding]]:
        """The active or default model, if there is one, and the result of a test request through every backend: with that
        model, or else with one of its own. Supervisors are not asked for others, which would have to be loaded."""
        unnamed: CallFailed | None = None
        try:
            route: dict[str, Any] = self.route(None)
        except CallFailed as error:
            if error.status != 400:
                raise
            # None is loaded, and none is the default.
            unnamed, route = error, {"model": None, "hops": []}
        hops = {str(hop["backend"]): hop for hop in route["hops"]}
        kind = self._kind(route["model"])
        findings: list[Finding] = []
        for backend in self._client.get("/admin/backends")["backends"]:
            if (hop := hops.get(backend["backend"])) is not None:
                findings.append(self.examine(route["model"], hop, kind))
            elif backend["kind"] != "supervisor":
                findings += self._examine_own(backend)
        if unnamed is not None and not findings:
            raise unnamed
        return route["model"], findings

    def examine_model(self, model: str) -> tuple[str, list[Finding]]:
        """The model that the name stands for, and the result of a test request through each of its backends."""
        route = self.route(model)
        kind = self._kind(route["model"])
        return route["model"], [self.examine(route["model"], hop, kind) for hop in route["hops"]]

    def _kind(self, model: str | None) -> str:
        """Which test request suits a model."""
        backends = self._client.get("/admin/backends")["backends"]
        kinds = (each["kind"] for backend in backends for each in backend["models"] if each["name"] == model)
        kind = str(next(kinds, "chat"))
        return kind if kind in _TESTS else "chat"

    def _examine_own(self, backend: Mapping[str, Any]) -> Iterator[Finding]:
        """A test request with a model of the backend; nothing where it only has models of which no test is known."""
        models = [model for kind in _TESTS for model in backend["models"] if model["kind"] == kind]
        if models:
            yield self.examine(models[0]["name"], {**models[0], "backend": backend["backend"]}, models[0]["kind"])
        elif not backend["models"]:
            yield Finding(
                backend=backend["backend"],
                name_there="",
                ok=False,
                seconds=0.0,
                kind="no_models" if backend["reachable"] else "unreachable",
                message=backend["problem"] or "it lists no models",
                advice=_ADVICE["no_models"].format(backend["backend"]),
            )

    def examine(self, model: str, hop: Mapping[str, Any], model_kind: str = "chat") -> Finding:
        """Send a test request through one backend of a route, unless that would wait until the backend is in service."""
        backend, name_there = str(hop["backend"]), str(hop["name_there"])
        if hop.get("reason") == "draining":
            return Finding(
                model=model,
                backend=backend,
                name_there=name_there,
                ok=False,
                seconds=0.0,
                kind="draining",
                message=str(hop["words"]),
                advice=_ADVICE["draining"].format(backend),
            )
        began_at = time.perf_counter()
        response = self._test_request(model, model_kind, only=backend)
        seconds = round(time.perf_counter() - began_at, 4)
        message = error_message(response.body)
        if response.status in (401, 403) and not _KIND.search(message):
            text = "this command requires a key with the scopes infer and operate; `hostler keys add NAME` creates one"
            raise CallFailed(f"{text} ({message})", UNAUTHORIZED, response.status)
        if response.status == 200:
            return Finding(
                model=model,
                backend=backend,
                name_there=name_there,
                ok=True,
                seconds=seconds,
                queue_s=_header_seconds(response, "x-hostler-queue-ms"),
                switch_s=_header_seconds(response, "x-hostler-switch-ms"),
            )
        kind = _failure_kind(response.status, message, supervised=bool(hop.get("supervised")))
        return Finding(
            model=model,
            backend=backend,
            name_there=name_there,
            ok=False,
            seconds=seconds,
            kind=kind,
            message=message or f"status {response.status}",
            advice=_ADVICE[kind].format(backend, name_there),
        )

    def notes(self) -> dict[str, str]:
        """What else is worth knowing about backends: why one does not list its models, and where its routes are if its
        URL does not say so."""
        found = self._client.get("/admin/backends")["backends"]
        return {each["backend"]: state(each) for each in found if each["problem"] or each["prefix"] is not None}

    def _test_request(self, model: str, kind: str = "chat", *, only: str | None = None) -> AdminResponse:
        path, body = _TESTS[kind]
        headers = {} if only is None else {"X-Hostler-Only": only}
        return self._client.send(path, {"model": model, **body}, headers, TEST_S)


def _of_hosts(status: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    return [
        {"backend": host["backend"], **each}
        for host in status["hosts"]
        for each in (host.get("host") or {}).get(what, ())
    ]


def _failure_kind(status: int, message: str, *, supervised: bool) -> str:
    for kind in _KIND.findall(message):
        if kind in _ADVICE and kind != "non_local":
            return str(kind)
    if 400 <= status < 500:
        return "rejected"
    return "model_unavailable" if supervised else "server_error"


def _header_seconds(response: AdminResponse, name: str) -> float:
    value = response.headers.get(name, "0")
    return int(value) / 1000 if value.isdecimal() else 0.0


def finding_rows(findings: list[Finding]) -> list[tuple[str, ...]]:
    return [
        (
            each.backend,
            each.model or "-",
            "ok" if each.ok else each.kind,
            format_seconds(each.seconds),
            format_seconds(each.switch_s),
            each.advice or "-",
        )
        for each in findings
    ]


def program_rows(programs: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            each["backend"],
            each["path"],
            each["build"] or "-",
            ", ".join(each["devices"]) or "CPU only",
            ", ".join(each["lacks"]) or "-",
        )
        for each in programs
    ]


def device_rows(devices: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The rows of a table: host, name, card, driver, memory. Supervisors of earlier versions report no drivers."""
    return [
        (
            each["backend"],
            each["name"],
            each["model"] or "not found",
            each.get("driver") or MISSING,
            f"{format_bytes(each['used_bytes'])} of {format_bytes(each['total_bytes'])}",
        )
        for each in devices
    ]


def route_rows(route: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            str(position),
            hop["backend"],
            hop["name_there"],
            "local" if hop["local"] else "external",
            _hop_state(hop, route["first"]),
        )
        for position, hop in enumerate(route["hops"])
    ]


def _hop_state(hop: Mapping[str, Any], first: str | None) -> str:
    """Whether a hop would answer; of a host also why it stands at its place."""
    state = _skipped(hop) or ("would answer" if hop["backend"] == first else "standby")
    reasons = ", ".join(hop.get("reasons", ()))  # older gateways give none
    return f"{state}: {reasons}" if reasons and not hop["words"] else state


def change_lines(route: Mapping[str, Any]) -> Iterator[str]:
    """What is changed in requests for each backend of a route, as a diff."""
    for hop in route["hops"]:
        if hop["changes"]:
            yield f"Changes of requests for {hop['backend']}:"
            yield from (f"  {line}" for line in hop["changes"])


def _skipped(hop: Mapping[str, Any]) -> str:
    """Why the hop would be skipped now, and for how long; empty if it would not."""
    wait = f" (for another {format_seconds(hop['retry_in_s'])})" if hop["words"] and hop["retry_in_s"] else ""
    return f"{hop['words']}{wait}"
