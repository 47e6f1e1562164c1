"""The limits of a host's queue: its supervisor's own, else those of its gateways."""

from __future__ import annotations

import math
from typing import Any, cast

import anyio
import pytest

from hostler.supervisor.config import HostLimits
from hostler.supervisor.contract import HostStatus
from hostler.supervisor.lease_frames import HelloFrame, InvalidFrame
from hostler.supervisor.lease_server import MAX_GATEWAYS, LeaseServer, combine_limits
from hostler.supervisor.scheduling.events import HostChanged
from hostler.supervisor.scheduling.types import MAX_SECONDS, SchedulerSettings

BEFORE = SchedulerSettings(max_waiting=3)


def test_without_gateways_what_applied_before_applies() -> None:
    assert combine_limits(HostLimits(), (), BEFORE) == BEFORE
    assert combine_limits(HostLimits(max_waiting=0), (), BEFORE).max_waiting == 0
    assert combine_limits(HostLimits(max_wait_s=math.inf), (), BEFORE).max_wait_s == MAX_SECONDS


def test_of_several_gateways_the_largest_values_apply() -> None:
    gateways = [
        SchedulerSettings(max_wait_s=60.0, patience_s=20.0),
        SchedulerSettings(max_waiting=5, max_wait_s=90.0, patience_s=1.0, min_residency_s=3.0),
    ]
    assert combine_limits(HostLimits(), gateways, BEFORE) == SchedulerSettings(
        max_waiting=10, max_wait_s=90.0, patience_s=20.0, min_residency_s=3.0
    )


def test_the_supervisors_own_values_win() -> None:
    own = HostLimits(max_waiting=1, patience_s=0.0)
    assert combine_limits(own, [SchedulerSettings(max_wait_s=60.0, patience_s=20.0)], BEFORE) == SchedulerSettings(
        max_waiting=1, max_wait_s=60.0, patience_s=0.0, min_residency_s=0.0
    )


class FakeSession:
    """A connection that ignores whatever it is sent."""

    def __init__(self) -> None:
        self.limits = SchedulerSettings(max_wait_s=60.0, patience_s=20.0)
        self.peer = "10.0.0.7"

    def send(self, data: bytes) -> None:
        pass

    def close(self, reason: str) -> None:
        pass

    def take_leases(self) -> dict[int, Any]:
        return {}


@pytest.mark.anyio
async def test_the_number_of_gateways_is_limited_and_connected_ones_may_return(fake_supervisor: Any) -> None:
    subject = LeaseServer(fake_supervisor)

    def join(instance: str) -> None:
        session = cast(Any, FakeSession())
        subject.join(session, HelloFrame(instance, "n", session.limits))

    for number in range(MAX_GATEWAYS):
        join(str(number))
    join("0")
    with pytest.raises(InvalidFrame, match=f"more than {MAX_GATEWAYS} gateways"):
        join("one more")
    assert subject.gateways == MAX_GATEWAYS


@pytest.mark.anyio
async def test_a_supervisor_that_stops_grants_nothing_again_when_its_machine_wakes_up(fake_supervisor: Any) -> None:
    subject = LeaseServer(fake_supervisor)
    subject.pause()
    subject.close()
    subject.resume()
    assert subject.closing


@pytest.mark.anyio
async def test_a_gateway_in_this_process_learns_what_happens_on_its_host(fake_supervisor: Any) -> None:
    events: list[Any] = []
    statuses: list[HostStatus] = []
    subject = LeaseServer(
        fake_supervisor, settings=SchedulerSettings(max_waiting=3), name="local", publish=events.append,
        on_status=statuses.append,
    )  # fmt: skip
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(subject.host.run)
        tasks.start_soon(subject.serve)
        await subject.host.synced.wait()
        tasks.cancel_scope.cancel()
    assert subject.host.name == "local"
    assert statuses
    assert [event.backend for event in events if isinstance(event, HostChanged)][:1] == ["local"]
