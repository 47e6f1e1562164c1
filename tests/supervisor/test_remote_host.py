"""A host on another machine, over a real connection to a real server."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest
from fakes.tcp_proxy import TcpProxy, proxy_to

from hostler.adapters.canonical import Usage
from hostler.adapters.errors import BackendUnavailable, GatewayError, ModelUnavailable, ShuttingDown, TooManyRequests
from hostler.supervisor.api import create_app
from hostler.supervisor.client import SupervisorClient
from hostler.supervisor.contract import (
    DevicesRead,
    DeviceStatus,
    EngineAddress,
    Failure,
    ModelChanged,
    ModelStatus,
    SwitchMoved,
)
from hostler.supervisor.lease_frames import MAX_LEASES, SwitchFrame, WelcomeFrame
from hostler.supervisor.lease_server import LeaseServer
from hostler.supervisor.remote_host import RemoteHost
from hostler.supervisor.scheduling.events import DevicesChanged, HostChanged, HostEvent
from hostler.supervisor.scheduling.lease import Lease
from hostler.supervisor.scheduling.types import SchedulerSettings

pytestmark = pytest.mark.anyio
TOKEN = "t"
LIMITS = SchedulerSettings()
Serve = Callable[[Any], AbstractAsyncContextManager[str]]
Leasing = Callable[..., AbstractAsyncContextManager[LeaseServer]]


class Gateway:
    """A gateway's view of one host, and the events that it published."""

    def __init__(self, url: str, token: str | None = TOKEN, limits: SchedulerSettings = LIMITS) -> None:
        self.events: list[HostEvent] = []
        self.stopping: list[EngineAddress] = []
        self.client = SupervisorClient(url, token)
        self.host = RemoteHost(
            "pc", url, token, client=self.client, limits=limits, publish=self.events.append,
            on_status=lambda status: None, on_stopping=self.stopping.append, clock=time.monotonic,
        )  # fmt: skip

    async def until(self, condition: Callable[[], object]) -> None:
        with anyio.fail_after(15):
            while not condition():  # noqa: ASYNC110 - frames arrive by themselves
                await anyio.sleep(0.005)

    async def settled(self, lease: Lease) -> None:
        with anyio.fail_after(15):
            while not await lease.wait(5):
                lease.take_notification()

    async def granted(self, model: str = "alpha", **fields: Any) -> Lease:
        lease = self.host.lease(model, **fields)
        await self.settled(lease)
        lease.address()
        return lease

    async def refusal(self, model: str = "alpha") -> GatewayError:
        lease = self.host.lease(model)
        await self.settled(lease)
        with pytest.raises(GatewayError) as refused:
            lease.address()
        lease.release()
        return refused.value


@asynccontextmanager
async def connected(url: str, *, reachable: bool = True, limits: SchedulerSettings = LIMITS) -> AsyncIterator[Gateway]:
    gateway = Gateway(url, limits=limits)
    async with gateway.client, anyio.create_task_group() as tasks:
        tasks.start_soon(gateway.host.run)
        if reachable:
            with anyio.fail_after(15):
                await gateway.host.synced.wait()
        yield gateway
        tasks.cancel_scope.cancel()


@pytest.fixture
async def leases(fake_supervisor: Any, leasing: Leasing) -> AsyncIterator[LeaseServer]:
    async with leasing(fake_supervisor) as leases:
        yield leases


@pytest.fixture
async def proxy(fake_supervisor: Any, leases: LeaseServer, serve: Serve) -> AsyncIterator[TcpProxy]:
    """A proxy to a supervisor."""
    async with serve(create_app(fake_supervisor, leases, token=TOKEN)) as url, proxy_to(url) as proxy:
        yield proxy


@pytest.fixture
async def gateway(proxy: TcpProxy) -> AsyncIterator[Gateway]:
    async with connected(f"http://127.0.0.1:{proxy.port}") as gateway:
        yield gateway


async def test_a_lease_is_granted_with_the_engines_address(gateway: Gateway, fake_supervisor: Any) -> None:
    lease = await gateway.granted()
    assert lease.address() == fake_supervisor.ready["alpha"]
    assert lease.waited_s > 0
    assert gateway.host.serving == 1
    lease.release()
    await gateway.until(lambda: gateway.host.serving == 0)


async def test_the_status_is_the_supervisors(gateway: Gateway, fake_supervisor: Any) -> None:
    assert gateway.host.status == fake_supervisor.host()
    status = ModelStatus(model="alpha", state="starting", since=1.0, generation=1)
    fake_supervisor.publish(ModelChanged(status=status))
    await gateway.until(lambda: gateway.host.status is not None and status in gateway.host.status.models)


async def test_readings_of_gpus_reach_the_gateway(gateway: Gateway, fake_supervisor: Any) -> None:
    devices = (DeviceStatus(name="gpu0", vendor="nvidia", total_bytes=24, used_bytes=9, utilization=40.0),)
    fake_supervisor.publish(DevicesRead(devices=devices))
    await gateway.until(lambda: gateway.host.status is not None and gateway.host.status.devices == devices)
    assert DevicesChanged(backend="pc", devices=devices) in gateway.events


async def test_an_engine_that_listens_everywhere_is_met_where_its_supervisor_is(
    gateway: Gateway, fake_supervisor: Any, leases: LeaseServer
) -> None:
    everywhere = EngineAddress(model="alpha", host="0.0.0.0", port=1, key="k", generation=1, context=1, parallel=1)
    fake_supervisor.ready["alpha"] = everywhere
    lease = await gateway.granted()
    assert lease.address() == msgspec.structs.replace(everywhere, host="127.0.0.1")
    lease.release()


async def test_a_refusal_has_the_reason(gateway: Gateway, fake_supervisor: Any) -> None:
    assert "no longer has a profile" in (await gateway.refusal("gamma")).message
    fake_supervisor.failure = Failure(kind="out_of_memory", message="no memory left", lines=("E oom",), retry_after_s=4)
    error = await gateway.refusal()
    assert isinstance(error, ModelUnavailable)
    assert "no memory left" in error.message
    assert (error.final, error.retry_after_s) == (True, None)


async def test_a_refusal_that_may_be_over_soon_says_when(gateway: Gateway, fake_supervisor: Any) -> None:
    fake_supervisor.failure = Failure(kind="unresponsive", message="it hung", retry_after_s=4)
    error = await gateway.refusal()
    assert isinstance(error, ModelUnavailable) and not error.final
    assert error.retry_after_s == pytest.approx(4, abs=1)


async def test_a_queued_lease_knows_its_place_and_hears_of_the_switch(gateway: Gateway, fake_supervisor: Any) -> None:
    fake_supervisor.gate = anyio.Event()
    first, second = gateway.host.lease("alpha"), gateway.host.lease("alpha")
    await gateway.until(lambda: gateway.host.waiting == 2 and gateway.host.progress(second).position == 2)
    await gateway.until(lambda: gateway.host.progress(first).phase == "loading")
    assert first.take_notification()
    assert first.estimate_s() > 0
    await gateway.until(lambda: [each.position for each in gateway.host.queue()] == [1, 2])
    fake_supervisor.gate.set()
    await gateway.settled(first)
    second.release()
    first.release()
    await gateway.until(lambda: gateway.host.waiting == gateway.host.serving == 0)


async def test_the_release_carries_the_first_answers_usage(gateway: Gateway, fake_supervisor: Any) -> None:
    lease = await gateway.granted()
    lease.report_answer(Usage(prompt_tokens=7, cached_tokens=5))
    lease.release()
    await gateway.until(lambda: fake_supervisor.answers)
    assert fake_supervisor.answers == [("alpha", 1, 5, 7)]


async def test_operations_go_by_http(gateway: Gateway, fake_supervisor: Any) -> None:
    lease = await gateway.granted()
    await gateway.host.unload("alpha", force=True)
    await gateway.until(lambda: lease.revoked == "unloaded")
    assert fake_supervisor.ready == {}
    assert [address.model for address in gateway.stopping] == ["alpha"]
    lease.release()
    forecast = await gateway.host.estimate_switch("beta")
    assert forecast is not None and forecast.model == "beta"
    with pytest.raises(ModelUnavailable):
        await gateway.host.unload("gamma")


async def test_a_lease_that_has_waited_elsewhere_brings_its_age(
    gateway: Gateway, fake_supervisor: Any, leases: LeaseServer
) -> None:
    fake_supervisor.gate = anyio.Event()
    lease = gateway.host.lease("alpha", waited_s=30.0)
    await gateway.until(lambda: leases.host.waiting)
    assert leases.host.queue()[0].waited_s >= 30.0
    fake_supervisor.gate.set()
    await gateway.settled(lease)
    assert lease.waited_s >= 30.0
    lease.release()


async def test_a_lost_connection_is_renewed_and_what_waits_is_asked_for_again(
    gateway: Gateway, fake_supervisor: Any, leases: LeaseServer
) -> None:
    fake_supervisor.gate = anyio.Event()
    lease = gateway.host.lease("alpha", request_id="r")
    await gateway.until(lambda: leases.host.waiting)
    await anyio.sleep(1.1)  # shorter connections are renewed after a pause
    [session] = leases._sessions.values()
    session.close("for the test")
    await gateway.until(lambda: session not in leases._sessions.values() and leases.host.waiting == 1)
    assert leases.host.queue()[0].waited_s > 1.0  # it keeps its age
    fake_supervisor.gate.set()
    await gateway.settled(lease)
    assert lease.granted
    lease.release()
    assert not [event for event in gateway.events if isinstance(event, HostChanged) and not event.reachable]


async def test_a_switch_that_ended_while_there_was_no_connection_is_shown_no_longer(
    gateway: Gateway, fake_supervisor: Any, leases: LeaseServer
) -> None:
    fake_supervisor.gate = anyio.Event()
    first = gateway.host.lease("alpha")
    await gateway.until(lambda: gateway.host.progress(first).phase == "loading")
    await anyio.sleep(1.1)  # shorter connections are renewed after a pause
    [session] = leases._sessions.values()
    session.close("for the test")
    fake_supervisor.gate.set()
    await gateway.settled(first)
    second = gateway.host.lease("alpha")
    await gateway.until(lambda: gateway.host.progress(second).position == 1)
    assert gateway.host.progress(second).phase == "queued"
    second.release()
    assert second.switch_s == 0.0 < second.waited_s
    first.release()


async def test_of_another_process_of_the_supervisor_nothing_known_before_is_valid(gateway: Gateway) -> None:
    (await gateway.granted()).release()
    await gateway.until(lambda: gateway.host.models())
    gateway.host._on_frame(WelcomeFrame(7))
    assert gateway.host.models() == ()
    gateway.host._on_frame(SwitchFrame(SwitchMoved(id="s", model="alpha", phase="loading")))
    gateway.host._on_frame(WelcomeFrame(7))
    assert gateway.host._view.switches == {}


async def test_nothing_is_used_that_was_granted_before_a_suspension(
    gateway: Gateway, fake_supervisor: Any, leases: LeaseServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fake_supervisor.gate = anyio.Event()
    lease = gateway.host.lease("alpha")
    await gateway.until(lambda: leases.host.waiting)
    await anyio.sleep(1.1)  # shorter connections are renewed after a pause
    connections: list[int] = []
    lease.on_change = lambda lease: connections.append(caplog.text.count("connected from"))
    caplog.clear()
    gateway.host._link._alive_at -= 10.0
    fake_supervisor.gate.set()
    await gateway.settled(lease)
    assert lease.granted
    assert connections == [1]  # granted anew
    lease.release()


async def test_the_highest_priority_of_a_gateway_is_the_hosts_highest(
    gateway: Gateway, fake_supervisor: Any, leases: LeaseServer
) -> None:
    fake_supervisor.gate = anyio.Event()
    waiting = [gateway.host.lease("alpha", request_id=str(number), priority=number) for number in (0, 10**9, -(10**9))]
    await gateway.until(lambda: leases.host.waiting == 3)
    assert [each.id for each in leases.host.queue()] == ["1000000000", "0", "-1000000000"]
    fake_supervisor.gate.set()
    for lease in waiting:
        lease.release()


async def test_a_gateway_without_limits_of_its_own_is_accepted(proxy: TcpProxy, leases: LeaseServer) -> None:
    limits = SchedulerSettings(max_wait_s=math.inf, patience_s=1e9, max_waiting=2**70).clamped()
    async with connected(f"http://127.0.0.1:{proxy.port}", limits=limits) as gateway:
        (await gateway.granted()).release()


async def test_a_gateway_that_is_rejected_logs_the_reason(proxy: TcpProxy, caplog: pytest.LogCaptureFixture) -> None:
    invalid = SchedulerSettings(max_wait_s=1e9)
    async with connected(f"http://127.0.0.1:{proxy.port}", reachable=False, limits=invalid) as gateway:
        await gateway.until(lambda: "ended the connection: invalid frame: Expected `float`" in caplog.text)


async def test_a_gateway_refuses_what_one_connection_cannot_carry(proxy: TcpProxy, fake_supervisor: Any) -> None:
    fake_supervisor.gate = anyio.Event()
    limits = SchedulerSettings(max_waiting=2 * MAX_LEASES)
    async with connected(f"http://127.0.0.1:{proxy.port}", limits=limits) as gateway:
        for _ in range(MAX_LEASES):
            assert not gateway.host.lease("alpha").settled
        refused = gateway.host.lease("alpha")
        with pytest.raises(TooManyRequests) as raised:
            refused.address()
        assert raised.value.retry_after_s
        refused.release()
        assert gateway.host.reachable


async def test_impossible_numbers_of_an_engine_cost_no_release(gateway: Gateway, leases: LeaseServer) -> None:
    lease = await gateway.granted()
    lease.report_answer(Usage(prompt_tokens=10**30, completion_tokens=-1))
    lease.release()
    await gateway.until(lambda: leases.host.serving == 0)


async def test_a_held_lease_is_claimed_with_the_next_connection(
    gateway: Gateway, fake_supervisor: Any, leases: LeaseServer, proxy: TcpProxy
) -> None:
    fake_supervisor.active = 1
    lease = await gateway.granted()
    await proxy.cut()
    await gateway.until(lambda: not gateway.host.reachable)
    await gateway.until(lambda: leases.gateways == 0)
    assert leases.host.serving == 1
    proxy.restore()
    await gateway.until(lambda: gateway.host.reachable)
    fake_supervisor.active = 0  # which frees abandoned leases
    await anyio.sleep(0.3)
    assert leases.host.serving == 1
    lease.release()
    await gateway.until(lambda: leases.host.serving == 0)


async def test_a_lease_released_meanwhile_is_released_with_the_next_connection(
    gateway: Gateway, fake_supervisor: Any, leases: LeaseServer, proxy: TcpProxy
) -> None:
    fake_supervisor.active = 1
    lease = await gateway.granted()
    await proxy.cut()
    await gateway.until(lambda: not gateway.host.reachable)
    lease.release()
    proxy.restore()
    await gateway.until(lambda: gateway.host.reachable)
    assert leases.host.serving == 0


async def test_without_the_supervisor_nothing_is_granted(
    gateway: Gateway, fake_supervisor: Any, proxy: TcpProxy
) -> None:
    fake_supervisor.gate = anyio.Event()
    waiting = gateway.host.lease("beta")
    await gateway.until(lambda: gateway.host.waiting)
    await proxy.cut()
    await gateway.settled(waiting)
    with pytest.raises(BackendUnavailable, match="does not respond"):
        waiting.address()
    assert isinstance(await gateway.refusal(), BackendUnavailable)
    assert gateway.host.distance("alpha").steps == 4
    fake_supervisor.gate.set()
    proxy.restore()
    await gateway.until(lambda: gateway.host.reachable)
    (await gateway.granted()).release()


async def test_a_silent_connection_is_given_up(gateway: Gateway, proxy: TcpProxy, leases: LeaseServer) -> None:
    proxy.hold()
    await gateway.until(lambda: not gateway.host.reachable)
    await gateway.until(lambda: leases.gateways == 0)
    proxy.restore()
    await gateway.until(lambda: gateway.host.reachable)


async def test_a_failed_check_ends_the_connection_and_a_new_one_follows(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.host.set_reachable(False)
    assert not gateway.host.reachable
    await gateway.until(lambda: gateway.host.reachable)
    problems = [record.message for record in caplog.records if record.name == "hostler.supervisor.remote_host"]
    assert problems == [f"pc: the supervisor at {gateway.host._link.url} does not respond to a check"]


async def test_a_gateway_that_stops_refuses_what_waits_and_keeps_what_runs(
    gateway: Gateway, fake_supervisor: Any, leases: LeaseServer
) -> None:
    running = await gateway.granted("alpha")
    fake_supervisor.gate = anyio.Event()
    waiting = gateway.host.lease("beta")
    load = gateway.host.distance("alpha").host_load
    gateway.host.stop(lambda: ShuttingDown("stopping"))
    assert gateway.host.distance("alpha").host_load == load - 1
    with pytest.raises(ShuttingDown):
        waiting.address()
    waiting.release()
    assert isinstance(await gateway.refusal(), ShuttingDown)
    await gateway.until(lambda: (leases.host.waiting, leases.host.serving) == (0, 1))
    running.release()
    fake_supervisor.gate.set()
    await gateway.until(lambda: leases.host.serving == 0)


async def test_a_supervisor_that_stops_sends_requests_elsewhere_and_waits_for_answers(
    gateway: Gateway, leases: LeaseServer
) -> None:
    running = await gateway.granted()
    leases.close()
    await gateway.until(lambda: not gateway.host.reachable)
    assert "is stopping" in (await gateway.refusal()).message
    with anyio.fail_after(15):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leases.drained, 600.0)
            running.release()


async def test_a_waiting_request_hears_that_the_supervisor_stops_before_it_is_refused(
    gateway: Gateway, fake_supervisor: Any, leases: LeaseServer
) -> None:
    fake_supervisor.gate = anyio.Event()
    lease, returning = gateway.host.lease("alpha"), list[bool]()
    await gateway.until(lambda: leases.host.waiting)
    lease.on_change = lambda lease: returning.append(gateway.host.returning)
    leases.close()
    await gateway.settled(lease)
    assert returning == [True]
    fake_supervisor.gate.set()


async def test_what_is_asked_while_the_supervisor_stops_waits_for_the_next_one(
    gateway: Gateway, leases: LeaseServer
) -> None:
    leases.close()
    lease = gateway.host.lease("alpha")  # the frames cross
    await gateway.settled(lease)
    with pytest.raises(BackendUnavailable, match="is stopping"):
        lease.address()
    assert gateway.host.returning


async def test_an_older_supervisor_is_refused_with_a_word_about_it(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    from starlette.applications import Starlette

    async with serve(Starlette()) as url, connected(url, reachable=False) as gateway:
        await gateway.until(lambda: "is of an older release" in caplog.text)
        assert "different releases; update both" in (await gateway.refusal()).message
        assert not gateway.host.reachable


@pytest.mark.parametrize("token", [None, "wrong"])
async def test_a_wrong_token_is_said_to_be_wrong(
    proxy: TcpProxy, token: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = Gateway(f"http://127.0.0.1:{proxy.port}", token)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gateway.host.run)
        await gateway.until(lambda: "rejected the token (401)" in caplog.text)
        tasks.cancel_scope.cancel()
    assert not gateway.host.reachable


async def test_answer_times_of_the_history_are_passed_on(gateway: Gateway, leases: LeaseServer) -> None:
    gateway.host.seed_service_times({"alpha": [2.0, 2.0]})
    await gateway.until(lambda: leases.host._scheduler._models["alpha"].service_s == 2.0)
