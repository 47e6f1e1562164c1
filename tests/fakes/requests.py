"""Request contexts without a server: for tests of middleware at `dispatch(context, call_next)`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from hostler.adapters.base import WireResponse
from hostler.adapters.canonical import ChatRequest, Chunk, Origin, Output, Progress, Request, ResponseHead
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.gateway.context import Client, RequestContext, Target
from hostler.gateway.gateway_settings import SwitchingSettings
from hostler.gateway.heartbeat import Heartbeat

OPENAI = OpenAIAdapter()


class FakeEncoder:
    """Notes the model card it is bound to."""

    def __init__(self) -> None:
        self.card: Any = None

    def bind_model(self, card: Any) -> None:
        self.card = card


class FakeWriter:
    """Notes what is written instead of sending it."""

    def __init__(self, *, streaming: bool = True) -> None:
        self.streaming = streaming
        self.started = self.committed = self.ended = False
        self.status = 0
        self.encoder = FakeEncoder()
        self.beats: list[Progress] = []
        self.chunks: list[Chunk] = []
        self.events: list[bytes] = []
        self.response: WireResponse | None = None

    def begin(self, head: ResponseHead) -> None:
        self.status = head.status

    async def write(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)

    async def heartbeat(self, progress: Progress) -> None:
        self.beats.append(progress)

    async def respond(self, response: WireResponse) -> None:
        self.response, self.status, self.ended = response, response.status, True

    async def write_event(self, data: bytes, *, last: bool = False) -> None:
        self.events.append(data)
        self.ended = last

    async def end(self) -> None:
        self.ended = True


def chat(**fields: Any) -> ChatRequest:
    """A streamed chat request for the model `m`."""
    origin = Origin(wire="openai", operation="chat", body=fields.pop("body", b"{}"))
    return ChatRequest(origin=origin, **{"model": "m", "output": Output(stream=True), **fields})


def make_context(
    request: Request | None = None, *, writer: FakeWriter | None = None, started_at: float = 0.0, **fields: Any
) -> RequestContext:
    """The context of an OpenAI chat request, as the request context middleware makes it."""
    operation = next(each for each in OPENAI.operations if each.name == "chat")
    return RequestContext(
        request_id="req-1",
        adapter=OPENAI,
        operation=operation,
        request=request or chat(),
        writer=writer or FakeWriter(),  # type: ignore[arg-type]  # as much of a writer as middleware use
        client=fields.pop("client", Client(name="anna")),
        started_at=started_at,
        **fields,
    )


def target(backend: str = "pc", **fields: Any) -> Target:
    """The model `m` at a backend."""
    return Target(backend=backend, model="m", name_there=f"{backend}/m", **fields)


@asynccontextmanager
async def signs_of_life(context: RequestContext) -> AsyncIterator[None]:
    """Show what the request waits for every few milliseconds, as the request context middleware does."""
    settings = SwitchingSettings(progress_after_s=0.0, progress_every_s=0.01)
    heartbeat = Heartbeat(context, settings, anyio.current_time)
    heartbeat.start()
    try:
        yield
    finally:
        await heartbeat.stop()
