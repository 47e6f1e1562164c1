"""The request context: attempts, and what is summed over them."""

from __future__ import annotations

from fakes.requests import make_context, target

from hostler.gateway.asgi import CONTEXT_KEY
from hostler.gateway.context import RequestContext


def test_before_the_first_attempt_there_is_no_target() -> None:
    context = make_context()
    assert (context.attempt, context.target, context.hop) == (None, None, 0)
    assert (context.waits, context.cost) == ((0.0, 0.0), None)


def test_each_attempt_starts_with_nothing_of_the_one_before() -> None:
    context = make_context()
    first = context.begin_attempt(target("a"), hop=0, now=1.0)
    first.segments, first.first_token_at, first.finish = 3, 2.0, "stop"
    second = context.begin_attempt(target("b"), hop=1, now=5.0)
    assert (second.segments, second.first_token_at, second.finish, second.started_at) == (0, None, None, 5.0)
    assert context.attempts == [first, second]
    assert context.current is second
    assert (context.target, context.hop) == (target("b"), 1)


def test_waits_and_costs_are_summed_over_attempts() -> None:
    context = make_context()
    for queue_s, switch_s, cost in ((1.0, 0.5, None), (2.0, 0.0, 0.25), (0.0, 0.25, 0.5)):
        attempt = context.begin_attempt(target(), hop=0, now=0.0)
        attempt.queue_s, attempt.switch_s, attempt.cost = queue_s, switch_s, cost
    assert (context.waits, context.cost) == ((3.0, 0.75), 0.75)


def test_attempts_at_the_same_target_are_distinct() -> None:
    context = make_context()
    attempts = {context.begin_attempt(target(), hop=0, now=0.0) for _ in range(2)}
    assert len(attempts) == 2


def test_the_context_is_found_in_the_scope() -> None:
    context = make_context()
    assert RequestContext.of({CONTEXT_KEY: context}) is context
