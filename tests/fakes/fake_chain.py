"""A chain of scripted hops around the real fallback middleware."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from fakes.requests import FakeWriter, chat, make_context, signs_of_life

from hostler.adapters.errors import GatewayError
from hostler.gateway.backends.cancellable_sleep import CancellableSleeps
from hostler.gateway.backends.circuit_breaker import BreakerRules, CircuitBreakers
from hostler.gateway.backends.hop import Hop
from hostler.gateway.backends.retry_budget import RetryBudget, RetryRules
from hostler.gateway.context import RequestContext, Target
from hostler.gateway.middleware.fallback import FallbackMiddleware

Step = GatewayError | str | Callable[[RequestContext], Awaitable[None]]


async def _unused(*_: object) -> None:
    raise AssertionError("`dispatch` is called by itself")


class FakeChain:
    """A chain of hops `a`, `b`, `c`, ...; `steps` are what happens at each, in order, and then it answers."""

    def __init__(self, *names: str, contexts: dict[str, int] | None = None, **steps: list[Step]) -> None:
        self.now = 100.0
        self.clock: Callable[[], float] = lambda: self.now
        self.steps = steps
        self.asked: list[str] = []
        self.checked: list[str] = []
        self.breakers = {name: CircuitBreakers(BreakerRules(jitter=0.0), lambda: 0.0) for name in names}
        self.hops = {
            name: Hop(name=name, breakers=self.breakers[name], check_now=partial(self.checked.append, name))
            for name in names
        }
        self.writer = FakeWriter()
        self.contexts = contexts or {}
        self.budget = RetryBudget(RetryRules())
        self.max_wait_s = 120.0
        self.max_rest_s = 0.0
        self.sleeps = CancellableSleeps()
        self.shows = True

    def context(self, request: Any = None, **more: Any) -> RequestContext:
        request = request or chat(body=more.pop("body", b"{}"))
        context = make_context(request, writer=self.writer, started_at=self.clock(), **more)
        context.model = "m"
        context.candidates = tuple(
            Target(backend=name, model="m", name_there=f"{name}/m", context=self.contexts.get(name, 0))
            for name in self.hops
        )
        return context

    async def dispatch(self, context: RequestContext | None = None) -> RequestContext:
        context = context or self.context()
        middleware = FallbackMiddleware(
            _unused,
            hops=self.hops,
            budget=self.budget,
            sleeps=self.sleeps,
            max_wait_s=self.max_wait_s,
            max_rest_s=self.max_rest_s,
            clock=self.clock,
        )

        async def call_next() -> None:
            name = context.current.target.backend
            self.asked.append(name)
            steps = self.steps.get(name, [])
            step = steps.pop(0) if steps else "answered"
            if isinstance(step, GatewayError):
                raise step
            if callable(step):
                await step(context)

        if not self.shows:
            await middleware.dispatch(context, call_next)
            return context
        async with signs_of_life(context):
            await middleware.dispatch(context, call_next)
        return context


def outcomes(context: RequestContext) -> list[tuple[str, str]]:
    return [(attempt.target.backend, attempt.outcome) for attempt in context.attempts]
