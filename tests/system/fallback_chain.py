"""A gateway in the test's event loop in front of scripted backends on loopback."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
from fakes.fake_openrouter import FakeOpenRouter
from system.running_gateway import data_events

from hostler.gateway.app import Gateway
from hostler.gateway.config import read
from hostler.gateway.events import Event, RequestFinished
from hostler.gateway.server.server import bind

#: For backends that stall. All others may be as slow as a busy machine makes them.
IMPATIENT = {"timeouts": {"connect_s": 1, "first_byte_s": 1, "between_bytes_s": 0.5}}


class RunningChain:
    """A running gateway and the events it published."""

    def __init__(self, app: Gateway, http: httpx.AsyncClient) -> None:
        self.app = app
        self.http = http
        self.events: list[Event] = []
        app.bus.listen(self.events.append)

    @property
    def finished(self) -> list[RequestFinished]:
        """The requests that have finished."""
        return [event for event in self.events if isinstance(event, RequestFinished)]

    async def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        """Wait for an effect at the other end of a socket."""
        with anyio.fail_after(seconds):
            while not condition():  # noqa: ASYNC110 - the other end has no event to wait for
                await anyio.sleep(0.01)

    async def chat(self, *, stream: bool = False, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        """Request an answer and read it to its end."""
        body = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "Hello"}], **more}
        return await self.http.post("/v1/chat/completions", json=body, headers=headers)

    def stream(self, **more: Any) -> AbstractAsyncContextManager[httpx.Response]:
        """Request a streamed answer."""
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hello"}], **more}
        return self.http.stream("POST", "/v1/chat/completions", json=body)


def openai_backend(router: FakeOpenRouter, **more: Any) -> dict[str, Any]:
    """The configuration of a scripted backend; it counts as local unless `local` is false."""
    return {
        "kind": "openai",
        "url": router.url,
        "models": {"*": f"{router.name}/model", "m": f"{router.name}/m"},
        **more,
    }


def answer_text(response: httpx.Response) -> str:
    """The text of an answer, streamed or whole."""
    if response.headers["content-type"].startswith("application/json"):
        return str(response.json()["choices"][0]["message"]["content"])
    events = data_events(response.text)
    choices = [choice for event in events if "error" not in event for choice in event["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def fact(response: httpx.Response, name: str) -> str:
    """A fact about who answered: a header, or where headers left before that was known, what the stream's comments say."""
    if name in response.headers:
        return str(response.headers[name])
    found = re.findall(rf" {name}=(.*?)(?= x-hostler-|$)", response.text, re.MULTILINE)
    return str(found[-1])


def error_in(response: httpx.Response) -> dict[str, Any] | None:
    """The error within an answer, streamed or whole."""
    if response.headers["content-type"].startswith("application/json"):
        return response.json().get("error")  # type: ignore[no-any-return]
    return next((event["error"] for event in data_events(response.text) if "error" in event), None)


@asynccontextmanager
async def start_chain(
    tmp_path: Path, backends: dict[str, Any], *, history: Path | None = None, **more: Any
) -> AsyncIterator[RunningChain]:
    """Run a gateway with these backends as its chain, optionally with a history file."""
    gateway = {
        "listen": ["127.0.0.1:0"],
        "probing": {"every_s": 3600, "down_every_s": 0.1},
        "spending": {"file": str(tmp_path / "spending.json")},
        # On a busy machine an early error keeps its own status, too, where a test is not about progress.
        "switching": {"progress_after_s": 600},
        **more.pop("gateway", {}),
    }
    path = tmp_path / "hostler.yaml"
    path.write_text(json.dumps({"gateway": gateway, "backends": backends, **more}))
    app = Gateway(read(path).settings, history=history)
    sockets = bind([("127.0.0.1", 0)], "gateway.listen")
    url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    started, stopped = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def serve() -> None:
            await app.run(sockets, started=started.set)
            stopped.set()

        tasks.start_soon(serve)
        await started.wait()
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits, trust_env=False) as http:
            yield RunningChain(app, http)
        app.stop()
        app.stop()
        await stopped.wait()
        tasks.cancel_scope.cancel()
