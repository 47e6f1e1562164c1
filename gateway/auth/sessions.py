"""Sessions of the dashboard: a cookie stands for an API key, while that key is valid."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

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


class SessionPeers(Protocol):
    """Other gateways where the same sessions are valid. Sessions and keys are named by their hashes."""

    def began(self, session: str, key: str, lasts_s: float) -> None:
        """A session has begun here."""
        ...

    def ended(self, session: str) -> None:
        """A session has ended here."""
        ...

    async def published(self) -> None:
        """Wait until the others know it, as far as they can be reached."""
        ...


class Sessions:
    """Kept in memory by the hash of their cookie: a restart ends them all. One key's logins only end sessions of its own.

    `peers` are other gateways where they are valid as well, which keep them over restarts.
    """

    def __init__(self, keys: KeyRing, clock: Callable[[], float]) -> None:
        self._keys = keys
        self._clock = clock
        self.peers: SessionPeers | None = None
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._by_key: dict[str, OrderedDict[str, None]] = {}

    def begin(self, key: str) -> tuple[str, Client] | None:
        """Log in with a key: the cookie's value and the client, or `None` for an invalid key."""
        client = self._keys.client(key)
        if client is None:
            return None
        token, hashed = secrets.token_urlsafe(32), digest(key)
        self.add(_hashed(token), hashed, LASTS_S)
        if self.peers is not None:
            self.peers.began(_hashed(token), hashed, LASTS_S)
        return token, client

    def add(self, session: str, key: str, lasts_s: float) -> None:
        """Have a session, by the hashes of its cookie and its key, and drop old ones for it."""
        if session in self._sessions or lasts_s <= 0:
            return
        now = self._clock()
        own = self._by_key.setdefault(key, OrderedDict())
        own[session] = None
        self._sessions[session] = _Session(key, now + lasts_s)
        while len(own) > _MAX_OF_KEY:
            self._drop(next(iter(own)))
        while self._sessions and (len(self._sessions) > _MAX_SESSIONS or self._oldest.until <= now):
            self._drop(next(iter(self._sessions)))

    def remove(self, session: str) -> None:
        """End a session by the hash of its cookie, as another gateway has done."""
        self._drop(session)

    def known(self) -> Iterator[tuple[str, str, float]]:
        """The hashes of each session's cookie and key, and the seconds until it ends."""
        now = self._clock()
        return ((name, each.key, each.until - now) for name, each in self._sessions.items())

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
        """Log out, at all gateways."""
        self._drop(_hashed(token))
        if self.peers is not None:
            self.peers.ended(_hashed(token))

    async def published(self) -> None:
        """Wait until other gateways know of the last change, as far as they can be reached."""
        if self.peers is not None:
            await self.peers.published()

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
