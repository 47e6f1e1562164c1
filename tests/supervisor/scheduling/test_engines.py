"""Addresses of engines: located, replaced and found dead."""

from __future__ import annotations

from typing import Any, cast

import pytest

from hostler.supervisor.contract import EngineAddress, HostStatus, ModelStatus, SupervisorUnreachable
from hostler.supervisor.scheduling.engines import EngineAddresses

pytestmark = pytest.mark.anyio


def address(generation: int) -> EngineAddress:
    return EngineAddress(
        model="m", host="127.0.0.1", port=generation, key="k", generation=generation, context=1, parallel=1
    )


def status(state: str, generation: int) -> HostStatus:
    return HostStatus(models=(ModelStatus(model="m", state=cast(Any, state), since=0.0, generation=generation),))


class FakeSupervisor:
    """Locates one engine, or is unreachable; switches to each of `engines` in turn."""

    def __init__(self, located: EngineAddress | None = None, *engines: EngineAddress) -> None:
        self.located = located
        self.reachable = True
        self.engines = list(engines)
        self.unloaded = 0

    async def locate(self, model: str) -> EngineAddress | None:
        if not self.reachable:
            raise SupervisorUnreachable("gone")
        return self.located

    async def switch(self, model: str, *, evict: Any = ()) -> EngineAddress:
        return self.engines.pop(0) if len(self.engines) > 1 else self.engines[0]

    async def unload(self, model: str) -> None:
        self.unloaded += 1
        self.engines = [address(9)]


def addresses(supervisor: FakeSupervisor, known: int | None = None) -> EngineAddresses:
    subject = EngineAddresses(cast(Any, supervisor))
    if known is not None:
        subject.put(address(known))
    return subject


async def reconcile(
    subject: EngineAddresses, state: str, generation: int, *, fresh: bool = False
) -> tuple[str, list[str]]:
    """The model's state in the reconciled status, and the models whose address was replaced."""
    replaced: list[str] = []
    host = await subject.reconcile(status(state, generation), fresh=fresh, replaced=replaced.append)
    return host.models[0].state, replaced


async def test_an_older_engine_than_the_known_one_is_ignored() -> None:
    subject = addresses(FakeSupervisor(address(1)), known=2)
    assert await subject.locate("m")
    assert subject.get("m") == address(2)
    assert await subject.locate("m", fresh=True)
    assert subject.get("m") == address(1)


async def test_an_unreachable_supervisor_locates_nothing() -> None:
    supervisor = FakeSupervisor(address(1))
    supervisor.reachable = False
    assert not await addresses(supervisor).locate("m")


async def test_a_ready_model_is_located_and_one_that_is_gone_counts_as_stopped() -> None:
    found, gone = addresses(FakeSupervisor(address(1))), addresses(FakeSupervisor(None))
    assert await reconcile(found, "ready", 1) == ("ready", [])
    assert found.of_ready("m") == address(1)
    assert await reconcile(gone, "ready", 1) == ("stopped", [])


async def test_a_snapshot_older_than_the_known_engine_is_corrected() -> None:
    assert await reconcile(addresses(FakeSupervisor(), known=2), "stopped", 1) == ("ready", [])
    assert await reconcile(addresses(FakeSupervisor(), known=2), "starting", 2) == ("ready", [])


async def test_a_replaced_or_stopped_engine_is_reported_at_once() -> None:
    assert await reconcile(addresses(FakeSupervisor(address(3)), known=2), "ready", 3) == ("ready", ["m"])
    stopped = addresses(FakeSupervisor(), known=2)
    assert await reconcile(stopped, "stopped", 2) == ("stopped", ["m"])
    assert stopped.get("m") is None


async def test_after_a_reconnect_nothing_known_before_is_valid() -> None:
    subject = addresses(FakeSupervisor(address(1)), known=7)
    assert await reconcile(subject, "ready", 1, fresh=True) == ("ready", ["m"])
    assert subject.get("m") == address(1)


async def test_a_dead_address_is_not_returned_again() -> None:
    supervisor = FakeSupervisor(None, address(1), address(1), address(2))
    subject = addresses(supervisor, known=1)
    assert subject.mark_dead(address(1))
    assert not subject.mark_dead(address(1))
    assert await subject.switch_to("m", evict=()) == address(2)
    assert supervisor.unloaded == 0


async def test_a_dead_address_is_not_found_again() -> None:
    subject = addresses(FakeSupervisor(address(1)), known=1)
    subject.mark_dead(address(1))
    assert not await subject.locate("m")
    assert await reconcile(subject, "ready", 1) == ("stopped", [])
    assert await reconcile(subject, "ready", 1, fresh=True) == ("stopped", [])
    assert subject.get("m") is None


async def test_an_engine_that_stays_dead_is_unloaded() -> None:
    supervisor = FakeSupervisor(None, address(1))
    subject = addresses(supervisor, known=1)
    subject.mark_dead(address(1))
    assert await subject.switch_to("m", evict=()) == address(9)
    assert supervisor.unloaded == 1
