"""The choice between hosts: waiting, loading, caches and speeds weighed against each other."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hostler.gateway.host_ranking import better_host, is_replica, rank, ranked_names
from hostler.supervisor.scheduling.views import NO_OFFER, HostOffer, ServiceDistance


def ready(load: float = 0.0, **fields: Any) -> HostOffer:
    """The model is loaded and has a free slot."""
    return HostOffer(distance=ServiceDistance(steps=0, load=load), phase="ready", load_s=5.0, **fields)


def busy(wait_s: float = math.inf, load: float = 1.0, **fields: Any) -> HostOffer:
    """The model is loaded, and all its slots are taken."""
    return HostOffer(distance=ServiceDistance(steps=2, wait_s=wait_s, load=load), phase="ready", load_s=5.0, **fields)


def loading(wait_s: float) -> HostOffer:
    return HostOffer(distance=ServiceDistance(steps=1, wait_s=wait_s), phase="loading", load_s=wait_s)


def cold(load_s: float = 10.0, *, measured: bool = True, evicting_s: float | None = None, **fields: Any) -> HostOffer:
    """The model is not loaded. With `evicting_s` others have to leave, which counts as that many seconds."""
    steps, wait_s = (2, load_s) if evicting_s is None else (3, load_s + evicting_s)
    distance = ServiceDistance(steps=steps, wait_s=wait_s)
    return HostOffer(distance=distance, load_s=load_s, load_measured=measured, **fields)


def order(replica_wait_s: float = 0.0, **offers: HostOffer) -> list[str]:
    return [each.backend for each in rank(offers, replica_wait_s=replica_wait_s)]


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        (NO_OFFER, cold(evicting_s=60.0)),
        (cold(), ready()),
        (cold(), loading(3.0)),
        (busy(), ready()),
        (busy(), cold()),
        (busy(30.0), cold(5.0)),
        (busy(30.0), cold(5.0, evicting_s=5.0)),
        (cold(10.0, evicting_s=10.0), busy(15.0)),
        (cold(10.0, evicting_s=10.0), cold(10.0)),
        (ready(load=0.5), ready()),
        (busy(4.0, load=2.0), busy(3.0, load=3.0)),
        # Nobody knows how long answers take, but there are fewer of them.
        (busy(load=3.0), busy(load=2.0)),
        # A big model is not loaded elsewhere for an answer that probably ends sooner.
        (cold(60.0), busy()),
    ],
)
def test_the_sooner_answer_is_better(worse: HostOffer, better: HostOffer) -> None:
    assert order(a=worse, b=better) == ["b", "a"]
    assert order(a=better, b=worse) == ["a", "b"]


def test_equal_hosts_stay_in_their_order() -> None:
    assert order(b=ready(), a=ready(), c=ready()) == ["b", "a", "c"]


def test_a_conversation_stays_where_its_cache_is_unless_others_wait_there_for_too_long() -> None:
    # 40,000 bytes are 10,000 tokens, which take 10 seconds to read.
    cached = {"read_before": 40_000, "prompt_tokens_per_s": 1000.0}
    other = ready(prompt_tokens_per_s=1000.0)
    assert order(a=other, b=ready(**cached)) == ["b", "a"]
    assert order(a=other, b=busy(8.0, **cached)) == ["b", "a"]
    assert order(a=other, b=busy(12.0, **cached)) == ["a", "b"]


def test_a_faster_host_is_worth_waiting_for() -> None:
    slow = ready(tokens_per_s=10.0, answer_tokens=200.0)  # 20 seconds
    assert order(a=slow, b=busy(5.0, load=0.0, tokens_per_s=40.0)) == ["b", "a"]
    assert order(a=slow, b=busy(18.0, load=0.0, tokens_per_s=40.0)) == ["a", "b"]
    # One that was not measured yet counts as the fastest.
    assert order(a=slow, b=ready(), c=ready(tokens_per_s=40.0)) == ["b", "c", "a"]


def test_slots_in_use_make_a_host_slower() -> None:
    fields = {"tokens_per_s": 40.0, "answer_tokens": 200.0}
    assert order(a=ready(load=0.5, **fields), b=ready(**fields)) == ["b", "a"]


def test_a_load_that_was_never_measured_is_estimated_by_another_hosts() -> None:
    assert order(a=busy(2.0), b=cold(10.0, measured=False)) == ["a", "b"]
    assert order(a=busy(2.0, load_measured=True), b=cold(10.0, measured=False)) == ["a", "b"]
    known = busy(7.0, load_measured=True)  # it loads in 5 seconds
    assert order(a=known, b=cold(10.0, measured=False)) == ["b", "a"]


def test_no_replica_is_loaded_for_a_short_wait() -> None:
    assert order(5.0, a=busy(4.1), b=cold(1.0)) == ["a", "b"]
    assert order(2.0, a=busy(4.1), b=cold(1.0)) == ["b", "a"]
    # A wait of unknown length is no short one, and without the model anywhere a load is no replica.
    assert order(5.0, a=busy(), b=cold(1.0)) == ["b", "a"]
    assert order(5.0, a=cold(3.0), b=cold(1.0)) == ["b", "a"]


def test_only_neighbouring_hosts_change_places() -> None:
    offers = {"far": cold(evicting_s=5.0), "near": ready(), "last": ready()}
    names = ["far", "near", "cloud", "last"]
    assert ranked_names(names, offers, replica_wait_s=2.0) == ["near", "far", "cloud", "last"]


def test_the_reasons_say_what_was_weighed() -> None:
    offers = {
        "a": ready(tokens_per_s=35.4, read_before=2048), "b": busy(4.13), "c": busy(), "d": loading(3.0),
        "e": cold(2.0), "f": cold(2.0, evicting_s=3.0), "g": NO_OFFER,
    }  # fmt: skip
    reasons = {each.backend: "; ".join(each.reasons) for each in rank(offers, replica_wait_s=2.0, explain=True)}
    late = "not needed while the wait elsewhere is at most 2 s"
    assert reasons == {
        "a": "loaded, with a free slot; has answered this conversation before (2048 bytes); 35 tokens/s",
        "b": "all slots taken: about 4.1 s",
        "c": "all slots taken: no answer was measured yet",
        "d": "loading: about 3.0 s",
        "e": f"has to load it: about 2.0 s; {late}",
        "f": f"has to unload other models for it, which counts as 5.0 s; {late}",
        "g": "cannot serve it now",
    }


def move(own: HostOffer, rest_s: float | None = 4.1, waited_s: float = 0.0, *, may_load: bool = True, **others: HostOffer) -> str | None:  # fmt: skip
    return better_host(own, others, waited_s=waited_s, rest_s=rest_s, replica_wait_s=2.0, may_load=may_load)


def test_a_queued_request_moves_to_a_free_slot() -> None:
    assert move(busy(), b=busy(), c=ready(load=0.5), d=ready()) == "d"
    assert move(busy(), rest_s=0.5, b=ready()) == "b"
    assert move(busy(), b=busy(0.1), c=NO_OFFER) is None


def test_a_queued_conversation_stays_where_its_cache_is_while_that_is_sooner() -> None:
    # 10 seconds of reading.
    cached = busy(read_before=40_000, prompt_tokens_per_s=1000.0)
    assert move(cached, rest_s=8.0, b=ready(prompt_tokens_per_s=1000.0)) is None
    assert move(cached, rest_s=12.0, b=ready(prompt_tokens_per_s=1000.0)) == "b"
    assert move(cached, rest_s=8.0, b=cold(1.0, prompt_tokens_per_s=1000.0)) is None


def test_a_queued_request_waits_for_a_faster_host() -> None:
    fast, slow = busy(tokens_per_s=40.0, answer_tokens=200.0, load=0.0), ready(tokens_per_s=10.0)
    assert move(fast, rest_s=5.0, b=slow) is None
    assert move(fast, rest_s=18.0, b=slow) == "b"


def test_a_long_wait_has_another_host_load_the_model() -> None:
    assert move(busy(), b=cold(1.0), c=cold(0.5)) == "c"
    assert move(busy(), b=cold(1.0, evicting_s=1.0)) == "b"
    assert move(busy(), rest_s=1.5, b=cold(1.0)) is None
    assert move(busy(), b=cold(9.0)) is None
    assert move(busy(), b=cold(1.0), may_load=False) is None


def test_a_wait_of_unknown_length_counts_once_it_is_long() -> None:
    assert move(busy(), rest_s=None, waited_s=1.0, b=cold(9.0)) is None
    assert move(busy(), rest_s=None, waited_s=3.0, b=cold(9.0)) == "b"
    # A load under way is waited for.
    assert move(loading(9.0), rest_s=None, waited_s=3.0, b=cold(1.0)) is None
    assert move(busy(), rest_s=None, waited_s=3.0, b=loading(1.0), c=cold(1.0)) is None


def test_a_replica_is_a_model_that_an_earlier_host_has_loaded_as_well() -> None:
    assert is_replica("b", {"a": ready(), "b": cold()})
    assert not is_replica("a", {"a": ready(), "b": ready()})
    assert not is_replica("b", {"a": cold(), "b": ready()})
