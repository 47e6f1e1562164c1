"""Switching: the lease around the attempt, one restart of a dead engine, and requests to unload."""

from __future__ import annotations

from typing import Any, cast

import anyio
import pytest
from fakes.leases import FakeHost, engine
from fakes.requests import FakeWriter, make_context, target

from hostler.adapters.canonical import LoadRequest, Origin, Usage
from hostler.adapters.errors import (
    AnswerTooLong,
    BackendBroken,
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ModelUnavailable,
)
from hostler.gateway.context import RequestContext
from hostler.gateway.middleware.switch_orchestration import SwitchingMiddleware
from hostler.supervisor.contract import AnswerLimits, PromptIdentity
from hostler.supervisor.scheduling.errors import EngineLost
from hostler.supervisor.scheduling.types import RevokeReason

pytestmark = pytest.mark.anyio


class Switching:
    """The middleware with a host, and the models it reported as used."""

    def __init__(self) -> None:
        self.host = FakeHost(grants=True)
        self.used: list[str] = []
        self.middleware = SwitchingMiddleware(
            cast(Any, None), hosts=cast(Any, {"pc": self.host}), on_model_used=self.used.append
        )

    def leased(self, **fields: Any) -> RequestContext:
        """A request whose attempt holds a granted lease."""
        context = make_context(**fields)
        context.begin_attempt(target(), hop=0, now=0.0).lease = self.host.lease("m")
        return context

    async def fail(self, context: RequestContext, error: BackendError) -> None:
        async def call_next() -> None:
            raise error

        await self.middleware.dispatch(context, call_next)


async def test_the_attempt_has_the_engines_address_while_the_lease_is_held() -> None:
    subject = Switching()
    context, held = subject.leased(), []

    async def call_next() -> None:
        held.append((context.current.address, list(subject.host.released)))
        context.current.usage = Usage(prompt_tokens=3)

    await subject.middleware.dispatch(context, call_next)
    assert held == [(engine(1), [])]
    assert subject.host.released == subject.host.leases
    assert subject.host.answers == [(engine(1), Usage(prompt_tokens=3))]
    assert subject.used == ["m"]


async def test_the_lease_is_released_when_the_request_is_cancelled() -> None:
    subject = Switching()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(subject.middleware.dispatch, subject.leased(), anyio.sleep_forever)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert subject.host.released == subject.host.leases
    assert not subject.host.answers


async def test_a_backend_without_a_supervisor_needs_no_lease() -> None:
    subject, context, called = Switching(), make_context(), []
    context.begin_attempt(target("cloud"), hop=0, now=0.0)

    async def call_next() -> None:
        called.append(context.current.address)

    await subject.middleware.dispatch(context, call_next)
    assert called == [None]


async def test_a_request_to_unload_is_carried_out_without_a_lease() -> None:
    subject, called = Switching(), []
    origin = Origin(wire="ollama", operation="generate", body=b"")
    context = make_context(LoadRequest(origin=origin, model="m", kind="unload"))
    context.begin_attempt(target(), hop=0, now=0.0)

    async def call_next() -> None:
        called.append(list(subject.host.unloaded))

    await subject.middleware.dispatch(context, call_next)
    assert called == [["m"]]


async def test_a_dead_engine_is_restarted_once() -> None:
    subject = Switching()
    context = subject.leased()
    with pytest.raises(EngineLost):
        await subject.fail(context, BackendUnavailable("refused"))
    assert subject.host.lost == [engine(1)]
    assert subject.host.released == subject.host.leases
    context.current.lease = subject.host.lease("m")
    with pytest.raises(BackendUnavailable) as second:
        await subject.fail(context, BackendUnavailable("refused again"))
    assert not isinstance(second.value, EngineLost)
    assert subject.host.lost == [engine(1)]


@pytest.mark.parametrize(
    ("error", "committed"),
    [
        (BackendUnavailable("x", timed_out=True), False),  # the machine is gone, not the engine
        (BackendUnavailable("x"), True),
        (BackendBroken("x"), False),
    ],
)
async def test_other_errors_restart_nothing(error: BackendError, committed: bool) -> None:
    subject, writer = Switching(), FakeWriter()
    writer.committed = committed
    with pytest.raises(BackendError) as raised:
        await subject.fail(subject.leased(writer=writer), error)
    assert raised.value is error
    assert not subject.host.lost
    assert subject.host.released == subject.host.leases


@pytest.mark.parametrize(
    ("error", "timed_out"),
    [
        (BackendTimeout("only keep-alives arrived, but no token in time"), True),
        (BackendBroken("x"), False),
        (BackendUnavailable("x", timed_out=True), False),
    ],
)
async def test_an_engine_that_was_silent_or_sent_only_keep_alives_is_reported(
    error: BackendError, timed_out: bool
) -> None:
    subject = Switching()
    with pytest.raises(BackendError):
        await subject.fail(subject.leased(), error)
    assert [lease.timed_out for lease in subject.host.released] == [timed_out]


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("unloaded", "m was unloaded on request; send the request again to load it"),
        ("given_up", "m was stopped for other requests while its supervisor could not reach this gateway; send"),
    ],
)
async def test_an_answer_cut_off_with_its_engine_says_why(reason: RevokeReason, words: str) -> None:
    subject = Switching()
    context = subject.leased()
    subject.host.leases[0].revoke(reason)
    with pytest.raises(ModelUnavailable, match=words):
        await subject.fail(context, BackendBroken("x"))
    assert not subject.host.lost


def limited(subject: Switching, max_answer_s: float) -> RequestContext:
    context = make_context()
    limits = AnswerLimits(max_answer_s=max_answer_s)
    context.begin_attempt(target(limits=limits), hop=0, now=0.0).lease = subject.host.lease("m")
    return context


async def test_an_answer_that_takes_too_long_is_cut_off_and_releases_its_lease() -> None:
    subject = Switching()
    with pytest.raises(AnswerTooLong, match=r"m did not finish its answer within 0\.01 seconds \(max_answer_s"):
        await subject.middleware.dispatch(limited(subject, 0.01), anyio.sleep_forever)
    assert subject.host.released == subject.host.leases
    assert not subject.host.answers


async def test_a_timeout_of_its_own_is_not_taken_for_a_long_answer() -> None:
    subject = Switching()

    async def call_next() -> None:
        raise TimeoutError("of a socket")

    with pytest.raises(TimeoutError, match="of a socket"):
        await subject.middleware.dispatch(limited(subject, 60.0), call_next)


async def test_an_answer_within_its_limit_is_reported() -> None:
    subject = Switching()
    context = limited(subject, 60.0)

    async def call_next() -> None:
        context.current.usage = Usage(prompt_tokens=3)

    await subject.middleware.dispatch(context, call_next)
    assert subject.host.answers == [(engine(1), Usage(prompt_tokens=3))]


async def test_an_answered_prompt_is_reported_where_there_is_a_choice_of_hosts() -> None:
    answered: list[tuple[str, PromptIdentity]] = []
    subject = Switching()
    subject.middleware = SwitchingMiddleware(
        cast(Any, None),
        hosts=cast(Any, {"pc": subject.host}),
        on_model_used=subject.used.append,
        on_answered=lambda at, prompt: answered.append((at.backend, prompt)),
    )

    async def call_next() -> None:
        pass

    prompt = PromptIdentity(marks=((1, 10),))
    for candidates, known in (
        ((target(),), prompt),
        ((target(), target("b")), None),
        ((target(), target("b")), prompt),
    ):
        context = subject.leased()
        context.candidates, context.prompt = candidates, known
        await subject.middleware.dispatch(context, call_next)
    assert answered == [("pc", prompt)]
    with pytest.raises(BackendBroken):
        context = subject.leased()
        context.candidates, context.prompt = (target(), target("b")), prompt
        await subject.fail(context, BackendBroken("cut off", backend="pc"))
    assert len(answered) == 1
