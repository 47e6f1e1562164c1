"""What serves requests for models is built from the settings alone, and runs without the rest of a gateway."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from fakes.requests import FakeWriter, make_context, target
from fakes.serving_parts import BACKENDS, serving

from hostler.adapters.errors import ShuttingDown
from hostler.gateway.config import ConfigError
from hostler.gateway.context import RequestContext
from hostler.gateway.joined_host import JoinedHost
from hostler.supervisor.contract import ProfileInfo


def test_each_supervisor_is_a_host_and_each_backend_a_hop(tmp_path: Path) -> None:
    parts = serving(tmp_path)
    assert (list(parts.hosts), sorted(parts.chain.hops), sorted(parts.backends)) == (
        ["pc"],
        ["cloud", "pc"],
        ["cloud", "pc"],
    )


def test_a_certificate_that_cannot_be_read_is_a_mistake_of_the_settings(tmp_path: Path) -> None:
    pinned = BACKENDS.replace(
        'http://127.0.0.1:9", token', f'https://127.0.0.1:9", certificate: {tmp_path}/none, token'
    )
    with pytest.raises(ConfigError, match=r"backends\.pc\.certificate"):
        serving(tmp_path, pinned)


@pytest.mark.anyio
async def test_waiting_requests_are_refused_when_it_shuts_down(tmp_path: Path) -> None:
    parts = serving(tmp_path)
    async with anyio.create_task_group() as tasks:
        parts.start(tasks)
        parts.shut_down()
        with pytest.raises(ShuttingDown):
            parts.hosts["pc"].lease("big").address()
        tasks.cancel_scope.cancel()
    await parts.aclose()


def in_flight(*, committed_at: str | None = None) -> RequestContext:
    """A request that two backends may serve, or that one of them serves."""
    context = make_context(writer=FakeWriter())
    context.candidates = (target("attic"), target("cloud"))
    if committed_at is not None:
        context.begin_attempt(target(committed_at), hop=0, now=0.0)
        context.writer.committed = True
    return context


@pytest.mark.anyio
async def test_a_host_that_joins_is_one_of_the_others_until_its_last_request_has_ended(tmp_path: Path) -> None:
    parts = serving(tmp_path)
    own = [dict(each) for each in (parts.hosts, parts.supervisors, parts.backends, parts.chain.hops, parts.entries)]
    request, endless = in_flight(), in_flight(committed_at="cloud")
    async with anyio.create_task_group() as tasks:
        parts.start(tasks)
        parts.add_host(JoinedHost(name="attic", url="http://127.0.0.1:9", token="t"))
        assert parts.chain_order == ("pc", "attic", "cloud")
        parts.catalog.restore_host("attic", (ProfileInfo(name="small"),))
        assert [place.backend for place in parts.catalog.find("small").places] == ["pc", "attic"]
        parts.in_flight.enter(request, lambda: None)
        parts.in_flight.enter(endless, lambda: None)
        removed = anyio.Event()

        async def remove() -> None:
            await parts.remove_host("attic")
            removed.set()

        tasks.start_soon(remove)
        await anyio.wait_all_tasks_blocked()
        assert parts.chain_order == ("pc", "cloud")
        assert parts.catalog.listing.resolve("small") is None
        assert "attic" in parts.hosts
        assert not removed.is_set()
        parts.in_flight.leave(request)
        with anyio.fail_after(20):
            await removed.wait()
        tasks.cancel_scope.cancel()
    assert [parts.hosts, parts.supervisors, parts.backends, parts.chain.hops, parts.entries] == own
    await parts.aclose()
