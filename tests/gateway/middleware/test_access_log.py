"""The access log: one event and one line for every request, however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import anyio
import pytest
from fakes.requests import FakeWriter, make_context, target

from hostler.adapters.canonical import Usage
from hostler.adapters.errors import (
    BackendRejected,
    ClientDisconnected,
    GatewayError,
    ModelNotFound,
    RequestCancelled,
    ShuttingDown,
)
from hostler.gateway.context import RequestContext
from hostler.gateway.events import Bus, RequestFinished
from hostler.gateway.middleware.access_log import AccessLogMiddleware

pytestmark = pytest.mark.anyio


async def finished(context: RequestContext, call_next: Callable[[], Awaitable[None]]) -> RequestFinished:
    """The event of a request that does `call_next`; the error it ends with is swallowed."""
    bus, published, logged = Bus(), [], []
    bus.listen(published.append)
    middleware = AccessLogMiddleware(cast(Any, None), bus=bus, log=logged.append, clock=lambda: 112.0, wall=lambda: 1e9)
    with anyio.CancelScope():
        try:
            await middleware.dispatch(context, call_next)
        except (Exception, asyncio.CancelledError):
            pass
    assert published == logged
    [event] = logged
    return event


def raising(error: BaseException) -> Callable[[], Awaitable[None]]:
    async def call_next() -> None:
        raise error

    return call_next


async def test_an_answered_request_is_described_by_its_last_attempt_and_the_sums_of_all() -> None:
    writer = FakeWriter()
    context = make_context(writer=writer, started_at=100.0)
    context.model = "m"

    async def call_next() -> None:
        first = context.begin_attempt(target("pc"), hop=0, now=100.0)
        first.seconds, first.outcome, first.queue_s, first.cost = 1.0, "unreachable", 0.5, 0.25
        context.failed_hops, context.reason = (("pc", "unreachable"),), "pc: unreachable"
        second = context.begin_attempt(target("cloud"), hop=1, now=101.0)
        second.seconds, second.outcome, second.queue_s, second.switch_s = 11.0, "answered", 1.0, 2.0
        second.first_token_at, second.cost = 105.0, 0.5
        second.usage = Usage(prompt_tokens=7, cached_tokens=3, completion_tokens=5)
        writer.status = 200

    event = await finished(context, call_next)
    assert (event.id, event.at, event.protocol, event.operation, event.client) == (
        "req-1",
        1e9,
        "openai",
        "chat",
        "anna",
    )
    assert (event.outcome, event.status, event.seconds, event.code) == ("ok", 200, 12.0, "")
    assert (event.requested_model, event.model, event.backend, event.hop) == ("m", "m", "cloud", 1)
    assert (event.queue_s, event.switch_s, event.first_token_s, event.cost) == (1.5, 2.0, 5.0, 0.75)
    assert (event.prompt_tokens, event.cached_tokens, event.completion_tokens) == (7, 3, 5)
    assert [(each.backend, each.outcome) for each in event.attempts] == [("pc", "unreachable"), ("cloud", "answered")]
    assert [(each.backend, each.reason) for each in event.failed_hops] == [("pc", "unreachable")]
    assert (event.reason, event.streamed) == ("pc: unreachable", True)


async def test_a_request_that_reached_no_backend_has_none() -> None:
    event = await finished(make_context(), raising(ModelNotFound("there is no such model")))
    assert (event.outcome, event.status, event.code) == ("failed", 404, "model_not_found")
    assert (event.backend, event.hop, event.attempts, event.first_token_s, event.cost) == (None, 0, (), None, None)
    assert event.reason == "there is no such model"


@pytest.mark.parametrize(("committed", "outcome"), [(False, "failed"), (True, "broken")])
async def test_an_error_after_the_first_token_is_broken(committed: bool, outcome: str) -> None:
    writer = FakeWriter()
    writer.committed = committed
    assert (await finished(make_context(writer=writer), raising(GatewayError("x")))).outcome == outcome


async def test_once_the_status_is_sent_the_event_has_the_errors_own() -> None:
    writer = FakeWriter()
    writer.started, writer.status = True, 200
    rejected = BackendRejected("x", backend="pc", wire="openai", backend_status=418, headers={}, body=b"")
    assert (await finished(make_context(writer=writer), raising(rejected))).status == 418


async def test_an_unforeseen_exception_is_named_but_not_quoted() -> None:
    event = await finished(make_context(), raising(KeyError("a secret")))
    assert (event.outcome, event.status, event.code) == ("failed", 500, GatewayError.code)
    assert event.reason == "KeyError in the gateway"


@pytest.mark.parametrize(
    ("reason", "outcome", "status"),
    [
        (ClientDisconnected("x"), "client_disconnected", 499),
        (RequestCancelled("x"), "cancelled", 499),
        (ShuttingDown("x"), "failed", 503),
        (None, "failed", 503),
    ],
)
async def test_a_cancelled_request_says_who_cancelled_it(
    reason: GatewayError | None, outcome: str, status: int
) -> None:
    context = make_context()
    context.cancel_reason = reason
    event = await finished(context, raising(asyncio.CancelledError()))
    assert (event.outcome, event.status) == (outcome, status)
