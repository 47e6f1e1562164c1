"""A chain to test in: a gateway in this event loop, and scripted backends on loopback."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
from fakes.openrouter import Router
from system.house import data_events

from hostler.gateway.app import Gateway
from hostler.gateway.config import read
from hostler.gateway.events import Event, RequestFinished
from hostler.gateway.server.server import bind


class OpenChain:
    """A running gateway and what it published."""

    def __init__(self, gateway: Gateway, http: httpx.AsyncClient) -> None:
        self.gateway = gateway
        self.http = http
        self.events: list[Event] = []
        gateway.bus.listen(self.events.append)

    @property
    def finished(self) -> list[RequestFinished]:
        """The requests that have ended."""
        return [event for event in self.events if isinstance(event, RequestFinished)]

    async def until(self, condition: Callable[[], object], seconds: float = 5.0) -> None:
        """Wait for something that the other side of a socket does."""
        with anyio.fail_after(seconds):
            while not condition():  # noqa: ASYNC110 - a socket's other end tells nobody
                await anyio.sleep(0.01)

    async def ask(self, *, stream: bool = False, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        """An answer, read to its end."""
        body = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "Hello"}], **more}
        return await self.http.post("/v1/chat/completions", json=body, headers=headers)

    def streamed(self, **more: Any) -> AbstractAsyncContextManager[httpx.Response]:
        """A streamed answer."""
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hello"}], **more}
        return self.http.stream("POST", "/v1/chat/completions", json=body)


def plain(router: Router, **more: Any) -> dict[str, Any]:
    """The settings of a scripted backend: in the house, unless `local` says otherwise."""
    return {
        "kind": "openai",
        "url": router.url,
        "models": {"*": f"{router.name}/model", "m": f"{router.name}/m"},
        **more,
    }


def said(response: httpx.Response) -> str:
    """The words of an answer, streamed or whole."""
    if response.headers["content-type"].startswith("application/json"):
        return str(response.json()["choices"][0]["message"]["content"])
    events = data_events(response.text)
    choices = [choice for event in events if "error" not in event for choice in event["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def error_in(response: httpx.Response) -> dict[str, Any] | None:
    """The error within an answer, streamed or whole."""
    if response.headers["content-type"].startswith("application/json"):
        return response.json().get("error")  # type: ignore[no-any-return]
    return next((event["error"] for event in data_events(response.text) if "error" in event), None)


@asynccontextmanager
async def open_chain(
    tmp_path: Path, backends: dict[str, Any], *, history: Path | None = None, **more: Any
) -> AsyncIterator[OpenChain]:
    """A gateway over these backends, in their order. With a `history` it remembers."""
    gateway = {
        "listen": ["127.0.0.1:0"],
        "timeouts": {"connect_s": 1, "first_byte_s": 1, "between_bytes_s": 0.5},
        "probing": {"every_s": 3600, "down_every_s": 0.1},
        "spending": {"file": str(tmp_path / "spending.json")},
        **more.pop("gateway", {}),
    }
    path = tmp_path / "hostler.yaml"
    path.write_text(json.dumps({"gateway": gateway, "backends": backends, **more}))
    subject = Gateway(read(path).settings, history=history)
    sockets = bind([("127.0.0.1", 0)], "gateway.listen")
    url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    started, ended = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def serve() -> None:
            await subject.run(sockets, started=started.set)
            ended.set()

        tasks.start_soon(serve)
        await started.wait()
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits, trust_env=False) as http:
            yield OpenChain(subject, http)
        subject.stop()
        subject.stop()
        await ended.wait()
        tasks.cancel_scope.cancel()
