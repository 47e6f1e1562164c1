"""Requests whose backends all rest for a moment wait for the first of them."""

from __future__ import annotations

import anyio
import msgspec
import pytest
from fakes.fake_chain import FakeChain, Step, outcomes

from hostler.adapters.errors import BackendTimeout, GatewayError, ModelUnavailable
from hostler.gateway.context import RequestContext

pytestmark = pytest.mark.anyio


def paused_chain(open_s: float, *names: str, **steps: list[Step]) -> FakeChain:
    """A chain whose circuits are all open after failures, for so long."""
    chain = FakeChain(*names, **steps)
    chain.clock = anyio.current_time
    chain.max_rest_s = 10.0
    for name, breakers in chain.breakers.items():
        permit = breakers.acquire(f"{name}/m", chain.clock())
        assert permit is not None
        breakers.report(permit, "busy", chain.clock(), retry_after_s=open_s)
    return chain


async def test_a_request_waits_for_the_first_of_the_hops_that_rest_for_a_moment() -> None:
    chain = paused_chain(0.05, "a", "b")
    context = await chain.dispatch()
    assert outcomes(context) == [("a", "answered")]
    assert context.failed_hops == (("b", "circuit_open"),)


async def test_a_hop_that_rests_for_longer_is_left_out() -> None:
    chain = paused_chain(3600.0, "a", "b")
    chain.breakers["b"].reset("b/m")
    chain.breakers["b"].models["b/m"].cool(chain.clock() + 0.05)
    assert outcomes(await chain.dispatch()) == [("b", "answered")]


async def test_a_hop_that_fails_after_its_rest_is_not_waited_for_again() -> None:
    chain = paused_chain(0.05, "a", a=[BackendTimeout("x")])
    with pytest.raises(ModelUnavailable):
        await chain.dispatch()
    assert chain.asked == ["a"]


@pytest.mark.parametrize(("open_s", "max_wait_s"), [(3600.0, 120.0), (5.0, 0.5)])
async def test_rests_that_do_not_end_in_time_are_not_waited_for(open_s: float, max_wait_s: float) -> None:
    chain = paused_chain(open_s, "a", "b")
    chain.max_wait_s = max_wait_s
    with pytest.raises(GatewayError) as raised:
        await chain.dispatch()
    assert chain.asked == []
    assert raised.value.retry_after_s == pytest.approx(open_s, abs=1.0)


async def test_a_backend_that_is_down_is_waited_for_less_long_than_one_that_rests() -> None:
    chain = paused_chain(5.0, "a")
    chain.hops["a"] = msgspec.structs.replace(chain.hops["a"], reachable=lambda: False)
    with pytest.raises(ModelUnavailable):
        await chain.dispatch()
    assert chain.asked == []


async def test_requests_wait_for_the_trial_call_of_another() -> None:
    chain = paused_chain(0.05, "a")
    chain.breakers["a"].models["a/m"].trip(chain.clock(), 0.05)
    held, go_on = anyio.Event(), anyio.Event()

    async def hold(_: RequestContext) -> None:
        held.set()
        await go_on.wait()

    chain.steps["a"] = [hold]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(chain.dispatch)
        await held.wait()
        second = chain.context()
        tasks.start_soon(chain.dispatch, second)
        await anyio.wait_all_tasks_blocked()
        assert chain.asked == ["a"]
        go_on.set()
    assert outcomes(second) == [("a", "answered")]
