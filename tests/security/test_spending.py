"""The daily limit holds against many requests at once, clients that leave, crashes, and backends that lie."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from security.hostile_backend import BackendRequest, chat, gateway_process, hostile_backend

pytestmark = pytest.mark.anyio

COST = 0.2
LIMIT = 0.5
WORD = b'data: {"choices": [{"index": 0, "delta": {"content": "word "}}]}\n\n'


def backends(url: str, **more: Any) -> dict[str, Any]:
    return {"cloud": {"kind": "openai", "url": url, "local": False, "models": {"m": "m"}, **more}}


def limited(folder: Path) -> dict[str, Any]:
    return {"spending": {"daily_limit": LIMIT, "file": str(folder / "spending.json")}}


def day(folder: Path) -> dict[str, Any]:
    """The file's contents."""
    return json.loads((folder / "spending.json").read_text())["value"]  # type: ignore[no-any-return]


async def paid(request: BackendRequest) -> None:
    await anyio.sleep(0.05)
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "cost": COST}
    choice = {"index": 0, "message": {"content": "word"}, "finish_reason": "stop"}
    await request.whole(json.dumps({"choices": [choice], "usage": usage}).encode())


@pytest.mark.parametrize("priced", [False, True])
async def test_sixty_requests_at_once_stay_within_the_limit(tmp_path: Path, priced: bool) -> None:
    prices = {"prices": {"*": {"input": 1.0, "output": 2.0}}} if priced else {}
    async with hostile_backend() as backend:
        backend.answer = paid
        async with gateway_process(tmp_path, backends(backend.url, **prices), gateway=limited(tmp_path)) as gateway:
            statuses: list[int] = []

            async def ask() -> None:
                answer = await chat(gateway.http, "openai")
                statuses.append(answer.status_code)
                assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1

            for _ in range(3):
                async with anyio.create_task_group() as tasks:
                    for _ in range(20):
                        tasks.start_soon(ask)
            assert 0 < statuses.count(200) * COST <= LIMIT
            assert statuses.count(200) == len(backend.requests)
            spent = (await gateway.http.get("/admin/status")).json()["chain"]["cost"]
            assert spent == pytest.approx(statuses.count(200) * COST)


async def test_clients_that_leave_are_counted_once_each(tmp_path: Path) -> None:
    async def endless(request: BackendRequest) -> None:
        await request.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not request.writer.is_closing():
            await request.send(b"%x\r\n%b\r\n" % (len(WORD), WORD))
            await anyio.sleep(0.01)

    gateway_settings = {"spending": {"daily_limit": 100, "file": str(tmp_path / "spending.json")}}
    async with (
        hostile_backend() as backend,
        gateway_process(tmp_path, backends(backend.url), gateway=gateway_settings) as gateway,
    ):
        backend.answer = paid
        await chat(gateway.http, "openai")
        backend.answer = endless
        for _ in range(20):
            body = {"model": "m", "stream": True, "messages": []}
            async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if "word" in line:
                        break
        with anyio.fail_after(10):
            while day(tmp_path)["answers"]["cloud"] < 21:  # noqa: ASYNC110 - a file of another process
                await anyio.sleep(0.05)
        assert day(tmp_path)["spent"]["cloud"] == pytest.approx(21 * COST)
        assert not day(tmp_path)["reserved"]


@pytest.mark.parametrize("priced", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_clients_that_leave_before_the_first_token_have_paid_for_their_prompt(
    tmp_path: Path, stream: bool, priced: bool
) -> None:
    asked = anyio.Event()

    async def never(_: BackendRequest) -> None:
        asked.set()
        await anyio.sleep(60)

    prices = {"prices": {"*": {"input": 1000.0, "output": 2000.0}}} if priced else {}
    gateway_settings = {"spending": {"daily_limit": 100, "file": str(tmp_path / "spending.json")}}
    async with (
        hostile_backend() as backend,
        gateway_process(tmp_path, backends(backend.url, **prices), gateway=gateway_settings) as gateway,
    ):
        backend.answer = never
        body = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "x" * 4000}]}
        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                await gateway.http.post("/v1/chat/completions", json=body)

            tasks.start_soon(ask)
            await asked.wait()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(10):
            while not day(tmp_path)["spent"]:  # noqa: ASYNC110 - a file of another process
                await anyio.sleep(0.05)
        assert day(tmp_path)["spent"]["cloud"] >= (1.0 if priced else 0.005)
        assert not day(tmp_path)["reserved"]


async def test_a_killed_gateway_has_spent_what_it_had_reserved(tmp_path: Path) -> None:
    asked = anyio.Event()

    async def never(request: BackendRequest) -> None:
        asked.set()
        await anyio.sleep(60)

    async with hostile_backend() as backend:
        async with gateway_process(tmp_path, backends(backend.url), gateway=limited(tmp_path)) as gateway:
            backend.answer = paid
            assert (await chat(gateway.http, "openai")).status_code == 200
            backend.answer = never
            async with anyio.create_task_group() as tasks:

                async def ask() -> None:
                    with pytest.raises(httpx.TransportError):
                        await chat(gateway.http, "openai")

                tasks.start_soon(ask)
                await asked.wait()
                gateway.process.send_signal(signal.SIGKILL)
        async with gateway_process(tmp_path, backends(backend.url), gateway=limited(tmp_path)) as gateway:
            backend.answer = paid
            spent = (await gateway.http.get("/admin/status")).json()["chain"]["cost"]
            assert spent == pytest.approx(2 * COST)
            assert (await chat(gateway.http, "openai")).status_code == 503
