"""Reservations of attempts: which are made at all, why one is refused, and what they are settled with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from hostler.adapters.canonical import ChatRequest, LoadRequest, Origin, Usage
from hostler.gateway.backend_settings import PriceSettings
from hostler.gateway.backends.circuit_breaker import BreakerRules, CircuitBreakers
from hostler.gateway.backends.cost import SpendingTracker
from hostler.gateway.backends.hop import Hop
from hostler.gateway.backends.reservation import estimate, refusal, settle
from hostler.gateway.context import Attempt, Client, KeyRules, RequestContext, Target

TARGET = Target(backend="cloud", model="m", name_there="m")
ORIGIN = Origin(wire="openai", operation="chat", body=b"8 bytes.", method="POST", path="/", query="", content_type="")


class Context:
    def __init__(self, request: Any) -> None:
        self.request = request
        self.client = Client(name="bob")
        self.attempts: list[Attempt] = []


CHAT = cast(RequestContext, Context(ChatRequest(origin=ORIGIN)))


def hop(tracker: SpendingTracker | None, **more: Any) -> Hop:
    breakers = CircuitBreakers(BreakerRules(), lambda: 0.0)
    return Hop(name="cloud", breakers=breakers, **{"local": False, "spending": tracker, **more})


def tracker(tmp_path: Path, limit: float = 1.0) -> SpendingTracker:
    return SpendingTracker(tmp_path / "spent", limit, lambda: 1e9)


def test_only_requests_for_remote_models_cost_anything(tmp_path: Path) -> None:
    load = cast(RequestContext, Context(LoadRequest(origin=ORIGIN, model="m", kind="load")))
    assert estimate(CHAT, hop(tracker(tmp_path)), TARGET) is not None
    assert estimate(load, hop(tracker(tmp_path)), TARGET) is None
    assert estimate(CHAT, hop(tracker(tmp_path), local=True), TARGET) is None
    assert estimate(CHAT, hop(None), TARGET) is None


def test_the_refusal_says_whether_waiting_helps(tmp_path: Path) -> None:
    spending = tracker(tmp_path)
    cloud = hop(spending)
    first = estimate(CHAT, cloud, TARGET)
    assert first is not None
    assert spending.reserve(first)
    assert refusal(CHAT, cloud, TARGET) == "budget_reserved"
    spending.settle(first, 0.6)
    assert refusal(CHAT, cloud, TARGET) == "budget_exhausted"
    assert refusal(CHAT, hop(spending, local=True), TARGET) is None


@pytest.mark.parametrize(
    ("usage", "outcome", "first_token", "cost", "today"),
    [
        (Usage(cost=0.2), "answered", 1.0, 0.2, 0.2),
        (Usage(prompt_tokens=5), "answered", 1.0, None, 0.0),
        (None, "answered", 1.0, None, 0.0),
        (None, "server_error", None, None, 0.0),
    ],
)
def test_an_attempt_is_settled_with_its_cost(
    tmp_path: Path, usage: Usage | None, outcome: str, first_token: float | None, cost: float | None, today: float
) -> None:
    spending = tracker(tmp_path)
    reserved = estimate(CHAT, hop(spending), TARGET)
    assert reserved is not None
    assert spending.reserve(reserved)
    attempt = Attempt(target=TARGET, usage=usage, outcome=outcome, first_token_at=first_token)
    settle(CHAT, attempt, hop(spending), reserved)
    assert (attempt.cost, spending.today) == (cost, today)


@pytest.mark.parametrize("usage", [None, Usage(cost=-5.0), Usage(cost=1e300)])
def test_an_answer_that_broke_off_or_lies_about_its_cost_is_not_free(tmp_path: Path, usage: Usage | None) -> None:
    spending = tracker(tmp_path)
    reserved = estimate(CHAT, hop(spending), TARGET)
    assert reserved is not None
    assert spending.reserve(reserved)
    outcome = "client_disconnected" if usage is None else "answered"
    settle(CHAT, Attempt(target=TARGET, usage=usage, outcome=outcome, first_token_at=1.0), hop(spending), reserved)
    assert 0 < spending.today < 1


def test_prices_replace_what_is_not_reported(tmp_path: Path) -> None:
    spending = tracker(tmp_path)
    cloud = hop(spending, prices={"*": PriceSettings(input=1.0)})
    reserved = estimate(CHAT, cloud, TARGET)
    assert reserved is not None
    assert spending.reserve(reserved)
    attempt = Attempt(target=TARGET, usage=Usage(prompt_tokens=100_000), outcome="answered", first_token_at=1.0)
    settle(CHAT, attempt, cloud, reserved)
    assert spending.today == pytest.approx(0.1)


def test_a_reservation_knows_how_often_its_request_has_reserved_before(tmp_path: Path) -> None:
    context = Context(ChatRequest(origin=ORIGIN))
    context.client = Client(name="bob", rules=KeyRules(tokens_per_day=5))
    context.attempts = [Attempt(target=TARGET)]
    reserved = estimate(cast(RequestContext, context), hop(tracker(tmp_path)), TARGET)
    assert reserved is not None
    assert reserved.calls == 2
