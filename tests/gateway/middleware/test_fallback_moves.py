"""Fallback: requests that were queued at one host and are served by another one sooner."""

from __future__ import annotations

import msgspec
import pytest
from fakes.fake_chain import FakeChain, outcomes
from fakes.leases import FakeHost

from hostler.adapters.errors import ModelUnavailable
from hostler.gateway.context import RequestContext
from hostler.gateway.lease_moves import MovedElsewhere

pytestmark = pytest.mark.anyio


def moved_to(context: RequestContext, backend: str, host: FakeHost) -> MovedElsewhere:
    """The exception for a request that this backend grants a lease."""
    return MovedElsewhere(next(each for each in context.candidates if each.backend == backend), host.lease("m"))


def chain_of_hosts(*names: str) -> FakeChain:
    chain = FakeChain(*names)
    for name, hop in chain.hops.items():
        chain.hops[name] = msgspec.structs.replace(hop, supervised=True)
    return chain


async def test_a_request_that_was_moved_is_tried_there_at_once_and_stays_a_candidate_here() -> None:
    chain, host, granted = chain_of_hosts("a", "b", "c"), FakeHost(grants=True), []

    async def move(context: RequestContext) -> None:
        assert [each.backend for each in context.alternatives] == ["b", "c"]
        raise moved_to(context, "c", host)

    async def fail(context: RequestContext) -> None:
        granted.append(context.granted)
        context.granted = None
        raise ModelUnavailable("x")

    chain.steps = {"a": [move], "c": [fail]}
    context = await chain.dispatch()
    assert outcomes(context) == [("a", "moved"), ("c", "model_unavailable"), ("a", "answered")]
    assert granted == host.leases
    assert [attempt.hop for attempt in context.attempts] == [0, 2, 0]
    assert (context.failed_hops, context.alternatives) == ((("c", "model_unavailable"),), ())
    # Being moved is neither a failure nor a success.
    assert chain.breakers["a"].host.state(chain.now) == "closed"


async def test_a_lease_of_a_host_that_is_paused_meanwhile_is_given_back() -> None:
    chain, host = FakeChain("a", "b"), FakeHost(grants=True)

    async def move(context: RequestContext) -> None:
        chain.breakers["b"].models["b/m"].trip(chain.now, 3600.0)
        raise moved_to(context, "b", host)

    chain.breakers["b"].acquire("b/m", chain.now)
    chain.steps = {"a": [move]}
    context = await chain.dispatch()
    assert outcomes(context) == [("a", "moved"), ("a", "answered")]
    assert host.released == host.leases


async def test_only_the_next_hosts_that_would_not_be_skipped_are_alternatives() -> None:
    chain, seen = chain_of_hosts("a", "paused", "c", "cloud", "later"), list[str]()
    chain.hops["cloud"] = msgspec.structs.replace(chain.hops["cloud"], supervised=False)

    async def look(context: RequestContext) -> None:
        seen.extend(each.backend for each in context.alternatives)

    chain.steps = {"a": [look]}
    chain.breakers["paused"].host.trip(chain.now, 3600.0)
    await chain.dispatch()
    assert seen == ["c"]
