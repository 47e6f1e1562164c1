"""The admin client: how commands find and call a gateway or supervisor, and errors that say what to do."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final, Literal, cast

import msgspec

from hostler import __version__
from hostler.adapters import sse
from hostler.gateway.cli.banner import local_url
from hostler.gateway.cli.start_options import FAILED, UNAUTHORIZED, UNREACHABLE, USAGE
from hostler.gateway.config import ConfigError, Configuration, secret
from hostler.gateway.settings import parse_address
from hostler.profiles.file_reading import home_path
from hostler.supervisor.tls import CertificateError, pinned_context

# Where rich and click are installed, httpx loads its own command line as well: 0.16 s that a command need not take.
sys.modules.setdefault("httpx._main", cast(ModuleType, None))
import httpx  # noqa: E402

#: Time limit of an answer, and of silence in a stream, in seconds. Streams are pinged more often than that.
ANSWER_S: Final = 5.0
SILENCE_S: Final = 40.0

#: The realm in a supervisor's 401; see `supervisor/auth.py`.
_SUPERVISOR_REALM: Final = "hostler-supervisor"

_URL: Final = re.compile(r"https?://(\[[0-9A-Fa-f:.%]+\]|[^\[\]/:@\s]+)(:\d{1,5})?(/\S*)?")

#: The name of a supervisor's host in a status made from its own.
SUPERVISOR_HOST: Final = "this one"

#: Names that are listed when a model is unknown.
_MAX_NAMES: Final = 20
#: Bytes that are read of a file with a key.
_MAX_KEY_FILE: Final = 4096


class CallFailed(Exception):
    """A call without a usable answer. The message says what to do; `exit_code` is the command's, `status` HTTP's or 0."""

    def __init__(self, message: str, exit_code: int, status: int = 0) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.status = status


class NotListening(CallFailed):
    """No connection could be made."""


class AdminResponse(msgspec.Struct, frozen=True):
    """An answer of any status. Header names are in lower case; `body` is empty unless it is a JSON object."""

    status: int
    headers: Mapping[str, str]
    body: dict[str, Any]


class AdminClient:
    """Calls the gateway or supervisor at `url`, without proxies or redirects: the key is for this address alone.

    `url` may be `unix:PATH`. `certificate` is the file with the server's own, if it need not be one that the system trusts.

    All methods raise `CallFailed`.
    """

    def __init__(self, url: str, key: str | None = None, *, certificate: str | None = None) -> None:
        self.url = url.rstrip("/")
        socket_path = self.url.removeprefix("unix:") if self.url.startswith("unix:") else None
        self._base = self.url if socket_path is None else "http://localhost"
        self._has_key = key is not None
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(
            headers={"User-Agent": f"hostler/{__version__}"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            trust_env=False,
            limits=limits,
            transport=None
            if socket_path is None
            else httpx.HTTPTransport(uds=socket_path, verify=False, limits=limits),
            # The system's certificates rather than certifi's; loading them takes a while, so only for https.
            verify=_context(certificate) if url.startswith("https:") else False,
        )

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """GET an object."""
        return self._object(self._json("GET", path, query=query))

    def get_list(self, path: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """GET a list; empty if it is something else."""
        found = self._json("GET", path, query=query)
        return found if isinstance(found, list) else []

    def post(self, path: str, timeout_s: float = ANSWER_S, **body: object) -> dict[str, Any]:
        """POST an object and receive one."""
        return self._object(self._json("POST", path, body=body, timeout_s=timeout_s))

    def delete(self, path: str) -> dict[str, Any]:
        """The answer, a JSON object. Raises `CallFailed`."""
        return self._object(self._json("DELETE", path))

    def send(
        self, path: str, body: Mapping[str, object], headers: Mapping[str, str], timeout_s: float
    ) -> AdminResponse:
        """POST an object; an error status is an answer, too."""
        with self._errors(), self._stream("POST", path, body=body, headers=headers, timeout_s=timeout_s) as response:
            return AdminResponse(response.status_code, dict(response.headers), _json_object(response.read()))

    def events(
        self, path: str, query: Mapping[str, str] | None = None, *, body: Mapping[str, object] | None = None
    ) -> Iterator[tuple[str, Any]]:
        """The events of a stream, until it ends: names and decoded data."""
        reader = sse.EventReader()
        with self._errors(), self._open(sse.MEDIA_TYPE, path, query, body) as response:
            for data in response.iter_bytes():
                for name, payload in reader.feed(data):
                    yield name, json.loads(payload)

    def lines(self, path: str, query: Mapping[str, str] | None = None) -> Iterator[str]:
        """The lines of a text, as they arrive."""
        with self._errors(), self._open("text/plain", path, query, None) as response:
            yield from response.iter_lines()

    def _json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
        timeout_s: float = ANSWER_S,
    ) -> Any:
        with self._errors(), self._stream(method, path, query=query, body=body, timeout_s=timeout_s) as response:
            self._check(response)
            return json.loads(response.read())

    @contextmanager
    def _open(
        self, accept: str, path: str, query: Mapping[str, str] | None, body: Mapping[str, object] | None
    ) -> Iterator[httpx.Response]:
        method = "GET" if body is None else "POST"
        with self._stream(
            method, path, query=query, body=body, headers={"Accept": accept}, timeout_s=SILENCE_S
        ) as response:
            self._check(response)
            yield response

    @contextmanager
    def _stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float,
    ) -> Iterator[httpx.Response]:
        timeout = httpx.Timeout(timeout_s)
        with self._http.stream(
            method, self._base + path, params=query, json=body, headers=headers, timeout=timeout
        ) as response:
            yield response

    def _object(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise CallFailed(f"{self.url} is not a Hostler gateway: its answer is not a JSON object", UNREACHABLE)
        return value

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Convert httpx's exceptions to `CallFailed`."""
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError, sse.EventTooLarge) as error:
            raise self._not_reached(error) from error

    def _check(self, response: httpx.Response) -> None:
        """Raise `CallFailed` for an error status."""
        status = response.status_code
        if status < 300:
            return
        body = _json_object(response.read())
        message = error_message(body)
        realm = response.headers.get("WWW-Authenticate", "")
        kind = "supervisor" if _SUPERVISOR_REALM in realm else "gateway"
        if status == 401:
            needed = "its token" if kind == "supervisor" else "an API key"
            hint = "" if kind == "supervisor" else " (`hostler keys add NAME` creates one)"
            text = (
                f"the {kind} at {self.url} does not know this key; set HOSTLER_API_KEY or --key-file to another one"
                if self._has_key
                else f"the {kind} at {self.url} requires {needed}: set HOSTLER_API_KEY, or name a file with --key-file"
            )
            raise CallFailed(text + hint, UNAUTHORIZED, status)
        if status == 403:
            scope = re.search(r"scope '(\w+)'", message)
            if scope is not None:
                message = (
                    f"the key lacks the scope {scope[1]}; `hostler keys add NAME --scope read --scope operate` "
                    "creates one that has it"
                )
            raise CallFailed(message or f"{self.url} refuses this request", UNAUTHORIZED, status)
        if status in (404, 405) and not message:
            raise CallFailed(
                f"{self.url} is not a Hostler gateway: it does not know {response.url.path}", UNREACHABLE, status
            )
        unknown_name = "model_not_found" in str(body) or "unknown_profile" in str(body)
        message = message or f"{self.url} answers with status {status}: is it a Hostler gateway?"
        raise CallFailed(message, USAGE if unknown_name else FAILED, status)

    def _not_reached(self, error: Exception) -> CallFailed:
        if not _is_url(self._base) or isinstance(error, httpx.InvalidURL | UnicodeError):
            return CallFailed(f"{self.url} is not a valid URL; write it like http://127.0.0.1:8000", UNREACHABLE)
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            unknown = " (unknown host name)" if _caused_by(error, socket.gaierror) else ""
            return NotListening(
                f"no gateway answers at {self.url}{unknown}; start one with `hostler up`, or name another with --url",
                UNREACHABLE,
            )
        if isinstance(error, httpx.TimeoutException):
            return CallFailed(f"{self.url} accepts connections but does not answer; check its log", UNREACHABLE)
        if isinstance(error, httpx.RemoteProtocolError) and "disconnected" in str(error):
            return NotListening(
                f"{self.url} closed the connection without an answer: is it a Hostler gateway?", UNREACHABLE
            )
        return CallFailed(f"{self.url} does not answer like a Hostler gateway; name another with --url", UNREACHABLE)


def _is_url(text: str) -> bool:
    found = _URL.fullmatch(text)
    return found is not None and int((found[2] or ":0")[1:]) < 65536


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None


def _context(certificate: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context() if certificate is None else pinned_context(certificate)
    except CertificateError as error:
        raise CallFailed(str(error), USAGE) from error


class AdminTarget:
    """The gateway or supervisor that a command works with, and its status when it was found.

    `own_status` is the status as received. `status` has the shape of a gateway's for both kinds; it is empty if the key may
    operate but not read.
    """

    def __init__(self, client: AdminClient, kind: Literal["gateway", "supervisor"], own_status: dict[str, Any]) -> None:
        self.client = client
        self.kind = kind
        self.own_status = own_status
        self.status = own_status if kind == "gateway" else _gateway_status(own_status)

    def require_gateway(self, reason: str) -> None:
        """Raise `CallFailed` if it is a supervisor."""
        if self.kind == "supervisor":
            raise CallFailed(
                f"{self.client.url} is a supervisor, and {reason}; name the gateway with --url", UNREACHABLE
            )

    def model_name(self, name: str) -> str:
        """The model's own name for a name or an alias. Raises `CallFailed` with the names that exist."""
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


def unknown_model(name: str, known: list[str]) -> str:
    """The error for a name that no model has."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    hint = f", did you mean {near[0]}?" if near else ";"
    more = len(known) - _MAX_NAMES
    listed = ", ".join(known[:_MAX_NAMES]) + (f" and {more} more, see `hostler models`" if more > 0 else "")
    return f"unknown model {name!r}{hint} models are: {listed or 'none'}"


def connect(
    configuration: Configuration, url: str | None = None, key_file: str | None = None, *, status_required: bool = True
) -> AdminTarget:
    """The gateway at `url` or as configured, else this machine's supervisor. Raises `CallFailed`.

    Unless `status_required`, a key without the scope read will do.
    """
    key = read_key(key_file)
    try:
        return _identify(gateway_client(configuration, url, key), status_required=status_required)
    except NotListening:
        target = None if url else _local_supervisor(configuration, key)
        if target is None:
            raise
        return target


def _identify(client: AdminClient, *, status_required: bool = True) -> AdminTarget:
    try:
        status = client.get("/admin/status")
    except CallFailed as error:
        if error.status == 403 and not status_required:
            return AdminTarget(client, "gateway", {})
        if error.status not in (404, 405):
            raise
    else:
        if {"version", "hosts", "models"} <= status.keys():
            return AdminTarget(client, "gateway", status)
        raise CallFailed(f"{client.url} is not a Hostler gateway: its /admin/status has another form", UNREACHABLE)
    try:
        status = client.get("/models/status")
    except CallFailed as error:
        if error.exit_code == UNAUTHORIZED:
            raise
        status = {}
    if not {"profiles", "exclusive"} <= status.keys():
        raise CallFailed(f"{client.url} is not a Hostler gateway: it has no /admin/status", UNREACHABLE)
    return AdminTarget(client, "supervisor", status)


def _local_supervisor(configuration: Configuration, key: str | None) -> AdminTarget | None:
    """The supervisor that the configuration file describes, if it runs alone on this machine."""
    if configuration.path is None:
        return None
    settings = configuration.settings.supervisor
    try:
        token = key or secret(settings.token, settings.token_file, "supervisor.token_file")
        url = local_url(*parse_address(settings.listen), secure=settings.tls is not None)
        return _identify(AdminClient(url, token, certificate=settings.tls.cert if settings.tls else None))
    except (CallFailed, ConfigError):
        return None


def gateway_url(configuration: Configuration, url: str | None = None) -> str:
    """The given URL, `http://` added if need be, or `unix:PATH`; else that of the first of `gateway.listen`."""
    if url:
        return (url if "://" in url or url.startswith("unix:") else f"http://{url}").rstrip("/")
    settings = configuration.settings.gateway
    return local_url(*parse_address(settings.listen[0]), secure=settings.tls is not None)


def gateway_client(configuration: Configuration, url: str | None, key: str | None) -> AdminClient:
    """A client for the gateway at `url` or as configured: then its certificate is the configured one."""
    tls = None if url else configuration.settings.gateway.tls
    return AdminClient(gateway_url(configuration, url), key, certificate=tls.cert if tls else None)


def read_key(key_file: str | None) -> str | None:
    """The API key from the file, else from HOSTLER_API_KEY. Raises `CallFailed`."""
    if key_file is None:
        text, source = os.environ.get("HOSTLER_API_KEY", "").strip(), "HOSTLER_API_KEY"
        if not text:
            return None
    else:
        source = f"--key-file {key_file}"
        try:
            with home_path(key_file).open("rb") as opened:  # may be a pipe, or a device without end
                text = opened.read(_MAX_KEY_FILE).decode("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise CallFailed(f"{source}: cannot be read: {reason}", USAGE) from error
    if not text or not text.isascii() or not text.isprintable():
        raise CallFailed(f"{source} holds no key; a key is one line, as printed by `hostler keys add NAME`", USAGE)
    return text


def error_message(body: Mapping[str, Any]) -> str:
    """The message of an error answer, in any protocol's shape; empty if there is none."""
    error = body.get("error")
    return str(error.get("message", "")) if isinstance(error, dict) else str(error or "")


def _gateway_status(host: dict[str, Any]) -> dict[str, Any]:
    """A supervisor's status in the shape of a gateway's."""
    processes = {each["model"]: each for each in host["models"]}
    states = {"ready": "loaded", "starting": "loading", "failed": "failed", "backoff": "failed"}
    cards = []
    for profile in host["profiles"]:
        process = processes.get(profile["name"], {})
        cards.append(
            {
                **profile,
                "state": states.get(process.get("state", "stopped"), "unloaded"),
                "failure": (process.get("failure") or {}).get("message"),
                "percent": process.get("percent"),
            }
        )
    active = next((card["name"] for card in cards if card["state"] == "loaded"), None)
    view = {"backend": SUPERVISOR_HOST, "reachable": True, "host": host, "waiting": None, "serving": None}
    return {"active": active, "models": cards, "hosts": [{**view, "queue": [], "engines": []}], "in_flight": []}


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        decoded = json.loads(body)
    except ValueError:
        return {}
    return decoded if isinstance(decoded, dict) else {}
