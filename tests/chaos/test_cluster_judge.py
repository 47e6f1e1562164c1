"""The judge of the cluster's storm finds every mistake in the engines' logs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from chaos.cluster_judge import (
    answered_twice,
    broken_for_nothing,
    crowded_engines,
    most_in_a_minute,
    overlapping_engines,
    unworked,
    used_tokens,
    work_of,
)
from chaos.cluster_storm import Try
from chaos.cluster_world import LIMITED_TOKENS, METERED, PACED, ClusterWorld, Disturbance
from chaos.judge import StormRequest

REQUEST = StormRequest(name="r1t1", words=2, model="a", protocol="openai", stream=True)
TRY = Try(request=REQUEST, key="client1", gateway="gateway1", sent=1.0, ended=9.0, verdict="complete")


def begun(request: str = "r1t1", *, at: float = 2.0, pid: int = 7, running: int = 1) -> dict[str, Any]:
    return {"event": "begin", "at": at, "pid": pid, "request": request, "running": running, "slots": 2}


def ended(request: str = "r1t1", *, at: float = 3.0, pid: int = 7, how: str = "finished") -> dict[str, Any]:
    return {"event": "end", "at": at, "pid": pid, "request": request, "how": how}


def world(*disturbances: Disturbance) -> ClusterWorld:
    """A world in which only this has happened."""
    happened: Any = SimpleNamespace(disturbances=disturbances)
    happened.explained = lambda *arguments: ClusterWorld.explained(happened, *arguments)
    return cast(ClusterWorld, happened)


def disturbed(*names: str, began: float = 2.0) -> Disturbance:
    return Disturbance(names=frozenset(names), action="kill", began=began, ended=began + 1.0)


def test_an_engine_beside_another_one_is_found() -> None:
    logs = {"host1": [{"event": "start", "alive": []}, {"event": "start", "alive": [7]}]}
    assert len(overlapping_engines(logs)) == 1


def test_more_requests_than_slots_are_found() -> None:
    logs = {"host1": [begun(running=2), begun("r2t1", running=3)]}
    assert len(crowded_engines(logs)) == 1


def test_an_answer_that_no_engine_has_finished_is_found() -> None:
    assert unworked([TRY], work_of({"host1": [begun(), ended()]})) == []
    for events in ([], [begun()], [begun(), ended(how="gone")]):
        assert len(unworked([TRY], work_of({"host1": events}))) == 1


@pytest.mark.parametrize(
    ("happened", "found"),
    [
        ([], 1),
        ([disturbed("host1")], 0),
        ([disturbed("gateway1")], 0),
        ([disturbed("gateway1", "host1")], 0),
        ([disturbed("gateway1", "host2"), disturbed("host2"), disturbed("host1", began=20.0)], 1),
    ],
)
def test_an_answer_that_was_given_twice_for_no_reason_is_found(happened: list[Disturbance], found: int) -> None:
    work = work_of({"host1": [begun(), ended()], "host2": [begun(at=4.0), ended(at=5.0)]})
    assert len(answered_twice(world(*happened), [TRY], work)) == found


def test_an_answer_that_broke_off_for_no_reason_is_found() -> None:
    broken = msgspec.structs.replace(TRY, verdict="broken")
    assert broken_for_nothing(world(), [TRY]) == []
    assert len(broken_for_nothing(world(), [broken])) == 1
    assert len(broken_for_nothing(world(disturbed("host4"), disturbed("gateway2")), [broken])) == 1
    assert broken_for_nothing(world(disturbed("host3")), [broken]) == []


def test_what_keys_with_limits_have_used_is_counted() -> None:
    metered = msgspec.structs.replace(TRY, key=METERED)
    assert used_tokens([TRY, metered, msgspec.structs.replace(metered, verdict="limited")]) == LIMITED_TOKENS
    paced = [
        msgspec.structs.replace(TRY, key=PACED, sent=at, request=msgspec.structs.replace(REQUEST, name=f"r{number}t1"))
        for number, at in enumerate((0.0, 29.0, 58.0, 60.0))
    ]
    events = [begun(f"r{number}t1", at=at) for number, at in enumerate((0.0, 30.0, 59.0, 61.0))]
    assert most_in_a_minute(paced, work_of({"host1": events})) == 3
    # It may have been admitted long before it was begun.
    late = [begun("r0t1", at=59.5), *events[1:]]
    assert most_in_a_minute(paced, work_of({"host1": late})) == 3
    early = [msgspec.structs.replace(paced[0], sent=-5.0), *paced[1:3]]
    assert most_in_a_minute(early, work_of({"host1": late})) == 2
    assert most_in_a_minute(paced, {}) == 0
