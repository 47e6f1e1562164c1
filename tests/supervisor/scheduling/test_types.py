"""The scheduler's settings: more than timers and frames carry is as good as unlimited."""

from __future__ import annotations

import math

from hostler.supervisor.lease_frames import HelloFrame, encode_frames, request_reader
from hostler.supervisor.scheduling.types import MAX_COUNT, MAX_SECONDS, SchedulerSettings


def test_settings_are_clamped_to_what_a_frame_carries() -> None:
    settings = SchedulerSettings(max_waiting=2**70, max_wait_s=math.inf, patience_s=1e300, min_residency_s=3.0)
    limits = settings.clamped()
    assert limits == SchedulerSettings(
        max_waiting=MAX_COUNT, max_wait_s=MAX_SECONDS, patience_s=MAX_SECONDS, min_residency_s=3.0
    )
    hello = HelloFrame("i", "n", limits)
    assert list(request_reader().feed(encode_frames([hello]))) == [hello]
