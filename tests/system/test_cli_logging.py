"""The log of a service: JSON for programs, and output that is not read, which must not block anything."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.ports import free_port
from system.hostler_process import run_hostler
from system.running_gateway import FAKE_ENGINE

from hostler.gateway.auth import keys

PIPE_BYTES = 64 * 1024
FILES: dict[str, dict[str, Any]] = {
    "gateway": {"backends": {"lan": {"kind": "openai", "url": "http://127.0.0.1:9", "models": {"*": "m"}}}},
    "up": {"profiles": {"a": {"model": "/no.gguf"}}},
    "supervisor": {"profiles": {"a": {"model": "/no.gguf"}}},
}


class Started:
    """A process, and the end of the pipe from which its output could be read."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, pipe: int) -> None:
        self.process = process
        self.address = address
        self.pipe = pipe

    def until_healthy(self) -> None:
        for _ in range(400):
            try:
                httpx.get(f"{self.address}/healthz", timeout=20.0).raise_for_status()
            except httpx.ConnectError:
                assert self.process.poll() is None
                time.sleep(0.05)
            else:
                return
        raise AssertionError("it does not listen")

    def log_much(self) -> None:
        """Send requests that fail at once, until far more has been logged than a pipe holds."""
        body = {"model": "no-such-model-" + "x" * 150, "messages": [{"role": "user", "content": "Hello"}]}
        with httpx.Client(base_url=self.address, timeout=20.0) as client:
            for _ in range(4 * PIPE_BYTES // 300):
                # 503 while the gateway's only server has not been reached.
                assert client.post("/v1/nothing/chat/completions", json=body).status_code in (404, 503)
                assert client.post("/v1/messages/count_tokens", json=body).status_code in (400, 404, 503)


@contextmanager
def started(folder: Path, command: str, unread: str, *more: str, full: bool = False) -> Iterator[Started]:
    """`hostler COMMAND` with a pipe as stdout or stderr (`unread`) that is not read, and may be `full` already."""
    port = free_port()
    path = folder / "hostler.yaml"
    address = f"127.0.0.1:{port}"
    listen = {
        "gateway": {"listen": [address]},
        "supervisor": {"listen": address if command == "supervisor" else "127.0.0.1:0"},
    }
    path.write_text(json.dumps({**listen, **FILES[command]}))
    environ = {name: str(folder / name.lower()) for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "HOSTLER_CACHE")}
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    if full:
        os.write(theirs, b"x" * PIPE_BYTES)
    with (folder / "other").open("wb") as other:
        streams: dict[str, Any] = {"stdout": other, "stderr": other, unread: theirs}
        process = subprocess.Popen(
            [sys.executable, "-m", "hostler.gateway", command, "-c", str(path), *more],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environ},
            **streams,
        )
    os.close(theirs)
    try:
        yield Started(process, f"http://127.0.0.1:{port}", ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize("form", ["plain", "json"])
@pytest.mark.parametrize("command", ["gateway", "up"])
def test_an_unread_log_blocks_nothing(tmp_path: Path, command: str, form: str) -> None:
    with started(tmp_path, command, "stderr", "--log-format", form) as service:
        service.until_healthy()
        service.log_much()
        assert httpx.get(f"{service.address}/healthz", timeout=20.0).status_code == 200
        service.process.terminate()
        assert service.process.wait(40) == 0


@pytest.mark.parametrize("command", FILES)
@pytest.mark.parametrize("unread", ["stdout", "stderr"])
def test_a_pipe_that_is_full_from_the_start_blocks_nothing(tmp_path: Path, command: str, unread: str) -> None:
    with started(tmp_path, command, unread, full=True) as service:
        service.until_healthy()
        service.process.terminate()
        assert service.process.wait(40) == 0


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
    with run_hostler("up", "--config", str(path), *more, errors=tmp_path / "log", environ=environ) as running:
        chat = {"model": "a", "messages": [{"role": "user", "content": "Hello"}]}
        with httpx.Client(base_url=running.address, headers={"Authorization": f"Bearer {key}"}, timeout=30.0) as client:
            assert client.post("/v1/chat/completions", json=chat).status_code == 200
            assert client.post("/admin/load", json={"model": "a"}).status_code == 403
        running.stop()
        lines = [json.loads(line) for line in running.log.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    (request,) = [line["request"] for line in lines if "request" in line]
    assert (request["client"], request["model"], request["status"]) == ("anna", "a", 200)
    (audit,) = [line["audit"] for line in lines if "audit" in line]
    assert (audit["key"], audit["path"], audit["scope"]) == ("anna", "/admin/load", "operate")
