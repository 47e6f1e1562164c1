"""Model info: lists of models are answered from the catalogue, and subscriptions receive what changes."""

from __future__ import annotations

from typing import Any, cast

import anyio
import msgspec
import pytest
from fakes.requests import FakeWriter, make_context

from hostler.adapters.canonical import ModelInfoRequest, Origin
from hostler.adapters.llamacpp.adapter import LlamaCppAdapter
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.gateway.context import RequestContext
from hostler.gateway.events import Bus, HostChanged
from hostler.gateway.middleware.model_info import ModelInfoMiddleware

pytestmark = pytest.mark.anyio


def listing(*names: str) -> ModelList:
    cards = tuple(ModelCard(name=name) for name in names)
    return ModelList(cards=cards, index={card.name: card for card in cards}, version="1")


def model_info(kind: str = "models", **fields: Any) -> ModelInfoRequest:
    origin = Origin(wire="openai", operation="models", body=b"", method=fields.pop("method", "GET"))
    return ModelInfoRequest(origin=origin, kind=cast(Any, kind), **fields)


async def unchanged() -> bool:
    return False


async def unreachable() -> None:
    raise AssertionError("must not be called")


async def test_a_list_of_models_is_answered_without_a_backend() -> None:
    writer = FakeWriter()
    middleware = ModelInfoMiddleware(cast(Any, None), listing=lambda: listing("a", "b"), refresh=unchanged, bus=Bus())
    await middleware.dispatch(make_context(model_info(), writer=writer), unreachable)
    assert writer.response is not None
    assert [each["id"] for each in msgspec.json.decode(writer.response.body)["data"]] == ["a", "b"]


async def test_a_request_for_one_model_notes_its_name() -> None:
    context = make_context(model_info("model", model="a"))
    middleware = ModelInfoMiddleware(cast(Any, None), listing=lambda: listing("a"), refresh=unchanged, bus=Bus())
    await middleware.dispatch(context, unreachable)
    assert context.model == "a"


async def test_a_model_that_a_server_has_since_a_moment_ago_is_shown() -> None:
    known = ["a"]

    async def refresh() -> bool:
        known.append("new")
        return True

    writer = FakeWriter()
    middleware = ModelInfoMiddleware(cast(Any, None), listing=lambda: listing(*known), refresh=refresh, bus=Bus())
    await middleware.dispatch(make_context(model_info("model", model="new"), writer=writer), unreachable)
    assert writer.response is not None
    assert msgspec.json.decode(writer.response.body)["id"] == "new"


async def test_everything_else_passes() -> None:
    called = []

    async def call_next() -> None:
        called.append(True)

    middleware = ModelInfoMiddleware(cast(Any, None), listing=listing, refresh=unchanged, bus=Bus())
    await middleware.dispatch(make_context(), call_next)
    assert called == [True]


class Subscribed:
    """A subscriber of llama.cpp's model events."""

    def __init__(self, *, ping_s: float = 60.0, method: str = "GET") -> None:
        self.bus = Bus()
        self.models = listing("a")
        self.writer = FakeWriter()
        self.context: RequestContext = make_context(model_info("watch", method=method), writer=self.writer)
        self.context.adapter = LlamaCppAdapter()
        self.middleware = ModelInfoMiddleware(
            cast(Any, None), listing=lambda: self.models, refresh=unchanged, bus=self.bus, ping_s=ping_s
        )

    async def run(self) -> None:
        await self.middleware.dispatch(self.context, unreachable)


async def test_a_subscription_receives_changes_until_the_bus_is_closed() -> None:
    subject = Subscribed()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(subject.run)
        await anyio.wait_all_tasks_blocked()
        first = len(subject.writer.events)
        subject.models = msgspec.structs.replace(
            subject.models, cards=(msgspec.structs.replace(subject.models.cards[0], state="loading"),)
        )
        subject.bus.publish(HostChanged(backend="pc", reachable=True))
        await anyio.wait_all_tasks_blocked()
        assert len(subject.writer.events) == first + 1
        assert not subject.writer.ended
        subject.bus.close()
    assert subject.writer.ended


async def test_a_silent_subscription_is_pinged() -> None:
    subject = Subscribed(ping_s=0.01)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(subject.run)
        with anyio.fail_after(20):
            while subject.writer.events.count(b":\n\n") < 2:  # noqa: ASYNC110 - pings come by the clock
                await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()


async def test_a_head_request_ends_at_once() -> None:
    subject = Subscribed(method="HEAD")
    await subject.run()
    assert subject.writer.ended
