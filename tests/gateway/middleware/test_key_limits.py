"""The rules of keys at requests: backends, counts, and what is counted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from fakes.requests import chat, make_context, target

from hostler.adapters.canonical import LoadRequest, Origin, Usage, WebSocketRequest
from hostler.adapters.errors import BackendUnavailable, Forbidden, RateLimited, UpgradeRequired
from hostler.gateway.asgi import CONTEXT_KEY
from hostler.gateway.backends.circuit_breaker import BreakerRules, CircuitBreakers
from hostler.gateway.backends.cost import SpendingTracker
from hostler.gateway.backends.hop import Hop
from hostler.gateway.context import Client, KeyRules, RequestContext
from hostler.gateway.key_usage import KeyFigures, KeyUsage
from hostler.gateway.middleware.key_limits import KeyLimitsMiddleware

pytestmark = pytest.mark.anyio

Answer = Callable[[RequestContext], Awaitable[None]]


class Limits:
    """The middleware with a local backend `pc` and a remote one `cloud`."""

    def __init__(self, folder: Path) -> None:
        self.usage = KeyUsage(folder / "usage.json", lambda: 1_800_000_000.0)
        spending = SpendingTracker(folder / "spending.json", None, lambda: 1_800_000_000.0)
        breakers = CircuitBreakers(BreakerRules(), lambda: 0.0)
        hops = {
            "pc": Hop(name="pc", breakers=breakers),
            "cloud": Hop(name="cloud", breakers=breakers, local=False, spending=spending),
        }
        self._middleware = KeyLimitsMiddleware(cast(Any, None), hops=hops, usage=self.usage, wall=lambda: 1e9)

    async def __call__(self, rules: KeyRules | None, answer: Answer | None = None, **fields: Any) -> RequestContext:
        context = make_context(fields.pop("request", None), client=Client(name="bob", rules=rules), **fields)
        context.model, context.candidates = "m", (target("pc"), target("cloud"))

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if answer is not None:
                await answer(scope[CONTEXT_KEY])

        self._middleware.app = app
        await self._middleware({CONTEXT_KEY: context}, cast(Any, None), cast(Any, None))
        return context

    @property
    def figures(self) -> KeyFigures:
        return self.usage.figures().get("bob", KeyFigures())


@pytest.fixture
def limits(tmp_path: Path) -> Limits:
    return Limits(tmp_path)


def answering(backend: str = "pc", *, outcome: str = "answered", **fields: Any) -> Answer:
    async def answer(context: RequestContext) -> None:
        attempt = context.begin_attempt(target(backend), hop=0, now=0.0)
        attempt.outcome = outcome
        for name, value in fields.items():
            setattr(attempt, name, value)

    return answer


async def test_keys_without_rules_pass_and_are_not_counted(limits: Limits) -> None:
    for rules in (None, KeyRules(models=("m",))):
        context = await limits(rules, answering(usage=Usage(prompt_tokens=5)))
        assert (len(context.candidates), context.limit_headers, limits.usage.figures()) == (2, (), {})


async def test_only_allowed_backends_remain_candidates(limits: Limits) -> None:
    context = await limits(KeyRules(backends=("p*",)))
    assert [each.backend for each in context.candidates] == ["pc"]
    with pytest.raises(Forbidden, match="may not use the backends of m"):
        await limits(KeyRules(backends=("other",)))


async def test_tokens_of_all_attempts_are_counted(limits: Limits) -> None:
    async def twice(context: RequestContext) -> None:
        await answering("cloud", outcome="broken", usage=Usage(prompt_tokens=3, completion_tokens=2))(context)
        await answering(usage=Usage(prompt_tokens=5, completion_tokens=7, cached_tokens=5))(context)

    await limits(KeyRules(tokens_per_day=1000), twice)
    assert (limits.figures.tokens, limits.figures.requests, limits.figures.reserved_tokens) == (17, 1, 0)


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (answering(segments=9), 109),
        (answering(outcome="client_disconnected", first_token_at=1.0, segments=4), 104),
        (answering(outcome="client_disconnected"), 0),
        (answering(outcome="unreachable", segments=0), 0),
    ],
)
async def test_tokens_that_no_backend_reported_are_estimated(limits: Limits, answer: Answer, tokens: int) -> None:
    await limits(KeyRules(tokens_per_day=1000), answer, request=chat(body=b"x" * 400))
    assert limits.figures.tokens == tokens


async def test_a_request_that_fails_is_settled_and_has_its_headers(limits: Limits) -> None:
    async def fail(context: RequestContext) -> None:
        raise BackendUnavailable("not responding")

    with pytest.raises(BackendUnavailable):
        await limits(KeyRules(requests_per_minute=2, tokens_per_day=1000), fail)
    assert (limits.figures.requests, limits.figures.reserved_tokens) == (1, 0)


async def test_a_request_beyond_a_limit_is_refused_with_what_is_left(limits: Limits) -> None:
    rules = KeyRules(requests_per_minute=1)
    context = await limits(rules, answering())
    assert (b"x-ratelimit-remaining-requests", b"0") in context.limit_headers
    with pytest.raises(RateLimited, match="1 requests per minute"):
        await limits(rules, answering())
    assert limits.figures.requests == 1


async def test_beyond_the_days_dollars_only_local_backends_are_used(limits: Limits) -> None:
    rules = KeyRules(dollars_per_day=0.5)
    context = await limits(rules, answering("cloud", cost=0.5))
    assert len(context.candidates) == 2
    assert limits.figures.dollars == 0.5
    context = await limits(rules, answering("pc"))
    assert [each.backend for each in context.candidates] == ["pc"]
    assert limits.figures.dollars == 0.5


WEBSOCKET = WebSocketRequest(origin=Origin(wire="llamacpp", operation="websocket"), model="m")


@pytest.mark.parametrize("rules", [KeyRules(tokens_per_minute=9), KeyRules(tokens_per_day=9)])
async def test_a_connection_on_which_nothing_is_counted_does_not_evade_a_limit_on_tokens(
    limits: Limits, rules: KeyRules
) -> None:
    with pytest.raises(UpgradeRequired, match="limit on tokens"):
        await limits(rules, answering(), request=WEBSOCKET)


async def test_a_connection_on_which_nothing_is_counted_goes_to_local_backends_within_a_limit_on_costs(
    limits: Limits,
) -> None:
    context = await limits(KeyRules(dollars_per_day=1), request=WEBSOCKET)
    assert [each.backend for each in context.candidates] == ["pc"]
    with pytest.raises(UpgradeRequired, match="limit on costs"):
        await limits(KeyRules(dollars_per_day=1, backends=("cloud",)), request=WEBSOCKET)
    context = await limits(KeyRules(requests_per_minute=5, models=("m",)), request=WEBSOCKET)
    assert len(context.candidates) == 2


async def test_an_answer_that_broke_off_costs_what_was_reserved(limits: Limits) -> None:
    await limits(KeyRules(dollars_per_day=1), answering("cloud", outcome="client_disconnected", first_token_at=1.0))
    assert 0.02 < limits.figures.dollars < 0.03
    await limits(KeyRules(dollars_per_day=1), answering("cloud"))
    assert limits.figures.dollars < 0.03


async def test_loading_a_model_uses_nothing(limits: Limits) -> None:
    load = LoadRequest(origin=Origin(wire="ollama", operation="generate", body=b""), model="m", kind="load")
    await limits(KeyRules(requests_per_minute=1), request=load)
    assert limits.usage.figures() == {}
