"""Trials of paused backends by requests that had to wait before they could begin."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from fakes.fake_chain import FakeChain, outcomes

from hostler.gateway.backends.cost import Reservation, SpendingTracker
from hostler.gateway.backends.hop import Hop
from hostler.gateway.context import RequestContext

pytestmark = pytest.mark.anyio


async def test_only_one_request_tries_a_paused_backend_though_others_wait_for_their_money(tmp_path: Path) -> None:
    class AtAStore(SpendingTracker):
        asked = 0

        async def try_reserve(self, wanted: Reservation) -> bool:
            self.asked += 1
            if self.asked == 2:
                both.set()
            await both.wait()
            return self.reserve(wanted)

    async def trial(_: RequestContext) -> None:
        await elsewhere.wait()

    async def answer(_: RequestContext) -> None:
        assert spending.open_requests == 1
        elsewhere.set()

    both, elsewhere = anyio.Event(), anyio.Event()
    chain = FakeChain("a", "b", a=[trial], b=[answer])
    spending = AtAStore(tmp_path / "spent", None, lambda: 1e9)
    chain.hops["a"] = Hop(name="a", breakers=chain.breakers["a"], local=False, spending=spending)
    chain.breakers["a"].host.trip(chain.now, 1.0)
    chain.now += 2.0
    contexts = [chain.context(), chain.context()]
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for context in contexts:
                tasks.start_soon(chain.dispatch, context)
    assert sorted(map(outcomes, contexts)) == [[("a", "answered")], [("b", "answered")]]
    assert "a: circuit_open" in {context.reason for context in contexts}
