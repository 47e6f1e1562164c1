"""Asks a running gateway how it would serve a model, and sends one real request through each of its backends."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from hostler.gateway.cli.client import Caller, CallFailed, message_of
from hostler.gateway.cli.formatting import seconds as in_words
from hostler.gateway.cli.options import REFUSED

#: A model may have to be loaded before it says its one word, in seconds.
ANSWER_S = 300.0

_KIND = re.compile(r"\((\w+)\)")
_ADVICE: Mapping[str, str] = {
    "unreachable": "start it, and check backends.{0}.url and the firewall between here and there",
    "connect_timeout": "its machine is off, asleep or behind a firewall; backends.{0}.wake can wake it",
    "loading": "it was still loading; try again, or raise gateway.queue.max_wait_s",
    "model_unavailable": "`hostler status` tells why the model cannot be loaded there",
    "busy": "it asks to be left alone for a moment; try again later",
    "server_error": "look into its own log",
    "rejected": "check backends.{0}.models: it may not know `{1}`",
    "auth_failed": "put a valid key into backends.{0}.api_key",
    "payment_required": "add credit to the account, or take {0} out of the chain",
    "first_byte_timeout": "it hangs: restart it, or raise gateway.timeouts.first_byte_s",
    "broken": "look into its own log",
    "budget_exhausted": "raise gateway.spending.daily_limit, or wait until tomorrow",
    "non_local": "requests that must stay in the house do not go there",
}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """How a backend did: times in seconds, `kind` and `advice` if it failed."""

    backend: str
    name_there: str
    ok: bool
    seconds: float
    queue_s: float = 0.0
    switch_s: float = 0.0
    kind: str = ""
    message: str = ""
    advice: str = ""


class Practice:
    """Examines the gateway that `caller` speaks to. All methods raise `CallFailed`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def route(self, model: str | None, *, local_only: bool = False) -> dict[str, Any]:
        """How the gateway would serve `model` now. Nothing is sent to anybody."""
        asked = {
            name: value for name, value in (("model", model), ("local_only", "true" if local_only else "")) if value
        }
        return self._caller.get("/admin/route", asked)

    def answer(self, model: str) -> dict[str, Any]:
        """Who says a word when `model` is asked for one."""
        status, headers, body = self._say(model)
        if status in (401, 403):
            raise CallFailed(message_of(body), REFUSED, status)
        return {
            "status": status,
            "backend": headers.get("x-hostler-backend"),
            "hop": headers.get("x-hostler-hop"),
            "reason": headers.get("x-hostler-reason", "") or ("" if status == 200 else message_of(body)),
        }

    def examine(self, model: str, hop: Mapping[str, Any]) -> Finding:
        """One word from one backend, through the gateway."""
        backend, name_there = str(hop["backend"]), str(hop["name_there"])
        began_at = time.perf_counter()
        status, headers, body = self._say(model, only=backend)
        seconds = round(time.perf_counter() - began_at, 4)
        if status in (401, 403) and not _KIND.search(message_of(body)):
            words = "the doctor needs a key with the scopes infer and operate; `hostler keys add NAME` makes one"
            raise CallFailed(f"{words} ({message_of(body)})", REFUSED, status)
        if status == 200:
            return Finding(
                backend=backend,
                name_there=name_there,
                ok=True,
                seconds=seconds,
                queue_s=_seconds(headers, "x-hostler-queue-ms"),
                switch_s=_seconds(headers, "x-hostler-switch-ms"),
            )
        message = message_of(body)
        kind = next((found for found in _KIND.findall(message) if found in _ADVICE and found != "non_local"), "")
        kind = kind or (
            "rejected" if 400 <= status < 500 else "model_unavailable" if hop.get("supervised") else "server_error"
        )
        advice = _ADVICE[kind].format(backend, name_there)
        return Finding(
            backend=backend,
            name_there=name_there,
            ok=False,
            seconds=seconds,
            kind=kind,
            message=message or f"status {status}",
            advice=advice,
        )

    def _say(self, model: str, *, only: str | None = None) -> tuple[int, Mapping[str, str], dict[str, Any]]:
        """A real request for one word: status, headers and body of the answer."""
        body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Say one word."}]}
        headers = {} if only is None else {"X-Hostler-Only": only}
        return self._caller.say("/v1/chat/completions", body, headers, ANSWER_S)


def rows(findings: list[Finding]) -> list[tuple[str, ...]]:
    """The findings as cells."""
    return [
        (
            each.backend,
            "answers" if each.ok else each.kind,
            in_words(each.seconds),
            in_words(each.switch_s),
            each.advice or "-",
        )
        for each in findings
    ]


def route_rows(route: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The hops of a route as cells."""
    return [
        (
            str(position),
            hop["backend"],
            hop["name_there"],
            "in the house" if hop["local"] else "outside",
            _left_alone(hop) or ("would answer" if hop["backend"] == route["first"] else "stands by"),
        )
        for position, hop in enumerate(route["hops"])
    ]


def _left_alone(hop: Mapping[str, Any]) -> str:
    """Why it would not be asked now, and for how long; nothing if it would."""
    wait = f" (for another {in_words(hop['retry_in_s'])})" if hop["words"] and hop["retry_in_s"] else ""
    return f"{hop['words']}{wait}"


def _seconds(headers: Mapping[str, str], name: str) -> float:
    value = headers.get(name, "0")
    return int(value) / 1000 if value.isdecimal() else 0.0
