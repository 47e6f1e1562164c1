"""One gateway's connection, as a careless or hostile one uses it: others are served as before."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import anyio
import msgspec
import pytest

from hostler.supervisor.api import create_app
from hostler.supervisor.lease_connection import LeaseConnection, open_connection
from hostler.supervisor.lease_frames import (
    MAX_LEASES,
    AskFrame,
    EventFrame,
    GatewayLimits,
    GrantFrame,
    HelloFrame,
    LostFrame,
    PingFrame,
    RefuseFrame,
    ReleaseFrame,
    WelcomeFrame,
)
from hostler.supervisor.lease_server import LeaseServer

pytestmark = pytest.mark.anyio
T = TypeVar("T")
HELLO = HelloFrame("i", "n", GatewayLimits(10, 120.0, 10.0, 0.0))


class Raw:
    """A connection that sends whatever a test wants, and the frames that it received."""

    def __init__(self) -> None:
        self.frames: list[EventFrame] = []
        self.connection: LeaseConnection

    async def first(self, kind: type[T], count: int = 1) -> T:
        """The first frame of a kind, once there are `count` of them."""
        found: list[Any] = []
        with anyio.fail_after(15):
            while len(found) < count:
                await anyio.sleep(0.002)
                found = [frame for frame in self.frames if isinstance(frame, kind)]
        return found[0]  # type: ignore[no-any-return]

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
    "frames",
    [
        [PingFrame()],
        [AskFrame(1, "alpha")],
        [HELLO, HELLO],
        [HELLO, WelcomeFrame(1)],
        [HELLO, AskFrame(1, "alpha"), AskFrame(1, "alpha")],
        [HELLO, AskFrame(0, "alpha")],
        [HELLO, AskFrame(1, "x" * 300)],
        [HELLO, AskFrame(1, "alpha", waited_s=-1.0)],
    ],
)
async def test_whoever_breaks_the_protocol_is_disconnected_alone(
    host: Supervised, frames: list[msgspec.Struct]
) -> None:
    async with raw(host.url, HelloFrame("other", "n", HELLO.limits)) as other, raw(host.url, *frames) as one:
        await one.until_closed()
        other.send(AskFrame(1, "alpha"))
        await other.first(GrantFrame)
    await host.until(lambda: host.leases.gateways == 0)


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
    limits = GatewayLimits(2 * MAX_LEASES, 120.0, 10.0, 0.0)
    async with raw(host.url, HelloFrame("i", "n", limits)) as one:
        one.send(*(AskFrame(number, "alpha") for number in range(1, MAX_LEASES + 2)))
        await one.until_closed()
    await host.until(lambda: host.leases.host.waiting == 0)
    host.supervisor.gate.set()


async def test_a_gateway_that_does_not_read_is_disconnected(host: Supervised) -> None:
    long = msgspec.structs.replace(host.supervisor.profiles[0], description="x" * 1_000_000)
    host.supervisor.profiles = (long, *host.supervisor.profiles[1:])
    snapshot = host.supervisor.snapshot()
    async with raw(host.url, HELLO) as slow, raw(host.url, HelloFrame("other", "n", HELLO.limits)) as other:
        await slow.first(WelcomeFrame)
        slow.connection._transport.pause_reading()  # type: ignore[union-attr]  # it is connected
        while host.leases.gateways == 2:
            host.supervisor.publish(snapshot)
            slow.send(PingFrame())
            await anyio.sleep(0.02)
        other.send(AskFrame(1, "alpha"))
        await other.first(GrantFrame)


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
