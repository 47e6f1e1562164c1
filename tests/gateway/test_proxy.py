"""Asking a backend: what its reader did not foresee is the backend's failure."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from hostler.adapters.base import Parser, Upstream, WireRequest
from hostler.adapters.canonical import ChatRequest, Origin, Output, ResponseHead
from hostler.adapters.errors import BackendBroken
from hostler.adapters.openai.upstream import OpenAIUpstream
from hostler.gateway.backends.prompt_reading import PromptSpeeds
from hostler.gateway.backends.transport import Backend, Endpoint, Timeouts
from hostler.gateway.context import Attempt, Target
from hostler.gateway.proxy import Proxy
from hostler.supervisor.contract import AnswerLimits

pytestmark = pytest.mark.anyio


class SurprisedParser(Parser):
    def start(self, head: ResponseHead) -> None: ...

    def feed(self, data: bytes) -> list[Any]:
        raise AttributeError(data)

    def finish(self) -> list[Any]:
        return []


class SurprisedUpstream(Upstream):
    wire = "openai"

    def build(self, *_: Any, **__: Any) -> WireRequest:
        return WireRequest(path="/")

    def parser(self, *_: Any, **__: Any) -> SurprisedParser:
        return SurprisedParser()


class OneAnswer:
    head = ResponseHead(media_type="text/event-stream")

    def __init__(self, *, complete: bool) -> None:
        self.complete = complete

    @asynccontextmanager
    async def send(self, *_: Any) -> AsyncIterator[OneAnswer]:
        yield self

    async def segments(self) -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"


def surprised_backend(transport: Any, timeouts: Timeouts | None = None) -> Backend:
    """A backend whose answers surprise their reader."""
    return Backend(
        name="b",
        upstream=SurprisedUpstream(),
        transport=transport,
        timeouts=timeouts or Timeouts(),
        endpoint=Endpoint(host="127.0.0.1", port=1, name="b"),
    )


def asking(**fields: Any) -> Any:
    """The context of a request to it; `fields` are those of the target."""
    origin = Origin(wire="openai", operation="chat", body=b"{}")
    attempt = Attempt(target=Target(backend="b", model="m", name_there="m", **fields))
    return SimpleNamespace(
        id="r",
        request=ChatRequest(origin=origin, model="m", output=Output(stream=True)),
        attempt=attempt,
        current=attempt,
        writer=SimpleNamespace(
            begin=lambda head: None, streaming=True, encoder=SimpleNamespace(encode=lambda chunk: b"")
        ),
    )


@pytest.mark.parametrize("complete", [False, True])
async def test_an_answer_that_surprises_its_reader_is_broken(complete: bool) -> None:
    backend, context = surprised_backend(OneAnswer(complete=complete)), asking()
    with pytest.raises(BackendBroken) as broken:
        await Proxy({"b": backend}, speeds=PromptSpeeds(), clock=lambda: 0.0).dispatch(context)
    assert broken.value.backend == "b"
    assert str(broken.value.__cause__) == "b'data: 1\\n\\n'", "the parser was not asked"


async def test_limits_of_a_profile_replace_those_of_its_backend() -> None:
    given: list[Timeouts] = []

    class Recording(OneAnswer):
        @asynccontextmanager
        async def send(self, *arguments: Any) -> AsyncIterator[OneAnswer]:
            given.append(arguments[-1])
            yield self

    limits = AnswerLimits(first_byte_s=7)
    backend = surprised_backend(Recording(complete=True), Timeouts(connect_s=1, first_byte_s=2, between_bytes_s=3))
    for each in (None, limits):
        with pytest.raises(BackendBroken):
            await Proxy({"b": backend}, speeds=PromptSpeeds(), clock=lambda: 0.0).dispatch(asking(limits=each))
    assert given == [backend.timeouts, Timeouts(connect_s=1, first_byte_s=7, between_bytes_s=3)]


class RecordedRequest(Exception):
    """What would have been sent."""


class RecordingTransport:
    def send(self, wire_request: WireRequest, *_: Any) -> Any:
        raise RecordedRequest(wire_request)


@pytest.mark.parametrize(
    ("slot", "body", "sent"),
    [
        (3, b'{"model":"m","messages":[]}', {"model": "m", "messages": [], "id_slot": 3}),
        (0, b'{"model":"m"}', {"model": "m", "id_slot": 0}),
        (3, b'{"model":"m","id_slot":1}', {"model": "m", "id_slot": 1}),
        (None, b'{"model":"m"}', {"model": "m"}),
    ],
)
async def test_a_request_names_the_slot_of_its_lease_unless_the_client_chose_one(
    slot: int | None, body: bytes, sent: dict[str, Any]
) -> None:
    recording: Any = RecordingTransport()
    backend = Backend(
        name="b",
        upstream=OpenAIUpstream(engine=True),
        transport=recording,
        timeouts=Timeouts(),
        endpoint=Endpoint(host="127.0.0.1", port=1, name="b"),
    )
    lease: Any = SimpleNamespace(slot=slot)
    attempt = Attempt(target=Target(backend="b", model="m", name_there="m"), lease=lease)
    request = ChatRequest(origin=Origin(wire="openai", operation="chat", body=body), model="m")
    context: Any = SimpleNamespace(
        id="r", request=request, attempt=attempt, current=attempt, writer=SimpleNamespace(streaming=False)
    )
    with pytest.raises(RecordedRequest) as recorded:
        await Proxy({"b": backend}, speeds=PromptSpeeds(), clock=lambda: 0.0).dispatch(context)
    assert json.loads(recorded.value.args[0].body) == sent
