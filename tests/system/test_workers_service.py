"""Worker processes as services run them: renewed certificates, sockets of systemd, and limits over a cluster."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fakes.certificates import Pair, make_pair
from fakes.redis_server import RedisServer, needs_redis
from system.cluster_programs import Cluster, until
from system.hostler_process import HostlerProcess, run_hostler
from system.several_gateways import GatewayProgram

from hostler.gateway.auth import keys
from hostler.gateway.context import KeyRules

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]

_AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "hostler.gateway", *sys.argv[2:]])
"""


def write(folder: Path, **gateway: Any) -> str:
    """The configuration file of a gateway with two workers."""
    document = {
        "gateway": {"listen": ["127.0.0.1:0"], "workers": 2, **gateway},
        "backends": {"b": {"kind": "openai", "url": "http://127.0.0.1:1", "models": {"*": "m"}}},
    }
    path = folder / "hostler.yaml"
    path.write_text(json.dumps(document))
    return str(path)


def environ(folder: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(folder / "state"), "XDG_CONFIG_HOME": str(folder / "config")}


def served_certificates(hostler: HostlerProcess) -> set[str]:
    """The certificates that twelve new connections get, some of them from each worker."""
    host, _, port = hostler.address.rpartition("/")[2].partition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    found = set()
    for _ in range(12):
        with socket.create_connection((host, int(port)), timeout=20) as raw, context.wrap_socket(raw) as connection:
            found.add(ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True) or b""))
    return found


def text_of(pair: Pair) -> str:
    return Path(pair.cert).read_text()


def break_it(pair: Pair) -> None:
    Path(pair.cert).write_text("no certificate")


def replace(pair: Pair, other: Pair) -> None:
    Path(pair.cert).write_text(Path(other.cert).read_text())
    Path(pair.key).write_text(Path(other.key).read_text())


async def test_all_workers_serve_a_renewed_certificate_and_none_a_broken_one(tmp_path: Path) -> None:
    pair, renewed = make_pair(tmp_path, "served"), make_pair(tmp_path, "renewed")
    before, after = text_of(pair), text_of(renewed)
    file = write(tmp_path, tls={"cert": pair.cert, "key": pair.key})
    with run_hostler(
        "gateway", "--config", file, "--plain", errors=tmp_path / "log", environ=environ(tmp_path)
    ) as hostler:

        async def served() -> set[str]:
            return await anyio.to_thread.run_sync(served_certificates, hostler)

        assert await served() == {before}
        break_it(pair)
        with anyio.fail_after(60):
            while hostler.log.count("keeping the previous certificate") < 2:  # noqa: ASYNC110 - a file
                await anyio.sleep(0.05)
        assert await served() == {before}
        replace(pair, renewed)
        with anyio.fail_after(60):
            while await served() != {after}:  # noqa: ASYNC110 - another process
                await anyio.sleep(0.05)
        assert await served() == {after}


@contextmanager
def from_systemd(folder: Path, sock: socket.socket, file: str) -> Iterator[subprocess.Popen[bytes]]:
    """A gateway on a socket that a socket unit hands over, until the context ends."""
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _AS_SYSTEMD, str(sock.fileno()), "gateway", "--config", file, "--plain"],
            pass_fds=[sock.fileno()],
            env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **environ(folder)},
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()


def connected(place: tuple[str, int]) -> list[socket.socket]:
    """Clients whose connections nobody has accepted yet, and whose requests are sent."""
    clients = [socket.create_connection(place, timeout=120) for _ in range(8)]
    for each in clients:
        each.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    return clients


def answers_of(clients: list[socket.socket]) -> set[bytes]:
    """The first lines of their answers, which are read to their ends."""
    found = set()
    for each in clients:
        with each, each.makefile("rb") as stream:
            found.add(stream.read().partition(b"\r\n")[0])
    return found


def log_in(folder: Path) -> str:
    return (folder / "log").read_text()


async def test_workers_serve_a_socket_of_systemd_and_a_restart_refuses_nobody(tmp_path: Path) -> None:
    file = write(tmp_path)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(64)
        for starts in (1, 2):
            waiting = connected(sock.getsockname())  # before there is any process, and between two of them
            with from_systemd(tmp_path, sock, file) as process:
                assert await anyio.to_thread.run_sync(answers_of, waiting) == {b"HTTP/1.1 200 OK"}
                with anyio.fail_after(60):
                    while log_in(tmp_path).count("2 workers serve models") != starts:  # noqa: ASYNC110 - a file
                        await anyio.sleep(0.05)
                others = connected(sock.getsockname())
                assert await anyio.to_thread.run_sync(answers_of, others) == {b"HTTP/1.1 200 OK"}
                assert process.poll() is None
            assert process.returncode == 0
    assert "Traceback" not in log_in(tmp_path)


@needs_redis
async def test_limits_of_keys_hold_over_all_workers_of_all_gateways(
    cluster: Cluster, server: RedisServer, tmp_path: Path
) -> None:
    bob = keys.add(tmp_path / "keys", "bob", ["infer"], rules=KeyRules(tokens_per_day=10_000, requests_per_minute=7))
    gateways = [await cluster.gateway(name, workers=2) for name in ("one", "two")]
    await cluster.host("attic", "a")
    for gateway in gateways:
        await until(gateway, lambda hosts: hosts == {"attic": True})
        await gateway.until_known("a")
    answers: list[int] = []

    async def ask(gateway: GatewayProgram) -> None:
        body = {"model": "a", "messages": [{"role": "user", "content": "Hello"}]}
        async with httpx.AsyncClient(base_url=gateway.running.address, timeout=60, trust_env=False) as http:
            answer = await http.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {bob}"})
            answers.append(answer.status_code)

    async with anyio.create_task_group() as tasks:
        for number in range(24):  # each on a connection of its own, and so at any worker
            tasks.start_soon(ask, gateways[number % 2])
    assert sorted(answers) == [200] * 7 + [429] * 17
