"""Sockets that were opened for us: who may be listened to on them, and how their clients call us."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio
import httpx
import pytest
from system.running_gateway import StartGateway, remote_supervisor

from hostler.gateway.app import Gateway
from hostler.gateway.asgi import Receive, Scope, Send
from hostler.gateway.backend_settings import BackendSettings
from hostler.gateway.config import ConfigError, read
from hostler.gateway.server.server import Server
from hostler.gateway.settings import Settings
from hostler.supervisor.auth import SupervisorAuthMiddleware

_AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "hostler.gateway", *sys.argv[2:]])
"""

ALONE = Settings(backends={"b": BackendSettings(kind="openai", url="http://127.0.0.1:1", models={"*": "m"})})


@contextmanager
def bound(host: str, *, listening: bool = False) -> Iterator[socket.socket]:
    """A socket of this address; one of IPv6 takes clients of IPv4, too."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        if ":" in host:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, 0))
        if listening:
            sock.listen()
            sock.setblocking(False)
        yield sock


def handed(folder: Path, command: str, sock: socket.socket) -> subprocess.CompletedProcess[str]:
    """Run a command that cannot run, with a socket as a socket unit hands it over; without keys."""
    path = folder / "hostler.yaml"
    path.write_text(
        json.dumps(
            {
                "gateway": {"listen": ["127.0.0.1:0"]},
                "supervisor": {"listen": "127.0.0.1:0"},
                "backends": {"b": {"kind": "openai", "url": "http://127.0.0.1:1", "models": {"*": "m"}}},
                "profiles": {"a": {"model": "/nowhere.gguf"}},
            }
        )
    )
    return subprocess.run(
        [sys.executable, "-c", _AS_SYSTEMD, str(sock.fileno()), command, "--config", str(path)],
        pass_fds=[sock.fileno()],
        env={"XDG_CONFIG_HOME": str(folder), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize(
    ("command", "way_out"), [("up", "keys add"), ("gateway", "keys add"), ("supervisor", "supervisor.token")]
)
def test_an_inherited_socket_beyond_loopback_requires_keys(tmp_path: Path, command: str, way_out: str) -> None:
    with bound("0.0.0.0") as sock:  # not listening, so no connection is possible
        done = handed(tmp_path, command, sock)
    assert done.returncode == 2, done.stderr
    assert "refusing to listen on 0.0.0.0:" in done.stderr
    assert way_out in done.stderr


@pytest.mark.anyio
async def test_a_gateway_without_keys_serves_on_no_socket_beyond_loopback(tmp_path: Path) -> None:
    gateway = Gateway(ALONE)
    with bound("0.0.0.0") as sock, pytest.raises(ConfigError, match="without API keys"):
        await gateway.run([sock])


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["localhost", "127.0.0.2"])
@pytest.mark.parametrize("door", ["gateway", "supervisor"])
async def test_ipv4_clients_are_served_on_a_dual_stack_socket(door: str, name: str) -> None:
    started = anyio.Event()
    with bound("::ffff:127.0.0.2", listening=True) as sock:
        port = sock.getsockname()[1]
        if door == "gateway":
            gateway = Gateway(ALONE)
            serve, stop = partial(gateway.run, [sock], started=started.set), gateway.stop
        else:
            guard = SupervisorAuthMiddleware(nothing, tokens=(), allowed_hosts=(), open_paths=())
            server = Server(guard, drain_s=1.0, started_callback=started.set)
            serve, stop = partial(server.serve, [sock]), server.stop
        async with anyio.create_task_group() as tasks, httpx.AsyncClient(trust_env=False) as http:
            tasks.start_soon(serve)
            await started.wait()
            url = f"http://127.0.0.2:{port}/healthz"
            assert (await http.get(url, headers={"Host": f"{name}:{port}"})).status_code in (200, 204)
            assert (await http.get(url, headers={"Host": "evil.example"})).status_code == 421
            stop()


@pytest.mark.anyio
async def test_a_gateway_uses_a_supervisor_on_a_unix_socket(start_gateway: StartGateway, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    async with (
        remote_supervisor(tmp_path / "pc", {"a": {}, "b": {}}, socket=path) as pc,
        start_gateway({}, backends={"pc": pc.backend}) as gateway,
    ):
        for model in ("a", "b"):
            assert (await gateway.chat(model)).status_code == 200
        assert (await gateway.action("unload", model="b")).status_code == 200
        assert pc.starts() == ["a", "b"]
        await pc.stop_listening()
        await gateway.until_status(lambda hosts: not hosts["pc"]["reachable"])
        await pc.listen()
        await gateway.until_status(lambda hosts: hosts["pc"]["reachable"])
        assert (await gateway.chat("a")).status_code == 200
    assert BackendSettings(kind="supervisor", url=f"unix:{path}").shown_url == f"unix:{path}"


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ({"kind": "supervisor", "url": "unix:run/s"}, "must name the socket in full"),
        ({"kind": "openai", "url": "unix:/run/s"}, "must start with http:// or https://"),
    ],
)
def test_a_socket_is_named_in_full_and_only_of_supervisors(
    tmp_path: Path, backend: dict[str, str], message: str
) -> None:
    file = tmp_path / "hostler.yaml"
    file.write_text(json.dumps({"backends": {"pc": {**backend, "token": "t"}}}))
    with pytest.raises(ConfigError, match=message):
        read(file)
