"""What a gateway asks for fits into its frames, whatever its clients and engines say."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from fakes.leases import FakeHost, engine

from hostler.adapters.canonical import Usage
from hostler.supervisor.lease_frames import MAX_NAME, AskFrame, ReleaseFrame, SeedFrame, encode_frames, request_reader
from hostler.supervisor.lease_requests import ask_frame, release_frame, seed_frames
from hostler.supervisor.scheduling.lease import Lease
from hostler.supervisor.scheduling.queue import MAX_PRIORITY
from hostler.supervisor.scheduling.types import MAX_COUNT, MAX_SECONDS


def lease(model: str = "m", **fields: Any) -> Lease:
    return Lease(FakeHost(), lease_id=7, model=model, requested_at=0.0, **fields)


def received(*frames: msgspec.Struct) -> list[Any]:
    """The frames as a supervisor reads them."""
    return list(request_reader().feed(encode_frames(frames)))


def test_a_lease_is_requested_with_all_that_is_known_of_it() -> None:
    subject = lease(client="anna", request_id="r", keep_alive_s=60.0, priority=3, client_port=40000)
    expected = AskFrame(7, "m", "anna", "r", 3, 60.0, 1.5, 40000)
    assert received(ask_frame(subject, 1.5)) == [expected]


@pytest.mark.parametrize(
    ("fields", "waited_s", "expected"),
    [
        ({"client": "x" * 300}, 0.0, AskFrame(7, "m", "x" * MAX_NAME)),
        ({"priority": 10**30}, 0.0, AskFrame(7, "m", priority=MAX_PRIORITY)),
        ({"priority": -(10**30)}, 0.0, AskFrame(7, "m", priority=-MAX_PRIORITY)),
        ({"keep_alive_s": math.nan}, 0.0, AskFrame(7, "m")),
        ({"keep_alive_s": -1.0}, 0.0, AskFrame(7, "m", keep_alive_s=0.0)),
        ({"keep_alive_s": math.inf}, 0.0, AskFrame(7, "m", keep_alive_s=math.inf)),
        ({}, 1e9, AskFrame(7, "m", waited_s=MAX_SECONDS)),
    ],
)
def test_odd_values_of_clients_are_fitted(fields: dict[str, Any], waited_s: float, expected: AskFrame) -> None:
    assert received(ask_frame(lease(**fields), waited_s)) == [expected]


@pytest.mark.parametrize(
    ("usage", "kept"),
    [
        (Usage(prompt_tokens=7, cached_tokens=5), True),
        (Usage(prompt_tokens=MAX_COUNT), True),
        (Usage(prompt_tokens=10**30), False),
        (Usage(completion_tokens=-1), False),
    ],
)
def test_a_release_carries_the_usage_if_it_is_possible(usage: Usage, kept: bool) -> None:
    subject = lease()
    subject.grant(engine())
    subject.report_answer(usage)
    assert received(release_frame(subject)) == [ReleaseFrame(7, True, usage if kept else None)]


def test_durations_of_many_models_take_several_frames() -> None:
    answers = {f"m{number}": [1.0, -1.0, 1e9] for number in range(450)} | {"x" * (MAX_NAME + 1): [1.0]}
    frames = received(*seed_frames(answers))
    assert [type(frame) for frame in frames] == [SeedFrame] * 3
    seeded = {model: seconds for frame in frames for model, seconds in frame.answers.items()}
    assert seeded == {f"m{number}": (1.0, 0.0, MAX_SECONDS) for number in range(450)}
