"""An empty secret ends every command with exit code 2, wherever it stands, and state is readable by its owner only."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from security.hostile_backend import chat, gateway_process, hostile_backend

BACKEND = {"kind": "openai", "url": "http://127.0.0.1:9", "models": {"m": "m"}}
SUPERVISOR = {"kind": "supervisor", "url": "http://127.0.0.1:9"}

SECRETS: dict[str, dict[str, Any]] = {
    "supervisor.token": {"supervisor": {"token": "?"}},
    "supervisor.token_file": {"supervisor": {"token_file": "?"}},
    "backends.one.token": {"backends": {"one": {**SUPERVISOR, "token": "?"}}},
    "backends.one.token_file": {"backends": {"one": {**SUPERVISOR, "token_file": "?"}}},
    "backends.one.api_key": {"backends": {"one": {**BACKEND, "api_key": "?"}}},
    "backends.one.api_key_file": {"backends": {"one": {**BACKEND, "api_key_file": "?"}}},
    "gateway.api_keys_file": {"gateway": {"api_keys_file": "?"}},
    "gateway.tracing.headers.authorization": {"gateway": {"tracing": {"headers": {"authorization": "Bearer ?"}}}},
}


def hostler(folder: Path, document: Any, command: str) -> subprocess.CompletedProcess[str]:
    (folder / "hostler.yaml").write_text(json.dumps(document))
    apart = {name: str(folder) for name in ("HOSTLER_CACHE", "XDG_CONFIG_HOME", "XDG_STATE_HOME")}
    return subprocess.run(
        [sys.executable, "-m", "hostler.gateway", command, "--config", str(folder / "hostler.yaml")],
        env={**os.environ, **apart, "EMPTY": ""},
        capture_output=True,
        text=True,
        timeout=30,
    )


def filled(document: Any, text: str) -> Any:
    return json.loads(json.dumps(document).replace("?", text))


@pytest.mark.parametrize("text", ["", " ", "${env:EMPTY}"])
@pytest.mark.parametrize("place", SECRETS)
def test_check_refuses_an_empty_secret(tmp_path: Path, place: str, text: str) -> None:
    ended = hostler(tmp_path, filled(SECRETS[place], text), "check")
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert f"{place}: " in ended.stderr
    assert "empty" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", ["up", "gateway", "supervisor"])
@pytest.mark.parametrize("place", ["supervisor.token", "backends.one.api_key"])
def test_nothing_starts_with_an_empty_secret(tmp_path: Path, command: str, place: str) -> None:
    listen = {"gateway": {"listen": ["127.0.0.1:0"]}, "backends": {"one": BACKEND}}
    ended = hostler(tmp_path, {**listen, **filled(SECRETS[place], "${env:EMPTY}")}, command)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert f"{place}: ${{env:EMPTY}} is empty" in ended.stderr


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("supervisor", "supervisor.token_file"),
        ("gateway", "backends.one.api_key_file"),
        ("up", "backends.one.api_key_file"),
    ],
)
def test_nothing_starts_with_an_empty_file_of_a_secret(tmp_path: Path, command: str, place: str) -> None:
    (tmp_path / "secret").write_text(" \n")
    listen = {"gateway": {"listen": ["127.0.0.1:0"]}, "backends": {"one": BACKEND}}
    ended = hostler(tmp_path, {**listen, **filled(SECRETS[place], str(tmp_path / "secret"))}, command)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "is empty" in ended.stderr


@pytest.mark.anyio
async def test_state_files_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    state = tmp_path / "hostler"
    state.mkdir()
    old = os.umask(0o000)
    try:
        # One that an earlier version created.
        (state / "history.sqlite3").touch()
        async with (
            hostile_backend() as backend,
            gateway_process(
                tmp_path,
                {"one": {"kind": "openai", "url": backend.url, "local": False, "models": {"m": "m"}}},
                gateway={
                    "recording": {"contents": True},
                    "spending": {"daily_limit": 1.0, "file": str(state / "spending.json")},
                },
            ) as gateway,
        ):
            for _ in range(3):
                await chat(gateway.http, "openai")
            assert (await gateway.http.get("/admin/history?kind=requests")).status_code == 200
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state.rglob("*") if path.is_file()}
    finally:
        os.umask(old)
    assert {"history.sqlite3", "history.sqlite3-wal", "history.sqlite3-shm", "spending.json"} <= modes.keys()
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}
