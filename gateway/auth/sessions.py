"""Sessions of the dashboard: a cookie stands for an API key, while that key is valid."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import msgspec

from hostler.gateway.auth.keys import KeyRing, digest
from hostler.gateway.context import Client

#: The lifetime of a session, in seconds: a working day.
LASTS_S = 12 * 3600.0

#: Sessions kept of one key, and of all; the oldest are dropped first.
_MAX_OF_KEY = 50
_MAX_SESSIONS = 10_000


class _Session(msgspec.Struct, frozen=True):
    key: str
    until: float


class Sessions:
    """Kept in memory by the hash of their cookie: a restart ends them all. One key's logins only end sessions of its own."""

    def __init__(self, keys: KeyRing, clock: Callable[[], float]) -> None:
        self._keys = keys
        self._clock = clock
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._by_key: dict[str, OrderedDict[str, None]] = {}

    def begin(self, key: str) -> tuple[str, Client] | None:
        """Log in with a key: the cookie's value and the client, or `None` for an invalid key."""
        client = self._keys.client(key)
        if client is None:
            return None
        token, now = secrets.token_urlsafe(32), self._clock()
        hashed = digest(key)
        own = self._by_key.setdefault(hashed, OrderedDict())
        own[_hashed(token)] = None
        self._sessions[_hashed(token)] = _Session(hashed, now + LASTS_S)
        while len(own) > _MAX_OF_KEY:
            self._drop(next(iter(own)))
        while self._sessions and (len(self._sessions) > _MAX_SESSIONS or self._oldest.until <= now):
            self._drop(next(iter(self._sessions)))
        return token, client

    def client(self, token: str) -> Client | None:
        """The client of a session, unless it has expired or its key was revoked."""
        name = _hashed(token)
        session = self._sessions.get(name)
        if session is None:
            return None
        client = self._keys.client_of_hash(session.key) if self._clock() < session.until else None
        if client is None:
            self._drop(name)
        return client

    def end(self, token: str) -> None:
        """Log out."""
        self._drop(_hashed(token))

    @property
    def _oldest(self) -> _Session:
        return next(iter(self._sessions.values()))

    def _drop(self, name: str) -> None:
        session = self._sessions.pop(name, None)
        if session is None:
            return
        own = self._by_key[session.key]
        own.pop(name, None)
        if not own:
            del self._by_key[session.key]


def cookie_name(port: int) -> str:
    """Browsers send a host's cookies to all of its ports, so the name contains the port."""
    return f"hostler-{port}"


def session_cookie(name: str, headers: Mapping[str, Sequence[str]]) -> str | None:
    """The cookie's value among a request's headers."""
    for line in headers.get("cookie", ()):
        for part in line.split(";"):
            key, _, value = part.strip().partition("=")
            if key == name and value:
                return value
    return None


def from_dashboard(method: str, headers: Mapping[str, Sequence[str]]) -> bool:
    """Whether a request comes from the dashboard or the address bar, according to `Sec-Fetch-Site`.

    Cookies are also sent from other ports of the same host. A change must have an `Origin`, which has been checked before.
    """
    site = headers.get("sec-fetch-site", ())
    if any(value not in ("same-origin", "none") for value in site):
        return False
    return method in ("GET", "HEAD") or bool(headers.get("origin"))


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
