"""The limits of a host's queue: its supervisor's own, else those of its gateways."""

from __future__ import annotations

from hostler.supervisor.config import HostLimits
from hostler.supervisor.lease_frames import GatewayLimits
from hostler.supervisor.lease_server import combine_limits
from hostler.supervisor.scheduling.types import SchedulerSettings

BEFORE = SchedulerSettings(max_waiting=3)


def test_without_gateways_what_applied_before_applies() -> None:
    assert combine_limits(HostLimits(), (), BEFORE) == BEFORE
    assert combine_limits(HostLimits(max_waiting=0), (), BEFORE).max_waiting == 0


def test_of_several_gateways_the_largest_values_apply() -> None:
    gateways = [GatewayLimits(10, 60.0, 20.0, 0.0), GatewayLimits(5, 90.0, 1.0, 3.0)]
    assert combine_limits(HostLimits(), gateways, BEFORE) == SchedulerSettings(
        max_waiting=10, max_wait_s=90.0, patience_s=20.0, min_residency_s=3.0
    )


def test_the_supervisors_own_values_win() -> None:
    own = HostLimits(max_waiting=1, patience_s=0.0)
    assert combine_limits(own, [GatewayLimits(10, 60.0, 20.0, 0.0)], BEFORE) == SchedulerSettings(
        max_waiting=1, max_wait_s=60.0, patience_s=0.0, min_residency_s=0.0
    )
