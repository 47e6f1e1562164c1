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

#: Sessions kept; the oldest are dropped first.
_MAX_SESSIONS = 1000


class _Session(msgspec.Struct, frozen=True):
    key: str
    until: float


class Sessions:
    """Kept in memory by the hash of their cookie: a restart ends them all."""

    def __init__(self, keys: KeyRing, clock: Callable[[], float]) -> None:
        self._keys = keys
        self._clock = clock
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    def begin(self, key: str) -> tuple[str, Client] | None:
        """Log in with a key: the cookie's value and the client, or `None` for an invalid key."""
        client = self._keys.client(key)
        if client is None:
            return None
        token = secrets.token_urlsafe(32)
        self._sessions[_hashed(token)] = _Session(digest(key), self._clock() + LASTS_S)
        while len(self._sessions) > _MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return token, client

    def client(self, token: str) -> Client | None:
        """The client of a session, unless it has expired or its key was revoked."""
        name = _hashed(token)
        session = self._sessions.get(name)
        if session is None:
            return None
        client = self._keys.client_of_hash(session.key) if self._clock() < session.until else None
        if client is None:
            del self._sessions[name]
        return client

    def end(self, token: str) -> None:
        """Log out."""
        self._sessions.pop(_hashed(token), None)


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
