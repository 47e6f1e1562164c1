"""Completion in the shell, and what a service without a terminal writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from system.command import hostler
from system.house import FAKE_ENGINE

from hostler.gateway.auth import keys


def completed(folder: Path, words: str) -> list[str]:
    """What bash offers for the last word."""
    environ = {
        **os.environ,
        "HOSTLER_CONFIG": str(folder / "hostler.yaml"),
        "_HOSTLER_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    code = "import sys; sys.argv = ['hostler']; from hostler.gateway.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environ, cwd=folder, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("hostler sw", ["switch"]),
        ("hostler switch ", ["alpha", "first", "beta"]),
        ("hostler switch a", ["alpha"]),
        ("hostler unp", ["unpin"]),
        ("hostler pin b", ["beta"]),
        ("hostler pull alpha ", ["first", "beta"]),
        ("hostler logs f", ["first"]),
        ("hostler switch x", []),
    ],
)
def test_the_shell_completes_commands_and_models(tmp_path: Path, words: str, offered: list[str]) -> None:
    profiles = {"alpha": {"model": "/no.gguf", "aliases": ["first"]}, "beta": {"model": "/no.gguf"}}
    (tmp_path / "hostler.yaml").write_text(json.dumps({"profiles": profiles}))
    assert completed(tmp_path, words) == offered


def test_a_broken_file_does_not_disturb_who_types(tmp_path: Path) -> None:
    (tmp_path / "hostler.yaml").write_text("gateway: [")
    assert completed(tmp_path, "hostler switch a") == []


def ask(address: str, key: str, path: str, body: dict[str, Any] | None = None) -> int:
    request = urllib.request.Request(address + path, None if body is None else json.dumps(body).encode())
    request.add_header("Authorization", f"Bearer {key}")
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.mark.parametrize("by", ["setting", "option"])
def test_a_service_logs_json_with_requests_and_audit_lines(tmp_path: Path, by: str) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"not read by the scripted engine")
    key_file = tmp_path / "keys"
    key = keys.add(key_file, "anna", ("infer",))
    logging = {"logging": {"format": "json"}} if by == "setting" else {}
    document = {
        "gateway": {"listen": ["127.0.0.1:0"], "api_keys_file": str(key_file), **logging},
        "supervisor": {"engine": f"{sys.executable} -I -S {FAKE_ENGINE}"},
        "profiles": {"a": {"model": str(model)}},
    }
    path = tmp_path / "hostler.yaml"
    path.write_text(json.dumps(document))
    more = [] if by == "setting" else ["--log-format", "json"]
    names = ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "HOSTLER_CACHE")
    environ = {name: str(tmp_path / name.lower()) for name in names}
    with hostler("up", "--config", str(path), *more, errors=tmp_path / "log", environ=environ) as running:
        chat = {"model": "a", "messages": [{"role": "user", "content": "Hello"}]}
        assert ask(running.address, key, "/v1/chat/completions", chat) == 200
        assert ask(running.address, key, "/admin/load", {"model": "a"}) == 403
        running.stop()
        lines = [json.loads(line) for line in running.log.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    (request,) = [line["request"] for line in lines if "request" in line]
    assert (request["client"], request["model"], request["status"]) == ("anna", "a", 200)
    (audit,) = [line["audit"] for line in lines if "audit" in line]
    assert (audit["key"], audit["path"], audit["scope"]) == ("anna", "/admin/load", "operate")
