"""Sessions: begun with a key, ended by time, logout and revocation, and limited for each key by itself."""

from __future__ import annotations

from pathlib import Path

from hostler.gateway.auth import keys
from hostler.gateway.auth.keys import KeyRing
from hostler.gateway.auth.sessions import LASTS_S, Sessions


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def begin(sessions: Sessions, key: str) -> str:
    begun = sessions.begin(key)
    assert begun is not None
    return begun[0]


def test_a_session_stands_for_its_key_until_it_expires_or_ends(tmp_path: Path) -> None:
    bob, clock = keys.add(tmp_path / "keys", "bob", ["read"]), Clock()
    sessions = Sessions(KeyRing(tmp_path / "keys"), clock)
    first, second = begin(sessions, bob), begin(sessions, bob)
    client = sessions.client(first)
    assert client is not None
    assert client.name == "bob"
    sessions.end(second)
    assert sessions.client(second) is None
    clock.now = LASTS_S
    assert sessions.client(first) is None
    assert sessions.begin("wrong") is None


def test_one_keys_logins_do_not_push_out_anothers(tmp_path: Path) -> None:
    bob = keys.add(tmp_path / "keys", "bob", ["read"])
    eve = keys.add(tmp_path / "keys", "eve", ["read"])
    sessions = Sessions(KeyRing(tmp_path / "keys"), Clock())
    mine = begin(sessions, bob)
    hers = [begin(sessions, eve) for _ in range(3000)]
    assert sessions.client(mine) is not None
    assert sessions.client(hers[-1]) is not None
    assert sessions.client(hers[0]) is None


def test_expired_sessions_are_forgotten_first(tmp_path: Path) -> None:
    bob, clock = keys.add(tmp_path / "keys", "bob", ["read"]), Clock()
    sessions = Sessions(KeyRing(tmp_path / "keys"), clock)
    old = begin(sessions, bob)
    clock.now = LASTS_S + 1
    new = begin(sessions, bob)
    sessions.end(old)
    assert sessions.client(new) is not None
