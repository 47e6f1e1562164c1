"""Requests that a worker passes on reach the main process as they came, and their answers the client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from hostler.gateway.asgi import ASGIApp
from hostler.gateway.server.server import Server, bind
from hostler.gateway.workers.forwarding import HEADER, ForwardedMiddleware, Forwarder

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def served(app: ASGIApp, address: tuple[str, int]) -> AsyncIterator[str]:
    """Serve until the context ends; yields the URL of a TCP address."""
    sockets = bind([address], "the address of the test")
    name = sockets[0].getsockname()
    started, ended = anyio.Event(), anyio.Event()
    server = Server(app, drain_s=1.0, started_callback=started.set)

    async def serve() -> None:
        await server.serve(sockets)
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        await started.wait()
        try:
            yield f"http://127.0.0.1:{name[1]}" if address[1] == 0 and not isinstance(name, str) else ""
        finally:
            server.stop()
            server.stop()
            with anyio.CancelScope(shield=True):
                await ended.wait()


class MainProcess:
    """Answers what a worker passes on, and remembers the last scope."""

    def __init__(self) -> None:
        self.scope: dict[str, Any] = {}
        self.left = anyio.Event()
        self.asked = anyio.Event()
        routes = [
            Route("/echo", self.echo, methods=["GET", "POST", "HEAD"]),
            Route("/cookie", self.cookie),
            Route("/broken", self.broken),
            Route("/endless", self.endless),
            Route("/silent", self.silent),
        ]
        self.app = Starlette(routes=routes)

    async def echo(self, request: Request) -> Response:
        self.scope = dict(request.scope)
        return JSONResponse({"query": request.url.query, "body": (await request.body()).decode()})

    async def cookie(self, request: Request) -> Response:
        response = Response("", status_code=204)
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    async def broken(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"half of "
            raise LookupError("on purpose")

        return StreamingResponse(pieces())

    async def silent(self, request: Request) -> Response:
        self.asked.set()
        await anyio.sleep_forever()
        raise AssertionError("not reached")

    async def endless(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"more"
                    await anyio.sleep(0.01)
            finally:
                self.left.set()

        return StreamingResponse(pieces())


@asynccontextmanager
async def worker(folder: Path, main: MainProcess, secret: str = "secret") -> AsyncIterator[httpx.AsyncClient]:
    path = str(folder / "main")
    async with (
        served(ForwardedMiddleware(main.app, secret="secret"), (path, 0)),
        served(Forwarder(path, secret), ("127.0.0.1", 0)) as url,
        httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as http,
    ):
        yield http


async def test_a_request_arrives_as_it_came(tmp_path: Path) -> None:
    main = MainProcess()
    async with worker(tmp_path, main) as http:
        answer = await http.post("/echo?a=%20b", content=b"x" * 300_000, headers={"X-Own": "1", HEADER.decode(): "no"})
        client = http._transport._pool.connections[0]._connection._network_stream  # type: ignore[attr-defined]
        assert main.scope["client"] == client.get_extra_info("client_addr")[:2]
        assert main.scope["server"] == client.get_extra_info("server_addr")[:2]
    assert answer.json() == {"query": "a=%20b", "body": "x" * 300_000}
    headers = dict(main.scope["headers"])
    assert headers[b"x-own"] == b"1"
    assert HEADER not in headers
    assert len(answer.headers.get_list("date")) == 1


async def test_a_body_in_pieces_and_no_body_arrive(tmp_path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"piece "

    async with worker(tmp_path, MainProcess()) as http:
        assert (await http.post("/echo", content=pieces())).json()["body"] == "piece piece piece "
        assert (await http.get("/echo")).json()["body"] == ""
        head = await http.head("/echo")
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "22")
        assert (await http.get("/nothing")).status_code == 404


async def test_cookies_stay_apart(tmp_path: Path) -> None:
    async with worker(tmp_path, MainProcess()) as http:
        assert len((await http.get("/cookie")).headers.get_list("set-cookie")) == 2


async def test_an_answer_that_breaks_off_does_so_for_the_client(tmp_path: Path) -> None:
    async with worker(tmp_path, MainProcess()) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get("/broken")


@pytest.mark.parametrize("path", ["/silent", "/endless"])
async def test_a_worker_that_stops_ends_what_has_no_answer_yet_with_an_error(tmp_path: Path, path: str) -> None:
    main = MainProcess()
    answers: list[httpx.Response | httpx.RemoteProtocolError] = []
    async with (
        anyio.create_task_group() as tasks,
        httpx.AsyncClient(timeout=60, trust_env=False) as http,
        served(ForwardedMiddleware(main.app, secret="secret"), (str(tmp_path / "main"), 0)),
    ):
        async with served(Forwarder(str(tmp_path / "main"), "secret"), ("127.0.0.1", 0)) as url:
            asked = anyio.Event() if path == "/endless" else main.asked

            async def ask() -> None:
                try:
                    async with http.stream("GET", f"{url}{path}") as answer:
                        if answer.status_code == 200:
                            asked.set()
                        await answer.aread()
                        answers.append(answer)
                except httpx.RemoteProtocolError as error:
                    answers.append(error)

            tasks.start_soon(ask)
            await asked.wait()
        with anyio.fail_after(20):
            while not answers:  # noqa: ASYNC110 - an answer of another task
                await anyio.sleep(0.01)
    (answer,) = answers
    if path == "/endless":
        assert isinstance(answer, httpx.RemoteProtocolError)
    else:
        assert isinstance(answer, httpx.Response)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
        assert answer.headers["connection"] == "close"


async def test_a_client_that_leaves_is_gone_in_the_main_process(tmp_path: Path) -> None:
    main = MainProcess()
    async with worker(tmp_path, main) as http:
        async with http.stream("GET", "/endless") as answer:
            await anext(answer.aiter_raw())
        with anyio.fail_after(20):
            await main.left.wait()


async def test_only_workers_of_this_start_are_served(tmp_path: Path) -> None:
    async with worker(tmp_path, MainProcess(), secret="another start's") as http:
        assert (await http.get("/echo")).status_code == 403


async def test_a_main_process_that_cannot_be_reached_is_said_to_be_away(tmp_path: Path) -> None:
    async with (
        served(Forwarder(str(tmp_path / "nowhere"), "secret"), ("127.0.0.1", 0)) as url,
        httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as http,
    ):
        answer = await http.get("/echo")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "restarting" in json.loads(answer.content)["error"]["message"]
