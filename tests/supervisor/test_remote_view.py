"""What a gateway knows of a host: the supervisor's last words, and its own deeds since then."""

from __future__ import annotations

import math

from hostler.supervisor.contract import ModelStatus, SwitchMoved
from hostler.supervisor.lease_frames import PlacesFrame, QueueFrame, QueuePlace, ViewFrame
from hostler.supervisor.remote_view import RemoteView
from hostler.supervisor.scheduling.views import UNAVAILABLE, ModelView, ServiceDistance, ServiceOutlook


def model(name: str, **fields: object) -> ModelView:
    known = {
        "phase": "ready", "running": 0, "parallel": 2, "waiting": 0, "draining": False, "load_s": 1.0, "idle_until": None,
    }  # fmt: skip
    return ModelView(model=name, **{**known, **fields})  # type: ignore[arg-type]


def view(*models: ModelView, **steps: int) -> RemoteView:
    subject = RemoteView()
    subject.apply_models(ViewFrame(models, {name: ServiceOutlook(step) for name, step in steps.items()}), 10.0)
    return subject


def test_the_distance_counts_what_was_requested_since_the_last_view() -> None:
    subject = view(model("a", running=1), model("b", waiting=2), a=0, b=3)
    assert subject.distance("a", available=True) == ServiceDistance(steps=0, load=0.5, host_load=3)
    subject.asked("a")
    assert subject.distance("a", available=True) == ServiceDistance(steps=2, wait_s=math.inf, load=1.0, host_load=4)
    subject.released("a")
    subject.released("a")
    assert subject.distance("a", available=True).load == 0.0


def test_a_view_from_before_a_request_does_not_hide_it() -> None:
    subject = view(model("a"), a=0)
    subject.asked("a")
    subject.apply_models(ViewFrame((model("a"),), {"a": ServiceOutlook(0)}), 10.0, ["a"])
    assert subject.distance("a", available=True) == ServiceDistance(steps=0, load=0.5, host_load=1)
    subject.apply_models(ViewFrame((model("a", running=1),), {"a": ServiceOutlook(0)}), 10.1)
    assert subject.distance("a", available=True) == ServiceDistance(steps=0, load=0.5, host_load=1)


def test_the_wait_for_a_slot_counts_what_was_requested_since_the_last_view() -> None:
    models = (model("a", running=2, waiting=1), model("b", running=1))
    subject = RemoteView()
    outlooks = {"a": ServiceOutlook(0, 4.0, 2.0), "b": ServiceOutlook(0, 0.0, 2.0)}
    subject.apply_models(ViewFrame(models, outlooks), 10.0)
    assert [subject.distance(name, available=True).wait_s for name in ("a", "b")] == [4.0, 0.0]
    for name in ("a", "b"):
        subject.asked(name)
    assert [subject.distance(name, available=True).wait_s for name in ("a", "b")] == [6.0, 2.0]
    for name in ("a", "b"):
        subject.released(name)
        subject.released(name)
    assert [subject.distance(name, available=True).wait_s for name in ("a", "b")] == [2.0, 0.0]
    assert [subject.distance(name, available=True).steps for name in ("a", "b")] == [2, 0]


def test_what_cannot_be_reached_or_is_unknown_is_unavailable() -> None:
    subject = view(model("a"), a=0)
    assert subject.distance("a", available=False) == UNAVAILABLE
    assert subject.distance("x", available=True) == UNAVAILABLE
    subject.clear()
    assert subject.distance("a", available=True) == UNAVAILABLE


def test_a_changed_process_counts_before_the_next_view() -> None:
    subject = view(model("a"), model("b"), a=3, b=0)
    subject.apply_state(ModelStatus(model="a", state="ready", since=0.0))
    subject.apply_state(ModelStatus(model="b", state="stopped", since=0.0))
    assert subject.distance("a", available=True).steps == 0
    assert subject.distance("b", available=True).steps == 2


def test_idle_times_are_by_the_own_clock() -> None:
    assert [each.idle_until for each in view(model("a", idle_until=5.0), model("b")).models] == [15.0, None]


def test_places_count_down_and_vanish_with_the_lease() -> None:
    subject = RemoteView()
    subject.apply_places(PlacesFrame((QueuePlace(1, 1, 4.0, True), QueuePlace(2, 2, 8.0, False)), True), 0.0)
    assert subject.place(1, 1.0) == (1, 3.0)
    assert subject.place(2, 1.0) == (2, None)
    assert subject.estimate_s(2, 1.0) == 7.0
    subject.apply_places(PlacesFrame((QueuePlace(3, 3, 9.0, True),)), 1.0)
    assert subject.place(1, 1.0) == (1, 3.0)
    subject.settled(1)
    assert subject.place(1, 1.0) == (None, None)
    subject.apply_places(PlacesFrame((QueuePlace(3, 1, 9.0, True),), True), 1.0)
    assert subject.place(2, 1.0) == (None, None)


def test_a_switch_is_timed_and_each_phase_is_news_once() -> None:
    subject = RemoteView()
    switch = SwitchMoved(id="s", model="a", phase="starting", elapsed_s=2.0)
    assert subject.apply_switch(switch, 10.0)
    assert not subject.apply_switch(switch, 10.5)
    assert subject.switched_s("a", 0.0, 11.0) == 3.0
    assert subject.switched_s("a", 10.0, 11.0) == 1.0
    assert subject.apply_switch(SwitchMoved(id="s", model="a", phase="ready", elapsed_s=4.0), 12.0)
    assert subject.switched_s("a", 0.0, math.inf) == 4.0
    assert subject.switched_s("b", 0.0, 1.0) == 0.0


def test_the_queue_has_its_whole_length_even_if_not_all_are_listed() -> None:
    subject = RemoteView()
    subject.apply_queue(QueueFrame((), 700, 3), waiting=100, serving=1)
    assert (subject.others_waiting, subject.others_serving, subject.queue) == (600, 2, ())
    subject.apply_queue(QueueFrame((), 0, 0), waiting=1, serving=1)
    assert (subject.others_waiting, subject.others_serving) == (0, 0)
