"""Fallback: the failure policy carried out along the chain."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import anyio
import msgspec
import pytest
from fakes.fake_chain import FakeChain, outcomes
from fakes.requests import OPENAI

from hostler.adapters.canonical import LoadRequest, Origin, Usage
from hostler.adapters.errors import (
    BackendBroken,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    BadRequest,
    ClientDisconnected,
    Forbidden,
    GatewayError,
    ModelUnavailable,
    NotFound,
    RequestCancelled,
    ShuttingDown,
    TooManyRequests,
    WaitTimeout,
)
from hostler.gateway.backend_settings import PriceSettings, RateSettings
from hostler.gateway.backends.circuit_breaker import BreakerRules, CircuitBreakers
from hostler.gateway.backends.cost import Reservation, SpendingTracker
from hostler.gateway.backends.hop import Hop
from hostler.gateway.backends.rate_limiter import RateLimiter
from hostler.gateway.backends.retry_budget import RetryBudget, RetryRules
from hostler.gateway.backends.wake_on_lan import WakeOnLan
from hostler.gateway.context import RequestContext
from hostler.gateway.wake_settings import WakeSettings

pytestmark = pytest.mark.anyio


def rejected(status: int, after: float | None = None, body: bytes = b"{}") -> BackendRejected:
    return BackendRejected(
        "x", backend="a", wire="openai", backend_status=status, headers={}, body=body, retry_after_s=after
    )


# The error of hop a (at every try), its outcome, how often it is tried, and its breakers after three requests: host, model.
ROWS: list[tuple[Callable[[], GatewayError], str, int, str, str]] = [
    (lambda: BackendUnavailable("x"), "unreachable", 1, "open", "closed"),
    (lambda: BackendUnavailable("x", timed_out=True), "connect_timeout", 1, "open", "closed"),
    (lambda: WaitTimeout("x"), "loading", 1, "closed", "closed"),
    (lambda: TooManyRequests("x"), "model_unavailable", 1, "closed", "closed"),
    (lambda: ModelUnavailable("x"), "model_unavailable", 1, "closed", "closed"),
    (lambda: rejected(500), "server_error", 2, "closed", "open"),
    (lambda: BackendBroken("x"), "server_error", 2, "closed", "open"),
    (lambda: rejected(404), "rejected", 1, "closed", "closed"),
    (lambda: rejected(401), "auth_failed", 1, "closed", "open"),
    (lambda: rejected(402), "payment_required", 1, "closed", "open"),
    (lambda: BackendTimeout("x"), "first_byte_timeout", 1, "closed", "open"),
]


@pytest.mark.parametrize(("make", "outcome", "times", "host", "model"), ROWS)
async def test_the_rule_of_each_outcome_is_followed(
    make: Callable[[], GatewayError], outcome: str, times: int, host: str, model: str
) -> None:
    chain = FakeChain("a", "b", a=[make() for _ in range(9)])
    first = await chain.dispatch()
    assert outcomes(first) == [("a", outcome)] * times + [("b", "answered")]
    assert first.reason == f"a: {outcome}"
    assert first.hop == 1
    for _ in range(2):
        await chain.dispatch()
    standing = chain.breakers["a"]
    assert (standing.host.state(chain.now), standing.models["a/m"].state(chain.now)) == (host, model)
    assert chain.asked[-1] == "b"


async def test_a_short_retry_after_is_waited_for_once_with_progress() -> None:
    chain = FakeChain("a", "b", a=[rejected(429, 0.02)])
    chain.clock = clock = anyio.current_time
    began_at = clock()
    context = await chain.dispatch()
    assert outcomes(context) == [("a", "busy"), ("a", "answered")]
    assert clock() - began_at >= 0.02
    assert chain.writer.beats
    assert chain.writer.beats[0].phase == "fallback"


async def test_a_long_retry_after_falls_back_and_pauses_the_hop() -> None:
    chain = FakeChain("a", "b", a=[rejected(429, 60)])
    assert outcomes(await chain.dispatch()) == [("a", "busy"), ("b", "answered")]
    assert outcomes(await chain.dispatch()) == [("b", "answered")]
    chain.now += 61
    assert outcomes(await chain.dispatch()) == [("a", "answered")]


async def test_a_short_retry_after_is_not_waited_for_when_the_hop_is_paused_for_longer() -> None:
    chain = FakeChain("a", "b")

    async def busy(context: RequestContext) -> None:
        chain.breakers["a"].models["a/m"].trip(chain.now, 3600.0)  # another request got a 402 meanwhile
        raise rejected(429, 0.02)

    chain.steps["a"] = [busy]
    with anyio.fail_after(10):
        assert outcomes(await chain.dispatch()) == [("a", "busy"), ("b", "answered")]


async def test_at_most_one_retry_and_three_hops_for_a_request() -> None:
    chain = FakeChain("a", "b", "c", "d", **{name: [rejected(500) for _ in range(9)] for name in "abc"})
    with pytest.raises(ModelUnavailable, match="d was not tried"):
        await chain.dispatch()
    assert chain.asked == ["a", "a", "b", "c"]


async def test_without_budget_nothing_is_retried() -> None:
    chain = FakeChain("a", "b", a=[rejected(500) for _ in range(9)])
    chain.budget = RetryBudget(RetryRules(share=0.0, per_second=0))
    assert outcomes(await chain.dispatch()) == [("a", "server_error"), ("b", "answered")]


@pytest.mark.parametrize("status", [400, 422, 409])
async def test_an_invalid_request_does_not_fall_back(status: int) -> None:
    chain = FakeChain("a", "b", a=[rejected(status)])
    with pytest.raises(BackendRejected):
        await chain.dispatch()
    assert chain.asked == ["a"]


async def test_a_request_unsupported_by_one_protocol_falls_back() -> None:
    chain = FakeChain("a", "b", a=[BadRequest("no words")])
    assert outcomes(await chain.dispatch()) == [("a", "rejected"), ("b", "answered")]
    with pytest.raises(BadRequest, match="first"):
        await FakeChain("a", "b", a=[BadRequest("first")], b=[BadRequest("second")]).dispatch()


def fault(status: int = 500, message: str = "roles must alternate") -> BackendRejected:
    error = rejected(status, body=json.dumps({"error": {"message": message}}).encode())
    error.request_fault = True
    return error


async def test_an_engines_failure_at_one_request_is_neither_retried_nor_counted() -> None:
    chain = FakeChain("a", a=[fault() for _ in range(9)])
    for _ in range(9):
        with pytest.raises(BackendRejected):
            await chain.dispatch()
    assert chain.asked == ["a"] * 9
    standing = chain.breakers["a"]
    assert (standing.host.state(chain.now), standing.models["a/m"].state(chain.now)) == ("closed", "closed")
    assert outcomes(await chain.dispatch()) == [("a", "answered")]


async def test_another_hop_may_serve_what_an_engine_failed_at_else_its_words_count() -> None:
    chain = FakeChain("a", "b", a=[fault()])
    assert outcomes(await chain.dispatch()) == [("a", "rejected"), ("b", "answered")]
    chain = FakeChain("a", "b", a=[fault()], b=[fault(message="other words")])
    with pytest.raises(BackendRejected) as raised:
        await chain.dispatch()
    assert b"alternate" in raised.value.body
    with pytest.raises(ModelUnavailable):  # b may serve it later
        await FakeChain("a", "b", a=[fault()], b=[rejected(500), rejected(500)]).dispatch()
    with pytest.raises(BackendRejected):  # b is down
        await FakeChain("a", "b", a=[fault()], b=[BackendUnavailable("x")]).dispatch()


async def test_a_request_that_is_too_long_is_final_whatever_happens_elsewhere() -> None:
    long = fault(400, "prompt is too long")
    with pytest.raises(BackendRejected):
        await FakeChain("a", "b", a=[long], b=[BackendUnavailable("x")], contexts={"a": 512, "b": 4096}).dispatch()


async def test_a_context_overflow_falls_back_only_to_a_larger_context() -> None:
    body = b'{"error": {"type": "exceed_context_size_error"}}'
    contexts = {"a": 4096, "b": 4096, "c": 8192}
    chain = FakeChain("a", "b", contexts=contexts, a=[rejected(400, body=body)])
    with pytest.raises(BackendRejected):
        await chain.dispatch()
    chain = FakeChain("a", "c", contexts=contexts, a=[rejected(400, body=body)])
    assert outcomes(await chain.dispatch()) == [("a", "rejected"), ("c", "answered")]


async def test_a_hop_is_skipped_for_a_long_prompt_only_if_another_has_a_larger_context() -> None:
    long = b'{"content": "%s"}' % (b"word " * 20_000)
    chain = FakeChain("a", "b", contexts={"a": 4096, "b": 131072})
    assert outcomes(await chain.dispatch(chain.context(body=long))) == [("b", "answered")]
    chain = FakeChain("a", "b", contexts={"a": 4096, "b": 2048})
    assert outcomes(await chain.dispatch(chain.context(body=long))) == [("a", "answered")]


async def test_does_not_fall_back_after_the_first_token() -> None:
    async def break_off(context: RequestContext) -> None:
        first_token = context.current.on_first_token
        assert first_token is not None
        first_token()
        context.writer.committed = True
        raise BackendBroken("x")

    chain = FakeChain("a", "b", a=[break_off])
    context = chain.context()
    with pytest.raises(BackendBroken):
        await chain.dispatch(context)
    assert outcomes(context) == [("a", "broken")]


async def test_a_paused_hop_is_tried_last_if_it_recovered_meanwhile() -> None:
    chain = FakeChain("a", "b")
    for _ in range(3):
        chain.steps["a"] = [BackendUnavailable("x")]
        await chain.dispatch()

    async def fail_late(context: RequestContext) -> None:
        chain.breakers["a"].recovered()
        raise BackendUnavailable("x")

    chain.steps["b"] = [fail_late]
    context = await chain.dispatch()
    assert outcomes(context) == [("b", "unreachable"), ("a", "answered")]
    assert (context.hop, context.reason) == (0, "b: unreachable")


async def test_a_disconnected_client_returns_its_permit() -> None:
    chain = FakeChain("a", a=[BackendUnavailable("x") for _ in range(3)])
    for _ in range(3):
        with pytest.raises(ModelUnavailable):
            await chain.dispatch()
    chain.now += 5

    async def hang(context: RequestContext) -> None:
        await anyio.sleep_forever()

    chain.steps["a"] = [hang]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(chain.dispatch)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert chain.asked == ["a"] * 4
    assert outcomes(await chain.dispatch()) == [("a", "answered")]


@pytest.mark.parametrize(
    ("ending", "word"),
    [(ClientDisconnected("x"), "client_disconnected"), (RequestCancelled("x"), "cancelled"), (None, "stopped")],
)
async def test_the_outcome_names_what_ended_the_attempt(ending: GatewayError | None, word: str) -> None:
    async def hang(context: RequestContext) -> None:
        context.cancel_reason = ending
        scope.cancel()
        await anyio.sleep_forever()

    chain = FakeChain("a", a=[hang])
    context = chain.context()
    with anyio.CancelScope() as scope:
        await chain.dispatch(context)
    assert outcomes(context) == [("a", word)]


async def test_a_refusal_by_the_stopping_gateway_is_stopped() -> None:
    chain = FakeChain("a", "b", a=[ShuttingDown("x")])
    context = chain.context()
    with pytest.raises(ShuttingDown):
        await chain.dispatch(context)
    assert outcomes(context) == [("a", "stopped")]


async def stopped_while_it_waits(chain: FakeChain, context: RequestContext) -> None:
    """Dispatch, and stop the gateway when the client sees that it waits."""

    async def stop() -> None:
        while not chain.writer.beats:
            await anyio.lowlevel.checkpoint()
        chain.sleeps.stop()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop)
        with anyio.fail_after(20), pytest.raises(ShuttingDown):
            await chain.dispatch(context)


async def test_waiting_for_a_load_ends_when_the_gateway_stops() -> None:
    loading = rejected(503, body=b'{"error": {"type": "unavailable_error", "message": "Loading model"}}')
    chain = FakeChain("a", "b", a=[loading for _ in range(1000)])
    context = chain.context()
    await stopped_while_it_waits(chain, context)
    assert set(outcomes(context)) == {("a", "loading")}
    with pytest.raises(ShuttingDown):
        await chain.dispatch()  # later waits end at once
    assert set(chain.asked) == {"a"}


async def test_an_error_of_the_gateway_does_not_count_against_the_backend() -> None:
    async def fault(context: RequestContext) -> None:
        raise ZeroDivisionError

    chain = FakeChain("a", "b", a=[fault, NotFound("x")])
    with pytest.raises(ZeroDivisionError):
        await chain.dispatch()
    with pytest.raises(NotFound):
        await chain.dispatch()
    assert chain.asked == ["a", "a"]
    assert chain.breakers["a"].state("a/m", chain.now) == "closed"


async def test_the_error_names_each_hops_reason_and_the_earliest_retry() -> None:
    chain = FakeChain("a", "b", a=[rejected(402)], b=[BackendTimeout("/secret") for _ in range(3)])
    for _ in range(3):
        with pytest.raises(ModelUnavailable) as raised:
            await chain.dispatch()
    with pytest.raises(ModelUnavailable) as raised:
        await chain.dispatch()
    assert raised.value.retry_after_s == 5.0
    assert raised.value.message == (
        "no backend could answer for m: a is paused after failures: it requires payment: its account has no credit (circuit_open); "
        "b is paused after failures: it did not answer in time (circuit_open)"
    )


async def test_the_error_names_the_model_that_the_client_asked_for_below_a_pattern() -> None:
    chain = FakeChain("a", a=[BackendTimeout("x") for _ in range(3)])
    context = chain.context()
    context.model, context.requested_model = "router/*", "router/fast"
    with pytest.raises(ModelUnavailable, match=r"^no backend could answer for router/fast: "):
        await chain.dispatch(context)


async def test_only_unreachable_hops_are_checked_at_once() -> None:
    chain = FakeChain("a", "b", "c", a=[BackendUnavailable("x")], b=[rejected(503)])
    await chain.dispatch()
    assert chain.checked == ["a"]


async def test_local_only_requests_never_reach_remote_hops(tmp_path: Path) -> None:
    chain = FakeChain("a", "b")
    outside = Hop(name="a", breakers=chain.breakers["a"], local=False)
    chain.hops["a"] = outside
    assert outcomes(await chain.dispatch(chain.context(local_only=True))) == [("b", "answered")]
    chain.hops = {"a": outside}
    for more in ({}, {"only": "a"}):
        with pytest.raises(Forbidden):
            await chain.dispatch(chain.context(local_only=True, **more))
    assert chain.asked == ["b"]


async def test_costs_are_counted_and_end_at_the_limit(tmp_path: Path) -> None:
    async def cost(context: RequestContext) -> None:
        context.current.usage = Usage(cost=0.6)

    chain = FakeChain("a", "b", a=[cost])
    spending = SpendingTracker(tmp_path / "spent", 1.0, lambda: 1e9)
    chain.hops["a"] = Hop(name="a", breakers=chain.breakers["a"], local=False, spending=spending)
    assert (await chain.dispatch()).cost == 0.6
    # 0.4 is left, and the next one may cost 0.6 again.
    last = await chain.dispatch()
    assert (outcomes(last), last.reason, last.cost) == ([("b", "answered")], "a: budget_exhausted", None)


async def test_a_backend_gets_so_many_requests_in_a_minute() -> None:
    chain = FakeChain("a", "b")
    rates = RateLimiter(RateSettings(requests_per_minute=1))
    chain.hops["a"] = Hop(name="a", breakers=chain.breakers["a"], rates=rates)
    assert outcomes(await chain.dispatch()) == [("a", "answered")]
    second = await chain.dispatch()
    assert (outcomes(second), second.reason) == ([("b", "answered")], "a: rate_limited")
    chain.now += 20.0
    with pytest.raises(TooManyRequests, match="limit of requests or tokens per minute is reached") as caught:
        del chain.hops["b"]
        await chain.dispatch()
    assert caught.value.retry_after_s == pytest.approx(40.0)
    assert not caught.value.final
    chain.now += 41.0
    assert outcomes(await chain.dispatch()) == [("a", "answered")]


async def test_tokens_of_answers_count_and_failed_attempts_count_none() -> None:
    async def refuse(context: RequestContext) -> None:
        raise BackendUnavailable("down", backend="a")

    async def answer(context: RequestContext) -> None:
        context.current.usage = Usage(prompt_tokens=90, completion_tokens=20)

    chain = FakeChain("a", "b", a=[refuse, answer])
    rates = RateLimiter(RateSettings(tokens_per_minute=100))
    chain.hops["a"] = Hop(name="a", breakers=chain.breakers["a"], rates=rates)
    await chain.dispatch(chain.context(body=b"x" * 4000))
    assert rates.wait_s(chain.now) == 0
    await chain.dispatch(chain.context(only="a"))
    assert rates.wait_s(chain.now) > 0


@pytest.mark.parametrize(("usage", "cost"), [
    (Usage(prompt_tokens=1_000_000, completion_tokens=500_000), 1.5),
    (Usage(prompt_tokens=1_000_000, cached_tokens=500_000, completion_tokens=0), 0.55),
    (Usage(prompt_tokens=1_000_000, cost=7.0), 7.0),
    (Usage(prompt_tokens=10**400), 2 * 1e-6 + 3 * 1e-6),
    (None, 2 * 1e-6 + 3 * 1e-6),
])  # fmt: skip
async def test_without_a_reported_cost_tokens_are_priced(tmp_path: Path, usage: Usage | None, cost: float) -> None:
    async def answer(context: RequestContext) -> None:
        context.current.usage, context.current.segments = usage, 3

    chain = FakeChain("a", a=[answer])
    spending = SpendingTracker(tmp_path / "spent", None, lambda: 1e9)
    prices = {"*": PriceSettings(input=9.0), "m": PriceSettings(input=1.0, output=1.0, cached=0.1)}
    chain.hops["a"] = Hop(name="a", breakers=chain.breakers["a"], local=False, spending=spending, prices=prices)
    context = await chain.dispatch(chain.context(body=b"8 bytes."))
    assert context.cost == pytest.approx(cost)
    assert spending.today == pytest.approx(cost)


async def test_a_trial_returns_its_permit_even_if_recording_costs_fails() -> None:
    class Broken:
        limit = None
        limit_reached = False

        def estimate(
            self, backend: str, model: str, price: PriceSettings | None, size: int, *, calls: int
        ) -> Reservation:
            return Reservation(backend, model, 0.0)

        def allows(self, wanted: Reservation) -> bool:
            return True

        async def try_reserve(self, wanted: Reservation) -> bool:
            return True

        def settle(self, reserved: Reservation, cost: float | None, *, answered: bool) -> None:
            raise LookupError("on purpose")

    chain = FakeChain("a")
    chain.hops["a"] = Hop(name="a", breakers=chain.breakers["a"], local=False, spending=cast(SpendingTracker, Broken()))
    chain.breakers["a"].host.trip(chain.now, 1.0)
    chain.now += 2.0
    with pytest.raises(LookupError):
        await chain.dispatch()
    assert chain.breakers["a"].state("a/m", chain.now) == "half_open"
    assert chain.breakers["a"].allows("a/m", chain.now)


def test_prices_are_looked_up_by_the_name_there_then_ours_then_any() -> None:
    one, two, rest = (PriceSettings(input=float(number)) for number in range(3))
    hop = Hop(name="a", breakers=CircuitBreakers(BreakerRules(), lambda: 0.0), prices={"a/m": one, "m": two, "*": rest})
    assert [hop.price("m", "a/m"), hop.price("m", "x"), hop.price("x", "y")] == [one, two, rest]


@pytest.mark.parametrize(("status", "retryable", "after", "outcome", "times"), [
    (429, None, 0.001, "busy", 2), (429, False, 0.001, "busy", 1), (402, True, None, "busy", 1),
    (402, True, 0.001, "busy", 2), (402, False, None, "payment_required", 1), (503, None, None, "server_error", 2),
    (503, True, None, "server_error", 2), (503, False, None, "busy", 1), (503, False, 0.001, "busy", 1),
    (502, False, None, "server_error", 1),
])  # fmt: skip
async def test_the_backends_retryable_hint_is_followed(
    status: int, retryable: bool | None, after: float | None, outcome: str, times: int
) -> None:
    error: dict[str, Any] = {"code": status, "message": "x"}
    if retryable is not None:
        error["metadata"] = {"retryable": retryable}
    body = json.dumps({"error": error}).encode()
    chain = FakeChain("a", "b", a=[rejected(status, after, body) for _ in range(3)])
    chain.clock = anyio.current_time
    assert outcomes(await chain.dispatch()) == [("a", outcome)] * times + [("b", "answered")]


async def test_a_control_needs_no_permit_and_reports_none() -> None:
    chain = FakeChain("a", a=[BackendUnavailable("x") for _ in range(3)])
    for _ in range(3):
        with pytest.raises(ModelUnavailable):
            await chain.dispatch()
    order = LoadRequest(origin=Origin(wire="ollama", operation="chat"), kind="unload", model="m")
    assert outcomes(await chain.dispatch(chain.context(order))) == [("a", "answered")]
    assert chain.breakers["a"].state("a/m", chain.now) == "open"


class SilentWakeOnLan(WakeOnLan):
    """Counts its packets and sends none."""

    def _send(self) -> None:
        pass


async def test_a_sleeping_machine_is_woken_once_for_all_requests() -> None:
    chain = FakeChain("a", "b")
    clock = anyio.current_time
    waker = SilentWakeOnLan("a", WakeSettings(mac="01:23:45:67:89:ab", wait_s=5), clock)
    awake = False
    chain.hops["a"] = Hop(
        name="a", breakers=chain.breakers["a"], supervised=True, reachable=lambda: awake, wake_on_lan=waker
    )
    chain.clock = clock
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(chain.dispatch)
        with anyio.fail_after(20):
            while not chain.writer.beats:
                await anyio.lowlevel.checkpoint()
        awake = True
        waker.set_reachable(True)
    assert waker.packets == 1
    assert chain.asked == ["a"] * 10
    assert {beat.phase for beat in chain.writer.beats} == {"waking"}


class HastyWakeOnLan(SilentWakeOnLan):
    """Does not wait, and wakes nothing."""

    async def wait(self, seconds: float) -> bool:
        return False


async def test_a_machine_that_does_not_wake_up_is_skipped_for_a_while() -> None:
    chain = FakeChain("a", "b")
    clock = itertools.count(100.0, 0.1).__next__  # time passes as often as it is asked for
    waker = HastyWakeOnLan("a", WakeSettings(mac="01:23:45:67:89:ab", wait_s=2.0), clock)
    breakers = CircuitBreakers(BreakerRules(jitter=0.0, open_s=0.001, max_open_s=0.001), lambda: 0.0)
    chain.hops["a"] = Hop(name="a", breakers=breakers, supervised=True, reachable=lambda: False, wake_on_lan=waker)
    chain.clock, chain.shows = clock, False
    first, second = await chain.dispatch(), await chain.dispatch()
    assert outcomes(first) == outcomes(second) == [("a", "unreachable"), ("b", "answered")]
    assert first.attempts[0].seconds >= 2.0 > second.attempts[0].seconds
    assert first.waits_for is None, "the next hop has progress of its own"
    assert waker.packets == 1


async def test_waiting_for_a_machine_ends_when_the_gateway_stops() -> None:
    chain = FakeChain("a", "b")
    chain.clock = anyio.current_time
    waker = SilentWakeOnLan("a", WakeSettings(mac="01:23:45:67:89:ab", wait_s=100), chain.clock)
    chain.hops["a"] = Hop(
        name="a", breakers=chain.breakers["a"], supervised=True, reachable=lambda: False, wake_on_lan=waker
    )
    context = chain.context()
    await stopped_while_it_waits(chain, context)
    assert outcomes(context) == [("a", "stopped")]
    assert chain.asked == []


@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_host_that_will_be_back_soon_is_waited_for_if_nothing_else_answers(comes_back: bool) -> None:
    gone = [BackendUnavailable("stopping", backend="a") for _ in range(2)]
    chain = FakeChain("a", "b", a=[gone[0]], b=[gone[1]])
    reachable, returning = [False], [True]
    chain.clock = anyio.current_time
    chain.hops["a"] = Hop(
        name="a", breakers=chain.breakers["a"], supervised=True, reachable=lambda: reachable[0],
        returning=lambda: returning[0],
    )  # fmt: skip

    async def later() -> None:
        while len(chain.asked) < 2:  # noqa: ASYNC110 - the request tries both by itself
            await anyio.sleep(0.002)
        chain.breakers["a"].recovered()
        reachable[0], returning[0] = comes_back, False

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(later)
        if comes_back:
            await chain.dispatch()
        else:
            with pytest.raises(GatewayError, match="no backend could answer"):
                await chain.dispatch()
    assert chain.asked == (["a", "b", "a"] if comes_back else ["a", "b"])


async def test_a_hop_that_is_known_to_be_unable_does_not_count_as_tried() -> None:
    chain = FakeChain("a", "b", "c", "d", "e", **{name: [BackendTimeout("x")] for name in "cd"})
    context = chain.context()
    context.adapter = OPENAI
    unable = {"needs_load": True, "lacks": frozenset({"completion"})}
    first, second, *others = context.candidates
    context.candidates = tuple(msgspec.structs.replace(each, **unable) for each in (first, second)) + tuple(others)
    assert outcomes(await chain.dispatch(context)) == [
        ("c", "first_byte_timeout"), ("d", "first_byte_timeout"), ("e", "answered")
    ]  # fmt: skip
    assert context.reason == "a: unsupported; b: unsupported; c: first_byte_timeout; d: first_byte_timeout"
