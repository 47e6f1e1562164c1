"""One gateway's connection, as a careless or hostile one uses it: others are served as before."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import msgspec
import pytest

from hostler.supervisor.api import create_app
from hostler.supervisor.lease_connection import LeaseConnection, open_connection
from hostler.supervisor.lease_frames import (
    DEAD_S,
    MAX_LEASES,
    AskFrame,
    ClosingFrame,
    EngineStoppingFrame,
    EventFrame,
    GrantFrame,
    HelloFrame,
    LostFrame,
    PingFrame,
    PlacesFrame,
    RefuseFrame,
    ReleaseFrame,
    RevokeFrame,
    WelcomeFrame,
    encode_frames,
    event_reader,
)
from hostler.supervisor.lease_server import LeaseServer
from hostler.supervisor.lease_session import PIECE, LeaseSession
from hostler.supervisor.scheduling.abandoned import GIVE_UP_S
from hostler.supervisor.scheduling.types import SchedulerSettings

pytestmark = pytest.mark.anyio
T = TypeVar("T")
HELLO = HelloFrame("i", "n", SchedulerSettings())


class Raw:
    """A connection that sends whatever a test wants, and the frames that it received."""

    def __init__(self) -> None:
        self.frames: list[EventFrame] = []
        self.connection: LeaseConnection

    async def first(self, kind: type[T], count: int = 1) -> T:
        """The first frame of a kind, once there are `count` of them."""
        found: list[T] = []
        with anyio.fail_after(15):
            while len(found) < count:
                await anyio.sleep(0.002)
                found = [frame for frame in self.frames if isinstance(frame, kind)]
        return found[0]

    def send(self, *frames: msgspec.Struct) -> None:
        for frame in frames:
            self.connection.send(frame)

    async def until_closed(self) -> None:
        with anyio.fail_after(15):
            await self.connection.closed.wait()


@asynccontextmanager
async def raw(url: str, *first: msgspec.Struct) -> AsyncIterator[Raw]:
    subject = Raw()
    subject.connection = await open_connection(url, "t", subject.frames.append, timeout_s=10)
    subject.send(*first)
    try:
        yield subject
    finally:
        subject.connection.finish()


class Supervised:
    def __init__(self, url: str, leases: LeaseServer, supervisor: Any) -> None:
        self.url = url
        self.leases = leases
        self.supervisor = supervisor

    async def until(self, condition: Callable[[], object]) -> None:
        with anyio.fail_after(15):
            while not condition():  # noqa: ASYNC110 - a connection ends by itself
                await anyio.sleep(0.005)


@pytest.fixture
async def host(
    fake_supervisor: Any,
    leasing: Callable[..., AbstractAsyncContextManager[LeaseServer]],
    serve: Callable[[Any], AbstractAsyncContextManager[str]],
) -> AsyncIterator[Supervised]:
    async with leasing(fake_supervisor) as leases, serve(create_app(fake_supervisor, leases, token="t")) as url:
        yield Supervised(url, leases, fake_supervisor)


async def test_hello_is_welcomed_with_all_that_is_known(host: Supervised) -> None:
    async with raw(host.url, HELLO) as one:
        await one.first(WelcomeFrame)
        names = [type(frame).__name__ for frame in one.frames]
        assert names == ["WelcomeFrame", "HostFrame", "QueueFrame", "ViewFrame"]


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([PingFrame()], "the first frame must be hello"),
        ([AskFrame(1, "alpha")], "the first frame must be hello"),
        ([HELLO, HELLO], "a second hello"),
        ([HELLO, WelcomeFrame(1)], "invalid frame: Invalid value 'welcome'"),
        ([HELLO, AskFrame(1, "alpha"), AskFrame(1, "alpha")], "lease 1 exists"),
        ([HELLO, AskFrame(1, "alpha"), AskFrame(1, "alpha", priority=10**9)], "lease 1 exists"),
        ([HELLO, AskFrame(0, "alpha")], "invalid frame: Expected `int` >= 1"),
        ([HelloFrame("i", "n", SchedulerSettings(patience_s=1e9))], "invalid frame: Expected `float` <= 10000000.0"),
    ],
)
async def test_a_gateway_that_breaks_the_protocol_is_disconnected_alone_with_the_reason(
    host: Supervised, frames: list[msgspec.Struct], reason: str
) -> None:
    async with raw(host.url, HelloFrame("other", "n", HELLO.limits)) as other, raw(host.url, *frames) as one:
        await one.until_closed()
        assert one.connection.rejected
        assert one.connection.lost.startswith(f"ended the connection: {reason}")
        other.send(AskFrame(1, "alpha"))
        await other.first(GrantFrame)
    await host.until(lambda: host.leases.gateways == 0)


@pytest.mark.parametrize(
    "invalid", [AskFrame(2, "alpha", priority=10**9), AskFrame(2, "x" * 300), AskFrame(2, "alpha", waited_s=-1.0)]
)
async def test_an_invalid_request_for_a_lease_is_refused_alone(
    host: Supervised, invalid: AskFrame, caplog: pytest.LogCaptureFixture
) -> None:
    async with raw(host.url, HELLO, AskFrame(1, "alpha"), invalid) as one:
        refused = await one.first(RefuseFrame)
        assert (refused.id, refused.reason) == (2, "invalid")
        assert (await one.first(GrantFrame)).id == 1
    assert "is refused a lease: " in caplog.text


async def test_what_a_request_says_of_itself_reaches_the_scheduler(host: Supervised) -> None:
    host.supervisor.gate = anyio.Event()
    async with raw(host.url, HELLO) as one:
        one.send(AskFrame(1, "alpha", "anna", "low", waited_s=50.0), AskFrame(2, "alpha", "bob", "high", priority=3))
        await host.until(lambda: host.leases.host.waiting == 2)
        first, second = host.leases.host.queue()
        assert [(each.client, each.id) for each in (first, second)] == [("bob", "high"), ("anna", "low")]
        assert first.waited_s < 50.0 <= second.waited_s
        host.supervisor.gate.set()


async def test_a_request_says_how_long_its_model_stays(host: Supervised) -> None:
    async with raw(host.url, HELLO, AskFrame(1, "alpha", keep_alive_s=0.0)) as one:
        await one.first(GrantFrame)
        one.send(ReleaseFrame(1))
        await host.until(lambda: not host.supervisor.ready)


async def test_clients_without_keys_are_told_apart_by_their_gateways(host: Supervised) -> None:
    host.supervisor.gate = anyio.Event()
    async with raw(host.url, HELLO) as one, raw(host.url, HelloFrame("other", "m", HELLO.limits)) as other:
        for number, client in enumerate(("127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.7", "anna"), start=1):
            one.send(AskFrame(number, "alpha", client))
            await host.until(lambda number=number: host.leases.host.waiting == number)
        other.send(AskFrame(1, "alpha", "127.0.0.1"))
        await host.until(lambda: host.leases.host.waiting == 6)
        clients = {each.client for each in host.leases.host.queue()}
        assert clients == {
            "127.0.0.1 at n", "::1 at n", "::ffff:127.0.0.1 at n", "10.0.0.7", "anna", "127.0.0.1 at m",
        }  # fmt: skip
        host.supervisor.gate.set()


async def test_a_supervisor_that_stops_grants_nothing_any_more(host: Supervised) -> None:
    async with raw(host.url, HELLO, AskFrame(1, "alpha")) as one:
        await one.first(GrantFrame)
        one.send(ReleaseFrame(1))
        await host.until(lambda: host.leases.host.serving == 0)
        host.leases.close()
        one.send(AskFrame(2, "alpha"))
        assert (await one.first(RefuseFrame)).reason == "stopping"


async def test_a_suspension_of_the_supervisor_itself_is_no_silence_of_its_gateways(
    fake_supervisor: Any, leasing: Any, serve: Any
) -> None:
    offset = 0.0
    async with (
        leasing(fake_supervisor, clock=lambda: time.monotonic() + offset) as leases,
        serve(create_app(fake_supervisor, leases, token="t")) as url,
        raw(url, HELLO) as one,
    ):
        await one.first(PingFrame)
        offset = 100.0
        await one.first(PingFrame, sum(isinstance(frame, PingFrame) for frame in one.frames) + 1)
        assert leases.gateways == 1


async def test_an_end_of_the_connection_takes_its_tickets_along(host: Supervised) -> None:
    host.supervisor.gate = anyio.Event()
    async with raw(host.url, HELLO) as one, raw(host.url, HelloFrame("other", "n", HELLO.limits)) as other:
        one.send(*(AskFrame(number, "alpha") for number in range(1, 4)))
        await host.until(lambda: host.leases.host.waiting == 3)
        other.send(AskFrame(1, "alpha"))
        await host.until(lambda: host.leases.host.waiting == 4)
        one.connection.close("killed")
        await host.until(lambda: host.leases.host.waiting == 1)
        host.supervisor.gate.set()
        await other.first(GrantFrame)


async def test_granted_leases_of_a_dead_gateway_keep_their_slot_until_the_engine_is_idle(host: Supervised) -> None:
    host.supervisor.active = 1
    async with raw(host.url, HELLO) as one, raw(host.url, HelloFrame("other", "n", HELLO.limits)) as other:
        one.send(AskFrame(1, "alpha"))
        await one.first(GrantFrame)
        one.connection.close("killed")
        other.send(AskFrame(1, "alpha"))
        await host.until(lambda: host.leases.gateways == 1 and host.leases.host.waiting == 1)
        await anyio.sleep(0.8)
        assert host.leases.host.waiting == 1
        host.supervisor.active = 0
        await other.first(GrantFrame)


async def test_an_engine_stuck_for_a_vanished_gateway_is_restarted_for_those_who_wait(
    fake_supervisor: Any, leasing: Any, serve: Any
) -> None:
    offset, fake_supervisor.active = 0.0, 1
    async with (
        leasing(fake_supervisor, clock=lambda: time.monotonic() + offset, silence_s=600.0) as leases,
        serve(create_app(fake_supervisor, leases, token="t")) as url,
        raw(url, HelloFrame("other", "n", HELLO.limits)) as other,
    ):
        async with raw(url, HELLO, AskFrame(1, "alpha")) as one:
            first = (await one.first(GrantFrame)).address
            one.connection.close("killed")
        other.send(AskFrame(1, "alpha"))
        await other.first(PlacesFrame)
        offset = GIVE_UP_S + 5.0
        second = (await other.first(GrantFrame)).address
        assert (second.generation, fake_supervisor.starts) == (first.generation + 1, 2)
        assert (await other.first(EngineStoppingFrame)).address == first
        async with raw(url, HelloFrame("i", "n", HELLO.limits, held=(1,))) as one:
            assert await one.first(RevokeFrame) == RevokeFrame(1, "given_up")


async def test_releases_of_unknown_leases_change_nothing(host: Supervised) -> None:
    async with raw(host.url, HELLO, ReleaseFrame(7), AskFrame(1, "alpha")) as one:
        await one.first(GrantFrame)
        one.send(ReleaseFrame(1), ReleaseFrame(1), AskFrame(2, "alpha"))
        await one.first(GrantFrame, 2)
        one.send(ReleaseFrame(2))
        await host.until(lambda: host.leases.host.serving == 0)


async def test_the_queue_limit_applies_to_all_gateways_together(host: Supervised) -> None:
    host.supervisor.gate = anyio.Event()
    async with raw(host.url, HELLO) as one, raw(host.url, HelloFrame("other", "n", HELLO.limits)) as other:
        one.send(*(AskFrame(number, "alpha") for number in range(1, 11)))
        await host.until(lambda: host.leases.host.waiting == 10)
        other.send(AskFrame(1, "alpha"))
        assert (await other.first(RefuseFrame)).reason == "queue_full"
    host.supervisor.gate.set()


async def test_a_connection_has_a_bounded_number_of_leases(host: Supervised) -> None:
    host.supervisor.gate = anyio.Event()
    limits = SchedulerSettings(max_waiting=2 * MAX_LEASES)
    async with raw(host.url, HelloFrame("i", "n", limits)) as one:
        one.send(*(AskFrame(number, "alpha") for number in range(1, MAX_LEASES + 2)))
        refused = await one.first(RefuseFrame)
        assert (refused.id, refused.reason) == (MAX_LEASES + 1, "queue_full")
        assert refused.retry_after_s > 0
        assert host.leases.host.waiting == MAX_LEASES
    await host.until(lambda: host.leases.host.waiting == 0)
    host.supervisor.gate.set()


async def test_a_gateway_that_does_not_read_is_disconnected(host: Supervised) -> None:
    long = msgspec.structs.replace(host.supervisor.profiles[0], description="x" * 1_000_000)
    host.supervisor.profiles = (long, *host.supervisor.profiles[1:])
    snapshot = host.supervisor.snapshot()
    async with raw(host.url, HELLO) as slow, raw(host.url, HelloFrame("other", "n", HELLO.limits)) as other:
        await slow.first(WelcomeFrame)
        assert slow.connection._transport is not None
        slow.connection._transport.pause_reading()
        while host.leases.gateways == 2:
            host.supervisor.publish(snapshot)
            slow.send(PingFrame())
            await anyio.sleep(0.02)
        other.send(AskFrame(1, "alpha"))
        await other.first(GrantFrame)


class Client:
    """The receiving end of a session: it says hello and pings, and calls `on_body` with each body that it is sent."""

    def __init__(self, on_body: Callable[[bytes], Awaitable[None]]) -> None:
        self._frames: list[msgspec.Struct] = [HELLO]
        self._on_body = on_body
        self.leaving = anyio.Event()

    async def receive(self) -> dict[str, Any]:
        if not self._frames:
            with anyio.move_on_after(0.1):
                await self.leaving.wait()
                return {"type": "http.disconnect"}
        frames, self._frames = self._frames or [PingFrame()], []
        return {"type": "http.request", "body": encode_frames(frames), "more_body": True}

    async def send(self, message: Any) -> None:
        if message.get("body"):
            await self._on_body(message["body"])


async def test_a_slow_reader_has_its_time_for_each_piece(fake_supervisor: Any, leasing: Any) -> None:
    long = msgspec.structs.replace(fake_supervisor.profiles[0], description="x" * 12 * PIECE)
    fake_supervisor.profiles = (long, *fake_supervisor.profiles[1:])
    pieces: list[int] = []

    async def on_body(body: bytes) -> None:
        if len(body) >= 1024:
            await anyio.sleep(DEAD_S / 10)
        pieces.append(len(body))

    async with leasing(fake_supervisor) as leases, anyio.create_task_group() as tasks:
        client = Client(on_body)
        tasks.start_soon(LeaseSession(leases, anyio.Event()), {"type": "http"}, client.receive, client.send)
        with anyio.fail_after(30):
            while sum(pieces) < 12 * PIECE:  # noqa: ASYNC110 - the session writes by itself
                await anyio.sleep(0.01)
        assert leases.gateways == 1
        assert max(pieces) == PIECE
        client.leaving.set()


async def test_a_gateway_that_takes_nothing_is_disconnected_unless_the_supervisor_stood_still(
    fake_supervisor: Any, leasing: Any
) -> None:
    writing = anyio.Event()

    async def on_body(body: bytes) -> None:
        writing.set()
        await anyio.sleep_forever()

    async with leasing(fake_supervisor) as leases, anyio.create_task_group() as tasks:
        client = Client(on_body)
        session = LeaseSession(leases, anyio.Event())
        tasks.start_soon(session, {"type": "http"}, client.receive, client.send)
        with anyio.fail_after(30):
            await writing.wait()
            late = leases.clock() + DEAD_S + 0.5
            session.excuse(late)
            session.check(late)
            await anyio.lowlevel.checkpoint()
            assert leases.gateways == 1
            session.heard_at = late + DEAD_S + 0.5
            session.check(late + DEAD_S + 0.5)
            while leases.gateways:
                await anyio.lowlevel.checkpoint()
        client.leaving.set()


async def test_what_is_queued_is_written_before_a_supervisor_stops(fake_supervisor: Any, leasing: Any) -> None:
    reading, resumed, stopping = anyio.Event(), anyio.Event(), anyio.Event()
    received = bytearray()

    async def on_body(body: bytes) -> None:
        reading.set()
        await resumed.wait()
        received.extend(body)

    async with leasing(fake_supervisor) as leases, anyio.create_task_group() as tasks:
        client = Client(on_body)
        tasks.start_soon(LeaseSession(leases, stopping), {"type": "http"}, client.receive, client.send)
        await reading.wait()
        leases.close()
        stopping.set()
        await anyio.wait_all_tasks_blocked()
        resumed.set()
    assert ClosingFrame() in event_reader().feed(bytes(received))


async def test_an_engine_is_lost_only_if_it_refuses_the_supervisor_as_well(
    fake_supervisor: Any, leasing: Any, serve: Any
) -> None:
    refusing: list[bool] = [False]
    async with (
        leasing(fake_supervisor, is_refusing=lambda host, port: refusing[0]) as leases,
        serve(create_app(fake_supervisor, leases, token="t")) as url,
        raw(url, HELLO, AskFrame(1, "alpha")) as one,
    ):
        address = (await one.first(GrantFrame)).address
        one.send(LostFrame("alpha", address.generation), LostFrame("alpha", 99), LostFrame("x", 1), AskFrame(2, "beta"))
        await anyio.sleep(0.1)
        assert leases.host.holds_engine("alpha", address.generation) == address
        refusing[0] = True
        one.send(LostFrame("alpha", address.generation))
        with anyio.fail_after(10):
            while leases.host.holds_engine("alpha", address.generation) is not None:  # noqa: ASYNC110
                await anyio.sleep(0.005)
