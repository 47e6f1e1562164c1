"""Output that nobody reads: neither the log nor the banner may block the gateway, and it still stops in time."""

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

PIPE_BYTES = 64 * 1024
FILES: dict[str, dict[str, Any]] = {
    "gateway": {"backends": {"box": {"kind": "openai", "url": "http://127.0.0.1:9", "models": {"*": "m"}}}},
    "up": {"profiles": {"a": {"model": "/no.gguf"}}},
}


class Started:
    """A process whose output goes into pipes that only the test reads."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, pipe: int) -> None:
        self.process = process
        self.address = address
        self.pipe = pipe

    def until_healthy(self) -> None:
        for _ in range(400):
            try:
                httpx.get(f"{self.address}/healthz", timeout=5.0).raise_for_status()
            except httpx.ConnectError:
                assert self.process.poll() is None
                time.sleep(0.05)
            else:
                return
        raise AssertionError("it does not listen")

    def log_much(self) -> None:
        """Requests that fail at once, until far more than a pipe holds has been logged."""
        body = {"model": "no-such-model-" + "x" * 150, "messages": [{"role": "user", "content": "Hello"}]}
        with httpx.Client(base_url=self.address, timeout=10.0) as client:
            for _ in range(4 * PIPE_BYTES // 300):
                assert client.post("/v1/nothing/chat/completions", json=body).status_code == 404
                assert client.post("/v1/messages/count_tokens", json=body).status_code in (400, 404)


@contextmanager
def started(folder: Path, command: str, unread: str, *more: str, full: bool = False) -> Iterator[Started]:
    """`hostler COMMAND` whose stdout or stderr is a pipe that nobody reads, `full` from the beginning."""
    port = free_port()
    path = folder / "hostler.yaml"
    path.write_text(json.dumps({"gateway": {"listen": [f"127.0.0.1:{port}"]}, **FILES[command]}))
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
@pytest.mark.parametrize("command", FILES)
def test_an_unread_log_blocks_nothing(tmp_path: Path, command: str, form: str) -> None:
    with started(tmp_path, command, "stderr", "--log-format", form) as hostler:
        hostler.until_healthy()
        hostler.log_much()
        assert httpx.get(f"{hostler.address}/healthz", timeout=2.0).status_code == 200
        hostler.process.terminate()
        assert hostler.process.wait(15) == 0


@pytest.mark.parametrize("command", FILES)
@pytest.mark.parametrize("unread", ["stdout", "stderr"])
def test_a_pipe_that_is_full_from_the_start_blocks_nothing(tmp_path: Path, command: str, unread: str) -> None:
    with started(tmp_path, command, unread, full=True) as hostler:
        hostler.until_healthy()
        hostler.process.terminate()
        assert hostler.process.wait(15) == 0
