"""Background work runs only on an idle host, one model at a time, and any other request cuts it off."""

from __future__ import annotations

from fakes.scheduler_host import A, B, C, SchedulerHost, loaded_host, profile

from hostler.supervisor.contract import Failure, ModelLease

QUIET = {"idle_s": 10.0}


def work(host: SchedulerHost, model: str) -> int:
    return host.request(model, client="batch", background=True)


def test_a_loaded_model_does_background_work_in_its_free_slots() -> None:
    host = loaded_host(profile("a", parallel=2))
    first, second, third = (work(host, "a") for _ in range(3))
    assert host.served == [first, second]
    host.release(first)
    assert host.served == [first, second, third]


def test_background_work_waits_for_every_other_request() -> None:
    host = loaded_host(profile("a", parallel=4))
    chat = host.request("a")
    waiting = work(host, "a")
    assert host.served == [chat]
    host.release(chat)
    assert host.served == [chat, waiting]


def test_a_request_cuts_background_work_off_and_is_granted_at_once_or_next() -> None:
    host = loaded_host(profile("a", parallel=2))
    one, two = work(host, "a"), work(host, "a")
    chat = host.request("a")
    assert host.revoked == [one, two]
    assert chat not in host.served
    host.release(one)
    assert host.served[-1] == chat
    host.release(two)
    again = work(host, "a")
    assert again not in host.served
    host.release(chat)
    assert host.served[-1] == again


def test_a_request_that_finds_a_free_slot_cuts_background_work_off_as_well() -> None:
    host = loaded_host(profile("a", parallel=2))
    one = work(host, "a")
    chat = host.request("a")
    assert (host.revoked, host.served) == ([one], [one, chat])


def test_a_model_is_loaded_for_background_work_once_the_host_is_idle() -> None:
    host = loaded_host(A, B, **QUIET)
    chat = host.request("a")
    waiting = work(host, "b")
    host.now = 5.0
    host.release(chat)
    host.advance_to(14.9)
    assert host.loads() == []
    host.advance_to(15.0)
    assert (host.loads(), host.switches[0].evict) == (["b"], ("a",))
    host.finish_switch()
    assert host.served[-1] == waiting


def test_no_deadline_is_left_of_cancelled_or_refused_work() -> None:
    host = loaded_host(A, B, **QUIET)
    host.release(host.request("a"))
    waiting = work(host, "b")
    assert host.scheduler.next_deadline() == 10.0
    host.note(host.scheduler.cancel(waiting, host.now))
    assert host.scheduler.next_deadline() is None
    work(host, "b")
    assert host.scheduler.next_deadline() == 10.0
    host.note(host.scheduler.unload("b", host.now))
    assert host.scheduler.next_deadline() is None


def test_work_is_grouped_by_model() -> None:
    host = loaded_host(A, B, idle_s=0.0)
    host.now = 100.0
    running = work(host, "a")
    for name in ("b", "a", "b", "a"):
        work(host, name)
    for _ in range(2):
        host.release(running)
        running = host.served[-1]
    host.release(running)
    assert host.loads() == []
    host.advance_to(102.0)
    assert host.loads() == ["b"]
    host.finish_switch()
    host.release(host.served[-1])
    host.release(host.served[-1])
    assert (len(host.served), host.loads()) == (5, ["b"])


def test_a_request_gives_up_a_load_for_background_work() -> None:
    host = loaded_host(A, B, idle_s=0.0)
    host.now = 100.0
    waiting = work(host, "b")
    assert host.loads() == ["b"]
    chat = host.request("a")
    assert host.unloads == ["b"]
    host.note(host.scheduler.load_failed(1, "b", host.now, Failure(kind="cancelled", message="unloaded")))
    host.note(host.scheduler.unloaded("b", host.now))
    assert host.loads() == ["b", "a"]
    host.finish_switch()
    assert host.served == [chat]
    assert waiting in host.waiting


def test_a_request_for_the_model_that_is_being_loaded_keeps_the_load() -> None:
    host = loaded_host(A, B, idle_s=0.0)
    host.now = 100.0
    work(host, "b")
    chat = host.request("b")
    host.finish_switch()
    assert (host.unloads, host.served) == ([], [chat])


def test_no_switch_is_begun_while_a_request_waits() -> None:
    host = SchedulerHost(A, B, C, idle_s=0.0)
    host.now = 100.0
    chat = host.request("a")
    work(host, "b")
    host.finish_switch()
    host.advance_to(200.0)
    assert (host.loads(), host.served) == (["a"], [chat])


def test_background_work_takes_no_place_in_the_queue() -> None:
    host = SchedulerHost(A, B, max_waiting=1)
    tickets = [work(host, "a") for _ in range(5)]
    chat = host.request("a")
    assert host.refused == {}
    assert host.scheduler.position(tickets[0]) is None
    assert host.scheduler.position(chat) == 1
    assert host.scheduler.view().waiting[0].id == chat


def test_work_that_cannot_be_done_is_refused_with_the_reason() -> None:
    host = SchedulerHost(A, B, idle_s=0.0)
    host.now = 100.0
    failing = work(host, "a")
    host.fail_switch(Failure(kind="exited", message="it exited", retry_after_s=60.0))
    later = work(host, "a")
    unknown = work(host, "x")
    assert [host.refused[ticket].reason for ticket in (failing, later, unknown)] == [
        *("load_failed", "load_failed", "unknown_model")
    ]
    chat = host.request("b")
    waiting = work(host, "b")
    host.note(host.scheduler.unload("b", host.now))
    assert host.refused[waiting].reason == "unloaded"
    assert host.refused[chat].reason == "unloaded"
    gone = work(host, "b")
    host.note(host.scheduler.supervisor_lost(host.now))
    assert host.refused[gone].reason == "host_gone"


def test_work_that_would_evict_a_leased_model_is_refused() -> None:
    host = loaded_host(A, B, idle_s=0.0)
    host.now = 100.0
    lease = ModelLease(id="lease-1", model="a", holder="ann", created_at=0.0, expires_at=7200.0)
    host.note(host.scheduler.apply_leases((lease,), host.now))
    refused = host.refused[work(host, "b")]
    assert (refused.reason, refused.model_lease) == ("leased", lease)


def test_work_can_be_withdrawn() -> None:
    host = loaded_host(A)
    running, waiting = work(host, "a"), work(host, "a")
    host.cancel(waiting)
    host.release(running)
    assert host.served == [running]


def test_the_default_model_does_not_return_in_the_middle_of_background_work() -> None:
    default = profile("a", default=True)
    host = loaded_host(default, B, idle_s=0.0, limits={"return_to_default_s": 5.0, "exclusive": True})
    host.now = 100.0
    first = work(host, "b")
    host.finish_switch()
    host.advance_to(150.0)
    assert host.loads() == ["b"]
    host.release(first)
    host.advance_to(160.0)
    assert host.loads() == ["b", "a"]
