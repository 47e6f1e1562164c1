"""Gateways and supervisors of different releases: who refuses whom, and an upgrade of both under load."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import httpx
import pytest
from fakes.fake_openrouter import FakeOpenRouter
from fakes.ports import free_port
from fakes.tcp_proxy import proxy_to
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from system.fallback_chain import RunningChain, openai_backend, start_chain
from system.running_gateway import remote_supervisor

from hostler.gateway.server.server import Server, bind

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def old_supervisor(port: int) -> AsyncIterator[None]:
    """A supervisor from before the connections of gateways: it has no such route."""

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    app: Any = Starlette(routes=[Route("/healthz", healthz)])
    sockets = bind([("127.0.0.1", port)], "")
    started = anyio.Event()
    server = Server(cast(Any, app), drain_s=0.1, started_callback=started.set)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, sockets)
        await started.wait()
        yield
        server.stop()
        server.stop()


class ChatLoad:
    """Clients that ask one question after the other, and their answers."""

    def __init__(self, chain: RunningChain) -> None:
        self._chain = chain
        self._running = 0
        self._stopping = False
        self.answers: list[httpx.Response] = []

    async def client(self) -> None:
        self._running += 1
        while not self._stopping:
            self.answers.append(await self._chain.chat())
        self._running -= 1

    async def answered_by(self, name: str) -> None:
        """Wait for an answer of this backend."""
        await self._chain.until(
            lambda: self.answers and self.answers[-1].headers.get("x-hostler-backend") == name, seconds=60
        )

    async def stop(self) -> None:
        """Wait for the last answers."""
        self._stopping = True
        await self._chain.until(lambda: not self._running, seconds=60)

    @property
    def errors(self) -> list[str]:
        return [answer.text for answer in self.answers if answer.status_code != 200]


def supervised(port: int, **more: Any) -> dict[str, Any]:
    return {"kind": "supervisor", "url": f"http://127.0.0.1:{port}", "token": "between-hosts", **more}


async def test_gateways_first_and_then_supervisors_loses_no_request(
    cloud: FakeOpenRouter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    backends = {"one": supervised(port), "cloud": openai_backend(cloud)}
    async with start_chain(tmp_path, backends) as chain, anyio.create_task_group() as clients:
        chat = ChatLoad(chain)
        async with old_supervisor(port):
            await chain.until(lambda: "is of an older release" in caplog.text)
            for _ in range(3):
                clients.start_soon(chat.client)
            await chat.answered_by("cloud")
        async with remote_supervisor(tmp_path / "one", {"m": {}}, port=port):
            await chat.answered_by("one")
            await chat.stop()
    assert chat.errors == []
    assert caplog.text.count("is of an older release") == 1


async def test_without_another_backend_requests_wait_for_the_new_supervisor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port, answers = free_port(), list[httpx.Response]()
    backends = {"one": supervised(port, models={"m": "m"})}
    async with start_chain(tmp_path, backends) as chain, anyio.create_task_group() as clients:

        async def ask() -> None:
            answers.append(await chain.chat())

        async with old_supervisor(port):
            await chain.until(lambda: "is of an older release" in caplog.text)
            clients.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
        async with remote_supervisor(tmp_path / "one", {"m": {}}, port=port):
            await chain.until(lambda: answers, seconds=60)
    assert [answer.status_code for answer in answers] == [200]


@pytest.mark.parametrize("dripping", [False, True])
async def test_requests_that_wait_when_a_supervisor_stops_are_served_by_the_next_one(
    tmp_path: Path, dripping: bool
) -> None:
    flag, port, answers = tmp_path / "go", free_port(), list[httpx.Response]()
    script = {"m": {"script": {"answer_when": str(flag), "chunks": 1}}}
    async with (
        proxy_to(f"http://127.0.0.1:{port}") as proxy,
        remote_supervisor(tmp_path / "one", script, port=port) as old,
        start_chain(tmp_path, {"one": supervised(proxy.port, models={"m": "m"})}) as chain,
        anyio.create_task_group() as clients,
    ):

        async def ask() -> None:
            answers.append(await chain.chat())

        for _ in range(6):
            clients.start_soon(ask)
        await chain.until(lambda: old.leases.host.waiting == 5)
        if dripping:
            proxy.drip()
        old.leases.close()
        await chain.until(lambda: not chain.app.status().hosts[0].reachable)
        flag.touch()
        await old.leases.drained(20)
        await old.stop_listening()
        proxy.restore()
        next_port = free_port()
        proxy.point_to(next_port)
        async with remote_supervisor(tmp_path / "two", script, port=next_port):
            await chain.until(lambda: len(answers) == 6, seconds=60)
    assert [answer.text for answer in answers if answer.status_code != 200] == []


async def test_a_supervisor_that_is_replaced_loses_no_request(cloud: FakeOpenRouter, tmp_path: Path) -> None:
    script = {"m": {"script": {"chunk_delay": 0.01}}}
    port = free_port()
    backends = {"one": supervised(port), "cloud": openai_backend(cloud)}
    async with start_chain(tmp_path, backends) as chain, anyio.create_task_group() as clients:
        chat = ChatLoad(chain)
        async with remote_supervisor(tmp_path / "one", script, port=port) as old:
            for _ in range(3):
                clients.start_soon(chat.client)
            await chat.answered_by("one")
            old.leases.close()
            await old.leases.drained(20)
            await chat.answered_by("cloud")
        async with remote_supervisor(tmp_path / "two", script, port=port):
            await chat.answered_by("one")
            await chat.stop()
    assert chat.errors == []
