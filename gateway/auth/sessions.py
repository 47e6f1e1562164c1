"""Who is logged in on the page: a cookie stands for a key, for some hours, as long as the key itself is valid."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import msgspec

from hostler.gateway.auth.keys import KeyRing, digest
from hostler.gateway.context import Client

#: A login lasts this long, in seconds: a working day.
LASTS_S = 12 * 3600.0

#: So many logins are remembered; the oldest ones end first.
_MOST = 1000


class _Session(msgspec.Struct, frozen=True):
    key: str
    until: float


class Sessions:
    """Remembers logins in memory, by the hash of their cookie: a restart ends them all."""

    def __init__(self, keys: KeyRing, clock: Callable[[], float]) -> None:
        self._keys = keys
        self._clock = clock
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    def begin(self, key: str) -> tuple[str, Client] | None:
        """Log in with a key: the cookie's value and whose key it is, or `None` for a wrong key."""
        client = self._keys.client(key)
        if client is None:
            return None
        token = secrets.token_urlsafe(32)
        self._sessions[_hashed(token)] = _Session(digest(key), self._clock() + LASTS_S)
        while len(self._sessions) > _MOST:
            self._sessions.popitem(last=False)
        return token, client

    def client(self, token: str) -> Client | None:
        """Whose session this is, if it has not ended and its key is still valid."""
        name = _hashed(token)
        session = self._sessions.get(name)
        if session is None:
            return None
        client = self._keys.holder(session.key) if self._clock() < session.until else None
        if client is None:
            del self._sessions[name]
        return client

    def end(self, token: str) -> None:
        """Log out."""
        self._sessions.pop(_hashed(token), None)


def cookie_name(port: int) -> str:
    """Browsers give a host's cookies to all of its ports, so each gateway has a name of its own."""
    return f"hostler-{port}"


def session_cookie(name: str, headers: Mapping[str, Sequence[str]]) -> str | None:
    """The cookie's value among a request's headers."""
    for line in headers.get("cookie", ()):
        for part in line.split(";"):
            key, _, value = part.strip().partition("=")
            if key == name and value:
                return value
    return None


def from_our_page(method: str, headers: Mapping[str, Sequence[str]]) -> bool:
    """Whether a browser says that our own page (or the person, by the address bar) asks.

    Cookies also travel from other ports of the same host, which is why the browser's word is needed. Whoever changes
    something must name its origin, which has been compared with ours before.
    """
    site = headers.get("sec-fetch-site", ())
    if any(value not in ("same-origin", "none") for value in site):
        return False
    return method in ("GET", "HEAD") or bool(headers.get("origin"))


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
