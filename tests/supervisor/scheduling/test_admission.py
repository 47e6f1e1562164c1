"""The line of refused requests: those that come back when asked get in, in bounded time, whatever others do."""

from __future__ import annotations

import pytest
from fakes.scheduler_host import A, loaded_host

from bench.crowd import measure
from hostler.supervisor.scheduling.admission import LONGEST_S, AdmissionControl
from hostler.supervisor.scheduling.queue import FairQueue, Ticket


def ticket(client: str, priority: int = 0) -> Ticket:
    return Ticket(id=0, model="a", at=0.0, client=client, priority=priority)


def times(line: AdmissionControl, *clients: str, now: float = 0.0) -> list[float]:
    """When each of the refused clients is asked to come back, with a place free after 1 s and every second then."""
    return [line.retry_after_s(ticket(client), 1.0, 1.0, now) for client in clients]


def admits(line: AdmissionControl, client: str, queued: int, now: float) -> bool:
    return line.admits(ticket(client), FairQueue(), queued, now)


@pytest.mark.parametrize("names", [None, 1, 7])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_all_of_a_crowd_that_obeys_get_in_with_few_tries(names: int | None, seed: int) -> None:
    crowd = measure(200, places=10, names=names, seed=seed)
    assert crowd.served == 200
    assert crowd.most_tries <= 4
    assert crowd.longest_retry_after_s <= LONGEST_S
    assert crowd.seconds <= 1.5 * crowd.ideal_s


def test_a_crowd_that_is_asked_to_come_back_before_its_turn_keeps_its_place() -> None:
    crowd = measure(1000, places=10)
    assert (crowd.served, crowd.longest_retry_after_s) == (1000, LONGEST_S)
    assert crowd.seconds <= 1.5 * crowd.ideal_s


def test_a_first_estimate_that_is_wrong_is_corrected() -> None:
    crowd = measure(100, places=10, service_s=4.0)
    assert crowd.served == 100 and crowd.seconds <= 1.5 * crowd.ideal_s


def test_refused_requests_are_spread() -> None:
    asked = times(AdmissionControl(2), *"abcdef")
    assert asked == sorted(set(asked)) and asked[0] == 1.0


def test_a_request_that_is_due_gets_a_place_before_one_that_is_not() -> None:
    line = AdmissionControl(2)
    assert times(line, "a") == [1.0]
    assert not admits(line, "new", 1, 1.0)  # the last place is kept
    assert admits(line, "a", 1, 1.0)
    assert admits(line, "new", 1, 1.0)


def test_a_request_that_finds_the_queue_full_again_keeps_its_place() -> None:
    line = AdmissionControl(1)
    times(line, "a", "b", "c")
    assert not admits(line, "a", 1, 1.0)
    assert times(line, "a", now=1.0) == [1.0]
    assert not admits(line, "b", 0, 3.0)  # first, if a does not come, when its time is over
    assert admits(line, "a", 0, 3.0)


def test_a_place_of_who_does_not_come_back_is_given_away() -> None:
    line = AdmissionControl(1)
    times(line, "gone")
    assert not admits(line, "new", 0, 1.0)
    assert admits(line, "new", 0, 20.0)
    assert not line


def test_no_more_than_half_of_the_places_are_kept() -> None:
    line = AdmissionControl(4)
    times(line, *["gone"] * 50)
    assert admits(line, "new", 1, 4.0)
    assert not admits(line, "new", 2, 4.0)


def test_no_places_are_kept_for_requests_that_never_come_back() -> None:
    line = AdmissionControl(4)
    now = 0.0
    for _ in range(100):
        times(line, "gone", now=now)
        now += 10.0
        line.admits(ticket("other"), FairQueue(), 0, now)
    times(line, *["gone"] * 10, now=now)
    assert admits(line, "new", 3, now + 3.0)


def test_one_clients_crowd_does_not_put_another_client_at_the_end_of_the_line() -> None:
    line = AdmissionControl(10)
    times(line, *["crowd"] * 40)
    assert times(line, "other") == [3.0]


def test_a_higher_priority_is_first_in_line() -> None:
    line = AdmissionControl(1)
    times(line, "a", "b")
    assert line.retry_after_s(ticket("urgent", priority=5), 1.0, 1.0, 0.0) == 1.0


def test_a_request_that_is_served_at_once_gives_up_its_place() -> None:
    host = loaded_host(A, max_waiting=1)
    running, waiting = host.request("a", "x"), host.request("a", "x")
    refused = host.request("a", "y")
    host.now += host.refused[refused].retry_after_s
    host.release(running)
    host.release(waiting)
    host.release(host.request("a", "y"))
    host.request("a", "z")
    host.request("a", "z")
    assert host.waiting  # no place is kept for y any more


def test_a_client_that_does_not_wait_keeps_its_place_and_gets_no_other() -> None:
    line = AdmissionControl(1)
    impatient = Ticket(id=0, model="a", at=0.0, client="a", client_port=1234)
    assert [line.retry_after_s(impatient, 3.0 - now, 1.0, now) for now in (0.0, 1.0, 2.0)] == [3.0, 2.0, 1.0]
    assert times(line, "b", now=2.0) == [3.0]


def test_the_line_is_bounded() -> None:
    line = AdmissionControl(1)
    asked = times(line, *(f"client-{number}" for number in range(2100)))
    assert max(asked) == LONGEST_S
