"""A gateway whose socket outlives it, as with a socket unit: a restart refuses no connection."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import httpx
import pytest
from fakes.fake_openrouter import start_openrouter
from system.fallback_chain import answer_text, openai_backend

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

_AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "hostler.gateway", *sys.argv[2:]])
"""


@contextmanager
def gateway(folder: Path, sock: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
    """A gateway on this socket, until the context ends; its answers in progress end first."""
    environ = {**os.environ, "XDG_STATE_HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "HOSTLER_CONFIG": ""}
    command = [sys.executable, "-c", _AS_SYSTEMD, str(sock.fileno()), "gateway", "--config", str(folder / "g.yaml")]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, pass_fds=[sock.fileno()], env=environ, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)


async def test_clients_that_connect_during_a_restart_are_answered(tmp_path: Path) -> None:
    async with start_openrouter("lan") as lan:
        (tmp_path / "g.yaml").write_text(json.dumps({"backends": {"lan": openai_backend(lan)}}))
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen(128)
            url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            answers: list[str] = []
            body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}

            async def ask() -> None:
                # A connection of its own: a kept one ends with the process.
                async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
                    answers.append(answer_text(await http.post("/v1/chat/completions", json=body)))

            def leave(process: subprocess.Popen[bytes]) -> None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(40) == 0

            with gateway(tmp_path, sock) as first:
                await ask()
                await anyio.to_thread.run_sync(leave, first)
            async with anyio.create_task_group() as clients:
                for _ in range(5):
                    clients.start_soon(ask)  # while no gateway runs
                with gateway(tmp_path, sock):
                    with anyio.fail_after(60):
                        while len(answers) < 6:  # noqa: ASYNC110 - a process comes up
                            await anyio.sleep(0.02)
            assert answers == ["lan:One two three"] * 6


async def test_a_gateway_without_a_supervisor_lists_only_its_backends_models(tmp_path: Path) -> None:
    async with start_openrouter("lan") as lan:
        (tmp_path / "g.yaml").write_text(json.dumps({"backends": {"lan": openai_backend(lan)}}))
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen(128)
            url = f"http://127.0.0.1:{sock.getsockname()[1]}/healthz"
            with gateway(tmp_path, sock):
                async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
                    assert (await http.get(url)).status_code == 200
        log = (tmp_path / "log").read_text()
        assert "those of its backends" in log
        assert '"model": "m"' in log
        assert "smollm2" not in log
