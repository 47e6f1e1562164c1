"""Calls a running gateway or supervisor for the command line: JSON in and out, event streams, and errors that help."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from hostler.adapters import sse
from hostler.gateway.cli.banner import nearby
from hostler.gateway.cli.options import FAILED, REFUSED, UNREACHABLE, USAGE
from hostler.gateway.config import ConfigError, Configuration, parse_address, secret

#: How long an answer may take, and a stream may be silent: both kinds of streams are pinged more often, in seconds.
_ASK_S = 5.0
_SILENCE_S = 40.0

#: How a supervisor asks for its token; see `supervisor/auth.py`.
_SUPERVISOR_REALM = "hostler-supervisor"

_ADDRESS = re.compile(r"https?://(\[[0-9A-Fa-f:.%]+\]|[^\[\]/:@\s]+)(:\d{1,5})?(/\S*)?")

Kind = Literal["gateway", "supervisor"]


class CallFailed(Exception):
    """A call that gave no answer; the message says what to do, `exit_code` how the command ends, `status` what HTTP said."""

    def __init__(self, message: str, exit_code: int, status: int = 0) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.status = status


class _NobodyThere(CallFailed):
    """Nobody listens there."""


class Caller:
    """Whoever listens at `url`, spoken to with `key`. All methods raise `CallFailed`."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._key = key
        self._opener = urllib.request.OpenerDirector()
        # No proxies, and no redirects: the key is for this address alone.
        for handler in (
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
        ):
            self._opener.add_handler(handler)

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """What is answered to GET."""
        return self._object(self._answered(path, None, _ASK_S, query or {}))

    def items(self, path: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """What is answered to GET where it is a list."""
        told = self._answered(path, None, _ASK_S, query)
        return told if isinstance(told, list) else []

    def post(self, path: str, limit_s: float = _ASK_S, **body: object) -> dict[str, Any]:
        """What is answered to an order."""
        return self._object(self._answered(path, body, limit_s, {}))

    def say(
        self, path: str, body: Mapping[str, object], headers: Mapping[str, str], limit_s: float
    ) -> tuple[int, Mapping[str, str], dict[str, Any]]:
        """Status, headers (names in lower case) and body of an answer, whether it is a good one or not."""
        try:
            with self._open(path, body, limit_s, {}, headers) as answer:
                return answer.status, _lower(answer.headers), _decoded(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _lower(error.headers), _decoded(error.read())
        except (OSError, ValueError, OverflowError, http.client.HTTPException) as error:
            raise self._nobody(error) from error

    def events(
        self, path: str, query: Mapping[str, str] | None = None, *, body: Mapping[str, object] | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events of a stream, each with its data, until it ends."""
        events = sse.EventReader()
        with (
            self._told_plainly(),
            self._open(path, body, _SILENCE_S, query or {}, {"Accept": sse.MEDIA_TYPE}) as answer,
        ):
            for line in answer:
                for name, data in events.feed(line):
                    yield name, json.loads(data)

    def lines(self, path: str, query: Mapping[str, str] | None = None) -> Iterator[str]:
        """The lines of a text, as they come."""
        with self._told_plainly(), self._open(path, None, _SILENCE_S, query or {}, {"Accept": "text/plain"}) as answer:
            for line in answer:
                yield line.decode("utf-8", "replace").rstrip("\r\n")

    def _answered(self, path: str, body: Mapping[str, object] | None, limit_s: float, query: Mapping[str, str]) -> Any:
        with self._told_plainly(), self._open(path, body, limit_s, query, {}) as answer:
            return json.load(answer)

    def _object(self, told: Any) -> dict[str, Any]:
        if not isinstance(told, dict):
            raise CallFailed(f"{self.url} is no Hostler gateway: it answers something else", UNREACHABLE)
        return told

    def _open(
        self,
        path: str,
        body: Mapping[str, object] | None,
        limit_s: float,
        query: Mapping[str, str],
        headers: Mapping[str, str],
    ) -> Any:
        asked = f"?{urllib.parse.urlencode(query)}" if query else ""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path + asked, data=data, headers=dict(headers))
        if data is not None:
            request.add_header("Content-Type", "application/json")
        if self._key:
            request.add_header("Authorization", f"Bearer {self._key}")
        return self._opener.open(request, timeout=limit_s)

    @contextmanager
    def _told_plainly(self) -> Iterator[None]:
        """The library's exceptions become ours."""
        try:
            yield
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from error
        except (OSError, ValueError, OverflowError, http.client.HTTPException) as error:
            raise self._nobody(error) from error

    def _refused(self, error: urllib.error.HTTPError) -> CallFailed:
        body = _decoded(error.read())
        status, words = error.code, message_of(body)
        kind = "supervisor" if _SUPERVISOR_REALM in (error.headers.get("WWW-Authenticate") or "") else "gateway"
        if status == 401:
            thing = "its token" if kind == "supervisor" else "a key"
            hint = "" if kind == "supervisor" else " (`hostler keys add NAME` makes one)"
            words = (
                f"the {kind} at {self.url} does not know this key; put another one into HOSTLER_API_KEY or --key-file"
                if self._key
                else f"the {kind} at {self.url} wants {thing}: put it into HOSTLER_API_KEY or name a file with --key-file"
            )
            return CallFailed(words + hint, REFUSED, status)
        if status == 403:
            scope = re.search(r"scope '(\w+)'", words)
            if scope is not None:
                words = (
                    f"the key lacks the scope {scope[1]}; `hostler keys add NAME --scope read --scope operate` "
                    "makes one that looks and acts"
                )
            return CallFailed(words or f"{self.url} refuses this", REFUSED, status)
        if status in (404, 405) and not words:
            return CallFailed(f"{self.url} is no Hostler gateway: it knows no such address", UNREACHABLE, status)
        unknown = "model_not_found" in str(body) or "unknown_profile" in str(body)
        words = words or f"{self.url} answers with status {status}: is it a Hostler gateway?"
        return CallFailed(words, USAGE if unknown else FAILED, status)

    def _nobody(self, error: Exception) -> CallFailed:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if not _ADDRESS.fullmatch(self.url) or isinstance(
            reason, http.client.InvalidURL | UnicodeError | OverflowError
        ):
            return CallFailed(f"{self.url} is no address; write it like http://127.0.0.1:8000", UNREACHABLE)
        if isinstance(reason, TimeoutError):
            return CallFailed(f"{self.url} takes connections, but does not answer; look into its log", UNREACHABLE)
        if isinstance(reason, http.client.BadStatusLine | ConnectionResetError | ValueError) and not isinstance(
            reason, http.client.RemoteDisconnected
        ):
            return CallFailed(
                f"{self.url} does not speak as a Hostler gateway does; name another with --url", UNREACHABLE
            )
        why = " (there is no host of that name)" if isinstance(reason, socket.gaierror) else ""
        return _NobodyThere(
            f"no gateway answers at {self.url}{why}; start one with `hostler up`, or name it with --url", UNREACHABLE
        )


class House:
    """A gateway or supervisor that answers: what it is, and all that it told of itself.

    `status` is the gateway's, or one made of the supervisor's own, which stands in `told`; empty if the key may give
    orders but not look.
    """

    def __init__(self, caller: Caller, kind: Kind, told: dict[str, Any]) -> None:
        self.caller = caller
        self.kind = kind
        self.told = told
        self.status = told if kind == "gateway" else _as_gateway(told)

    def gateway_only(self, what: str) -> None:
        """Raises `CallFailed` where a supervisor cannot do it."""
        if self.kind == "supervisor":
            raise CallFailed(f"{self.caller.url} is a supervisor, and {what}; name the gateway with --url", UNREACHABLE)

    def model(self, name: str) -> str:
        """A model's own name. Raises `CallFailed` with the names there are."""
        cards = self.status.get("models", [])
        for card in cards:
            if name == card["name"]:
                return name
        for card in cards:
            if name.casefold() in (each.casefold() for each in (card["name"], *card["aliases"])):
                return str(card["name"])
        if not self.status:
            return name
        raise CallFailed(unknown_model(name, [card["name"] for card in cards]), USAGE)


#: As many names are listed where one was not known.
_NAMES_SHOWN = 20


def unknown_model(name: str, known: list[str]) -> str:
    """What to say of a name that no model has."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    meant = f", did you mean {near[0]}?" if near else ""
    more = len(known) - _NAMES_SHOWN
    listed = ", ".join(known[:_NAMES_SHOWN]) + (f" and {more} more, see `hostler models`" if more > 0 else "")
    return f"there is no model {name!r}{meant or ';'} models are: {listed or 'none'}"


def reach(
    configuration: Configuration, url: str | None = None, key_file: str | None = None, *, look: bool = True
) -> House:
    """The gateway that the configuration or `url` names, else the supervisor of this machine. Raises `CallFailed`.

    Without `look` a key that may not read is good enough.
    """
    key = key_given(key_file)
    try:
        return _look(Caller(address(configuration, url), key), look=look)
    except _NobodyThere:
        house = None if url else _own_supervisor(configuration, key)
        if house is None:
            raise
        return house


def _look(caller: Caller, *, look: bool = True) -> House:
    try:
        told = caller.get("/admin/status")
    except CallFailed as error:
        if error.status == 403 and not look:
            return House(caller, "gateway", {})
        if error.status not in (404, 405):
            raise
    else:
        if {"version", "hosts", "models"} <= told.keys():
            return House(caller, "gateway", told)
        raise CallFailed(f"{caller.url} is no Hostler gateway: it answers something else", UNREACHABLE)
    try:
        told = caller.get("/models/status")
    except CallFailed as error:
        if error.exit_code == REFUSED:
            raise
        told = {}
    if not {"profiles", "exclusive"} <= told.keys():
        raise CallFailed(f"{caller.url} is no Hostler gateway: it has no /admin/status", UNREACHABLE)
    return House(caller, "supervisor", told)


def _own_supervisor(configuration: Configuration, key: str | None) -> House | None:
    """This machine's supervisor, if it runs alone as its file says."""
    if configuration.path is None:
        return None
    settings = configuration.settings.supervisor
    try:
        token = key or secret(settings.token, settings.token_file, "supervisor.token_file")
        return _look(Caller(nearby(*parse_address(settings.listen)), token))
    except (CallFailed, ConfigError):
        return None


def address(configuration: Configuration, url: str | None = None) -> str:
    """Where to ask the gateway: as told, else the first of `gateway.listen`, as it is called from this machine."""
    if url:
        return (url if "://" in url else f"http://{url}").rstrip("/")
    return nearby(*parse_address(configuration.settings.gateway.listen[0]))


def key_given(key_file: str | None) -> str | None:
    """The key to show: from the file, else from HOSTLER_API_KEY. Raises `CallFailed`."""
    if key_file is None:
        text, where = os.environ.get("HOSTLER_API_KEY", "").strip(), "HOSTLER_API_KEY"
        if not text:
            return None
    else:
        where = f"--key-file {key_file}"
        try:
            text = Path(key_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise CallFailed(f"{where}: cannot be read: {reason}", USAGE) from error
    if not text or not text.isascii() or not text.isprintable():
        raise CallFailed(f"{where} holds no key: that would be one line, as `hostler keys add NAME` prints it", USAGE)
    return text


def message_of(body: Mapping[str, Any]) -> str:
    """What an error answer says, in any of the shapes there are."""
    error = body.get("error")
    return str(error.get("message", "")) if isinstance(error, dict) else str(error or "")


def _as_gateway(host: dict[str, Any]) -> dict[str, Any]:
    """A supervisor's status in the shape of a gateway's."""
    states = {each["model"]: each for each in host["models"]}
    shown = {"ready": "loaded", "starting": "loading", "failed": "failed", "backoff": "failed"}
    cards = []
    for profile in host["profiles"]:
        status = states.get(profile["name"], {})
        failure = status.get("failure") or {}
        cards.append(
            {
                **profile,
                "state": shown.get(status.get("state", "stopped"), "unloaded"),
                "failure": failure.get("message"),
                "percent": status.get("percent"),
            }
        )
    ready = next((card["name"] for card in cards if card["state"] == "loaded"), None)
    place = {"backend": NAME_OF_SUPERVISOR, "reachable": True, "host": host, "waiting": None, "serving": None}
    return {"active": ready, "models": cards, "hosts": [{**place, "queue": [], "engines": []}], "in_flight": []}


#: What the one host is called where there is no gateway to give it a name.
NAME_OF_SUPERVISOR = "this one"


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        decoded = json.loads(body)
    except ValueError:
        return {}
    return decoded if isinstance(decoded, dict) else {}


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
