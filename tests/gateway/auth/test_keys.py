"""The key file while it is in use: it changes under a running gateway, and from several terminals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hostler.gateway.auth import keys
from hostler.gateway.auth.keys import KeyFileError, KeyRing, add
from hostler.gateway.context import ALL_SCOPES, MAX_COUNT, KeyRules
from hostler.supervisor.scheduling.queue import MAX_PRIORITY

_ADD = """
import sys
from pathlib import Path
from hostler.gateway.auth import keys
print("ready", flush=True)
sys.stdin.readline()
for number in range(5):
    keys.add(Path(sys.argv[1]), f"{sys.argv[2]}-{number}", ["infer"])
    keys.add(Path(sys.argv[1]), f"{sys.argv[2]}-gone-{number}", ["infer"])
    keys.revoke(Path(sys.argv[1]), f"{sys.argv[2]}-gone-{number}")
"""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def test_a_new_key_is_noticed_within_a_second(path: Path) -> None:
    keys.add(path, "bob", ["infer"])
    clock = Clock()
    ring = KeyRing(path, clock=clock)
    new = keys.add(path, "eve", ["infer"])
    assert ring.client(new) is None
    clock.now = 1.0
    client = ring.client(new)
    assert client is not None
    assert client.name == "eve"


@pytest.mark.parametrize("how", ["revoked", "emptied", "removed"])
def test_the_last_key_can_be_taken_away(path: Path, how: str) -> None:
    key = keys.add(path, "bob", ["infer"])
    clock = Clock()
    ring = KeyRing(path, clock=clock)
    assert ring.client(key) is not None
    if how == "revoked":
        assert keys.revoke(path, "bob")
    elif how == "emptied":
        path.write_text("")
    else:
        path.unlink()
    clock.now = 1.0
    assert ring.client(key) is None
    assert ring.client("") is None


def test_a_broken_file_leaves_the_old_keys_in_force(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = keys.add(path, "bob", ["infer"])
    clock = Clock()
    ring = KeyRing(path, clock=clock)
    path.write_text("{")
    clock.now = 1.0
    assert ring.client(key) is not None
    assert f"{path}:1" in caplog.text


def test_nobody_loses_keys_that_others_make_at_the_same_time(path: Path) -> None:
    names = ["a", "b", "c", "d"]
    adding = [
        subprocess.Popen(
            [sys.executable, "-c", _ADD, str(path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in names
    ]
    for process in adding:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in adding:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in adding:
        process.communicate(timeout=30)
        assert process.returncode == 0
    assert sorted(record.name for record in keys.read(path)) == [
        f"{name}-{number}" for name in names for number in range(5)
    ]


def test_a_key_file_and_its_folder_are_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys"
    keys.add(path, "bob", ["infer"])
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {each.stat().st_mode & 0o777 for each in path.parent.iterdir()} == {0o600}


def test_revoking_a_key_of_no_file_makes_none(path: Path) -> None:
    assert not keys.revoke(path, "bob")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("priority", [MAX_PRIORITY + 1, -MAX_PRIORITY - 1])
def test_priorities_are_bounded(path: Path, priority: int) -> None:
    keys.add(path, "vip", ["infer"], priority=MAX_PRIORITY)
    before = path.read_bytes()
    with pytest.raises(KeyFileError, match=r"is not changed: Expected `int` .= -?1000000 - at `.*priority`"):
        keys.add(path, "more", ["infer"], priority=priority)
    assert path.read_bytes() == before
    path.write_bytes(before.replace(b"1000000", str(priority).encode()))
    with pytest.raises(KeyFileError, match=r":2: is not a key record: .*priority"):
        keys.read(path)


@pytest.mark.parametrize("limit", [MAX_COUNT + 1, 2**64, 10**30])
@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute", "tokens_per_day"])
def test_limits_are_bounded(path: Path, name: str, limit: int) -> None:
    keys.add(path, "much", ["infer"], rules=KeyRules(**{name: MAX_COUNT}))
    written = path.read_bytes()
    with pytest.raises(KeyFileError, match=f"is not changed: .*{name}"):
        keys.add(path, "more", ["infer"], rules=KeyRules(**{name: limit}))
    assert path.read_bytes() == written
    path.write_bytes(written.replace(str(MAX_COUNT).encode(), str(limit).encode()))
    with pytest.raises(KeyFileError, match=f":2: is not a key record: .*{name}"):
        keys.read(path)


def test_plain_keys_count_besides_those_of_the_file(tmp_path: Path) -> None:
    now = [0.0]
    path = tmp_path / "keys"
    ring = KeyRing(path, ["my-own"], clock=lambda: now[0])
    client = ring.client("my-own")
    assert client is not None and client.scopes == ALL_SCOPES
    assert ring.client("another") is None
    stored = add(path, "laptop", ALL_SCOPES)
    now[0] = 5.0
    assert ring.client(stored) is not None and ring.client("my-own") is not None
    assert [record.name for record in ring.records()] == ["api-key-1", "laptop"]


def test_a_given_key_is_stored_as_a_hash(tmp_path: Path) -> None:
    assert add(tmp_path / "keys", "laptop", ALL_SCOPES, key="my-own") == "my-own"
    assert "my-own" not in (tmp_path / "keys").read_text()
    assert KeyRing(tmp_path / "keys").client("my-own") is not None
