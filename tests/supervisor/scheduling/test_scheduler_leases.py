"""Leased models stay loaded, and requests that would have to evict them are refused."""

from __future__ import annotations

from fakes.scheduler_host import SchedulerHost, loaded_host, profile

from hostler.supervisor.contract import Failure, HostStatus, ModelLease, ModelStatus

A, B = profile("a", ttl_s=10.0), profile("b")
LEASE = ModelLease(id="lease-1", model="a", holder="ann", created_at=0.0, expires_at=7200.0)
LATER = ModelLease(id="lease-2", model="a", holder="bob", created_at=0.0, expires_at=9000.0)


def lease(host: SchedulerHost, *leases: ModelLease) -> None:
    host.note(host.scheduler.apply_leases(leases, host.now))


def refusal(host: SchedulerHost, ticket: int) -> tuple[str, ModelLease | None]:
    refused = host.refused[ticket]
    return refused.reason, refused.model_lease


def test_refuses_a_request_that_would_evict_a_leased_model_and_names_the_last_lease() -> None:
    host = loaded_host(A, B)
    lease(host, LATER, LEASE)
    assert refusal(host, host.request("b")) == ("leased", LATER)
    assert host.switches == []


def test_refuses_what_is_queued_already_when_the_lease_begins() -> None:
    host = loaded_host(A, B)
    host.request("a")
    waiting = host.request("b")
    lease(host, LEASE)
    assert refusal(host, waiting) == ("leased", LEASE)


def test_serves_the_leased_model_and_what_fits_beside_it() -> None:
    host = loaded_host(
        profile("a", memory_bytes=4), profile("b", memory_bytes=4), profile("c", memory_bytes=6), budget=9
    )
    lease(host, LEASE)
    assert host.request("a") in host.served
    beside = host.request("b")
    assert host.loads() == ["b"]
    host.finish_switch()
    assert beside in host.served
    assert refusal(host, host.request("c")) == ("leased", LEASE)


def test_says_that_a_model_does_not_fit_where_no_lease_is_to_blame() -> None:
    host = loaded_host(profile("a", memory_bytes=4), profile("b", memory_bytes=40), budget=9)
    lease(host, LEASE)
    assert refusal(host, host.request("b")) == ("does_not_fit", None)


def test_evicts_the_model_again_after_the_lease() -> None:
    host = loaded_host(A, B)
    lease(host, LEASE)
    lease(host)
    host.request("b")
    assert host.switches[0].evict == ("a",)


def test_a_leased_model_has_no_idle_time_until_the_lease_ends() -> None:
    host = loaded_host(A, B)
    lease(host, LEASE)
    host.release(host.request("a"), keep_alive_s=0.0)
    host.advance_to(100.0)
    assert host.unloads == []
    lease(host)
    host.advance_to(111.0)
    assert host.unloads == ["a"]


def test_nothing_takes_the_place_of_a_leased_model_that_is_being_restarted() -> None:
    host = loaded_host(A, B)
    lease(host, LEASE)
    host.note(host.scheduler.process_ended("a", host.now))
    assert refusal(host, host.request("b")) == ("leased", LEASE)
    waiting = host.request("a")
    assert host.loads() == ["a"]
    host.finish_switch()
    assert waiting in host.served


def test_keeps_the_place_of_a_leased_model_after_a_restart_of_the_supervisor() -> None:
    host = SchedulerHost(A, B)
    status = HostStatus(profiles=(A, B), leases=(LEASE,), generation=2)
    host.note(host.scheduler.apply_snapshot(status, host.now))
    assert refusal(host, host.request("b")) == ("leased", LEASE)


def test_the_lease_of_a_model_that_cannot_be_loaded_takes_no_memory_from_others() -> None:
    host = SchedulerHost(A, B)
    lease(host, LEASE)
    host.request("a")
    host.fail_switch(Failure(kind="out_of_memory", message="no memory"))
    host.request("b")
    assert host.loads() == ["a", "b"]


def test_the_lease_of_a_model_that_the_supervisor_gave_up_takes_no_memory_from_others() -> None:
    host = loaded_host(A, B)
    lease(host, LEASE)
    host.note(host.scheduler.process_ended("a", host.now, failed=True))
    host.request("b")
    assert host.loads() == ["b"]


def test_a_failed_model_in_a_snapshot_takes_no_memory_from_others() -> None:
    host = SchedulerHost(A, B)
    failed = ModelStatus(
        model="a", state="failed", since=0.0, failure=Failure(kind="exited", message="it exited", retry_after_s=60.0)
    )
    host.note(host.scheduler.apply_snapshot(HostStatus(profiles=(A, B), models=(failed,), leases=(LEASE,)), host.now))
    host.request("b")
    assert host.loads() == ["b"]


def test_hosts_without_the_lease_are_nearer() -> None:
    host = loaded_host(A, B)
    lease(host, LEASE)
    assert host.scheduler.distance("b", host.now).steps == 4
    assert host.scheduler.outlooks(host.now)["b"].steps == 4
    estimate = host.scheduler.estimate_switch("b", host.now)
    assert estimate is not None
    assert not estimate.possible
