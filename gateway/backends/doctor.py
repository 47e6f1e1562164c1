"""Asks a running gateway how it would serve a model, and sends one real request through each of its backends."""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

import msgspec

#: A model may have to be loaded before it says its one word, in seconds.
ANSWER_S = 300.0
ASK_S = 5.0

_KIND = re.compile(r"\((\w+)\)")
_ADVICE: Mapping[str, str] = {
    "unreachable": "start it, and check backends.{0}.url and the firewall between here and there",
    "connect_timeout": "its machine is off, asleep or behind a firewall; backends.{0}.wake can wake it",
    "loading": "it was still loading; try again, or raise gateway.queue.max_wait_s",
    "not_had": "`hostler status` tells why the model cannot be loaded there",
    "busy": "it asks to be left alone for a moment; try again later",
    "server_error": "look into its own log",
    "rejected": "check backends.{0}.models: it may not know `{1}`",
    "key_refused": "put a valid key into backends.{0}.api_key",
    "unpaid": "add credit to the account, or take {0} out of the chain",
    "first_byte_timeout": "it hangs: restart it, or raise gateway.timeouts.first_byte_s",
    "broken": "look into its own log",
    "spent": "raise gateway.spending.daily_limit, or wait until tomorrow",
    "outside": "requests that must stay in the house do not go there",
}


class GatewayRefused(Exception):
    """The gateway gave no answer; the message says what to do. `there` is false if nobody listens."""

    def __init__(self, message: str, *, there: bool) -> None:
        super().__init__(message)
        self.there = there


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


class Desk:
    """The gateway at `url`, spoken to with `key`."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url.rstrip("/")
        self._key = key
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def route(self, model: str | None, *, local_only: bool = False) -> dict[str, Any]:
        """How the gateway would serve `model` now. Nothing is sent to anybody. Raises `GatewayRefused`."""
        asked = {name: value for name, value in (("model", model), ("local_only", local_only and "true")) if value}
        status, _, body = self._call(f"/admin/route?{urllib.parse.urlencode(asked)}", None, {}, ASK_S)
        if status in (401, 403):
            raise GatewayRefused("the gateway wants a key with the scope read: put it into HOSTLER_API_KEY", there=True)
        if status != 200:
            raise GatewayRefused(_message(body) or f"the gateway answers with status {status}", there=True)
        return body

    def examine(self, model: str, hop: Mapping[str, Any]) -> Finding:
        """One word from one backend, through the gateway. Raises `GatewayRefused` if the gateway does not let us."""
        backend, name_there = str(hop["backend"]), str(hop["name_there"])
        began_at = time.perf_counter()
        status, headers, body = self.say(model, only=backend)
        seconds = round(time.perf_counter() - began_at, 4)
        if status == 403 and "X-Hostler-Only" in _message(body):
            raise GatewayRefused(
                "the doctor needs a key with the scope operate: put it into HOSTLER_API_KEY", there=True
            )
        if status == 200:
            return Finding(
                backend=backend,
                name_there=name_there,
                ok=True,
                seconds=seconds,
                queue_s=_seconds(headers, "X-Hostler-Queue-Ms"),
                switch_s=_seconds(headers, "X-Hostler-Switch-Ms"),
            )
        message = _message(body)
        kind = next((found for found in _KIND.findall(message) if found in _ADVICE and found != "outside"), "")
        kind = kind or ("rejected" if 400 <= status < 500 else "not_had" if hop.get("supervised") else "server_error")
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

    def say(self, model: str, *, only: str | None = None) -> tuple[int, Mapping[str, str], dict[str, Any]]:
        """A real request for one word: status, headers and body of the answer. Raises `GatewayRefused`."""
        body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Say one word."}]}
        headers = {"Content-Type": "application/json"}
        if only is not None:
            headers["X-Hostler-Only"] = only
        return self._call("/v1/chat/completions", json.dumps(body).encode(), headers, ANSWER_S)

    def _call(
        self, path: str, body: bytes | None, headers: Mapping[str, str], limit_s: float
    ) -> tuple[int, Mapping[str, str], dict[str, Any]]:
        try:
            request = urllib.request.Request(self._url + path, data=body, headers=dict(headers))
            if self._key:
                request.add_header("Authorization", f"Bearer {self._key}")
            with self._opener.open(request, timeout=limit_s) as answer:
                return answer.status, dict(answer.headers), _decoded(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), _decoded(error.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise GatewayRefused(
                f"no gateway answers at {self._url}; start one with `hostler up`, or name it with --url", there=False
            ) from error


def columns(findings: list[Finding]) -> list[tuple[str, ...]]:
    """The findings as cells."""
    return [
        (
            each.backend,
            "answers" if each.ok else each.kind,
            f"{each.seconds:.2f} s",
            f"{each.switch_s:.2f} s",
            each.advice or "-",
        )
        for each in findings
    ]


def route_columns(route: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The hops of a route as cells."""
    return [
        (
            str(position),
            hop["backend"],
            hop["name_there"],
            "in the house" if hop["local"] else "outside",
            hop["words"] or ("would answer" if hop["backend"] == route["first"] else "stands by"),
        )
        for position, hop in enumerate(route["hops"])
    ]


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        decoded = json.loads(body)
    except ValueError:
        return {}
    return decoded if isinstance(decoded, dict) else {}


def _message(body: Mapping[str, Any]) -> str:
    error = body.get("error")
    return str(error.get("message", "")) if isinstance(error, dict) else str(error or "")


def _seconds(headers: Mapping[str, str], name: str) -> float:
    value = next((value for key, value in headers.items() if key.lower() == name.lower()), "0")
    return int(value) / 1000 if value.isdecimal() else 0.0
