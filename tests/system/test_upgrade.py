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
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from system.fallback_chain import openai_backend
from system.running_gateway import StartGateway, remote_supervisor

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


async def test_gateways_first_and_then_supervisors_loses_no_request(
    start_gateway: StartGateway, cloud: FakeOpenRouter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port, answers, done = free_port(), list[httpx.Response](), anyio.Event()
    backends = {
        "one": {"kind": "supervisor", "url": f"http://127.0.0.1:{port}", "token": "between-hosts"},
        "cloud": openai_backend(cloud),
    }
    async with start_gateway({}, backends=backends) as gateway, anyio.create_task_group() as clients:

        async def client() -> None:
            while not done.is_set():
                answers.append(await gateway.chat("m"))

        async def answered_by(name: str) -> None:
            with anyio.fail_after(30):
                while not (answers and answers[-1].headers.get("x-hostler-backend") == name):  # noqa: ASYNC110
                    await anyio.sleep(0.01)

        async with old_supervisor(port):
            await gateway.until(lambda: "is of an older release" in caplog.text)
            for _ in range(3):
                clients.start_soon(client)
            await answered_by("cloud")
        async with remote_supervisor(tmp_path / "one", {"m": {}}, port=port):
            await answered_by("one")
            done.set()
            await gateway.until_counts(0, 0)
    assert [answer.text for answer in answers if answer.status_code != 200] == []
    assert caplog.text.count("is of an older release") == 1


async def test_without_another_backend_requests_wait_for_the_new_supervisor(
    start_gateway: StartGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port, answers = free_port(), list[httpx.Response]()
    one = {"kind": "supervisor", "url": f"http://127.0.0.1:{port}", "token": "between-hosts", "models": {"m": "m"}}
    async with start_gateway({}, backends={"one": one}) as gateway, anyio.create_task_group() as clients:

        async def ask() -> None:
            answers.append(await gateway.chat("m"))

        async with old_supervisor(port):
            await gateway.until(lambda: "is of an older release" in caplog.text)
            clients.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
        async with remote_supervisor(tmp_path / "one", {"m": {}}, port=port):
            await gateway.until(lambda: answers)
    assert [answer.status_code for answer in answers] == [200]


async def test_a_supervisor_that_is_replaced_loses_no_request(
    start_gateway: StartGateway, cloud: FakeOpenRouter, tmp_path: Path
) -> None:
    answers, done = list[httpx.Response](), anyio.Event()
    script = {"m": {"script": {"chunk_delay": 0.01}}}
    port = free_port()
    backends = {
        "one": {"kind": "supervisor", "url": f"http://127.0.0.1:{port}", "token": "between-hosts"},
        "cloud": openai_backend(cloud),
    }
    async with start_gateway({}, backends=backends) as gateway, anyio.create_task_group() as clients:

        async def client() -> None:
            while not done.is_set():
                answers.append(await gateway.chat("m"))

        async def answered_by(name: str) -> None:
            with anyio.fail_after(30):
                while not (answers and answers[-1].headers.get("x-hostler-backend") == name):  # noqa: ASYNC110
                    await anyio.sleep(0.01)

        async with remote_supervisor(tmp_path / "one", script, port=port) as old:
            for _ in range(3):
                clients.start_soon(client)
            await answered_by("one")
            old.leases.close()
            await old.leases.drained(20)
            await answered_by("cloud")
        async with remote_supervisor(tmp_path / "two", script, port=port):
            await answered_by("one")
            done.set()
            await gateway.until_counts(0, 0)
    assert [answer.text for answer in answers if answer.status_code != 200] == []
