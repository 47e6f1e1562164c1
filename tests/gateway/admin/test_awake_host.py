"""Actions of operators at hosts that sleep, fall asleep, restart, or are gone."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import anyio
import pytest

from hostler.adapters.errors import BackendUnavailable, ModelUnavailable
from hostler.gateway.admin.awake_host import run_awake
from hostler.gateway.backends.circuit_breaker import BreakerRules, CircuitBreakers
from hostler.gateway.backends.hop import Hop
from hostler.gateway.backends.wake_on_lan import StillAsleep, WakeOnLan
from hostler.gateway.wake_settings import WakeSettings

pytestmark = pytest.mark.anyio


class Machine:
    """A machine with a network card; `hop` is as the gateway sees it."""

    def __init__(self, card: socket.socket, *, wakes: bool = True, wait_s: float = 20.0) -> None:
        broadcast = f"127.0.0.1:{card.getsockname()[1]}"
        settings = WakeSettings(mac="01:23:45:67:89:ab", broadcast=broadcast, wait_s=wait_s)
        self.card = card
        self.reachable = True
        self.waker = WakeOnLan("pc", settings, anyio.current_time)
        self.hop = Hop(
            name="pc",
            breakers=CircuitBreakers(BreakerRules(), lambda: 0.0),
            reachable=lambda: self.reachable,
            wake_on_lan=self.waker if wakes else None,
        )

    def is_now(self, *, reachable: bool) -> None:
        self.reachable = reachable
        self.waker.set_reachable(reachable)

    async def packet(self) -> None:
        await anyio.wait_readable(self.card)
        assert len(self.card.recv(200)) == 102


@pytest.fixture
def card() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as card:
        card.bind(("127.0.0.1", 0))
        card.setblocking(False)
        yield card


async def test_a_machine_is_woken_before_the_action_and_when_it_falls_asleep_meanwhile(card: socket.socket) -> None:
    machine, events = Machine(card), list[str]()
    machine.is_now(reachable=False)

    async def act() -> None:
        events.append("begins")
        machine.is_now(reachable=False)
        while not machine.reachable:  # noqa: ASYNC110
            await anyio.sleep(0.01)
        events.append("ends")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_awake, machine.hop, act)
        for wakes in ("first", "second"):
            await machine.packet()
            events.append(wakes)
            machine.is_now(reachable=True)
    assert events == ["first", "begins", "second", "ends"]


async def test_a_machine_that_does_not_wake_up_is_an_error(card: socket.socket) -> None:
    machine = Machine(card, wait_s=0.1)
    machine.is_now(reachable=False)
    for words in ("in time", "a moment ago"):
        with pytest.raises(StillAsleep, match=words):
            await run_awake(machine.hop, anyio.sleep_forever)


async def test_a_host_that_cannot_be_woken_may_return_for_a_while(card: socket.socket) -> None:
    machine = Machine(card, wakes=False)
    machine.reachable = False
    with pytest.raises(BackendUnavailable, match="pc cannot be reached"):
        await run_awake(machine.hop, anyio.sleep_forever, returns_s=0.05)

    async def act() -> None:
        acted.set()

    acted = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_awake, machine.hop, act)
        await anyio.lowlevel.checkpoint()
        assert not acted.is_set()
        machine.reachable = True
    assert acted.is_set()


async def test_the_error_of_an_action_is_passed_on(card: socket.socket) -> None:
    async def act() -> None:
        raise ModelUnavailable("no room", model="m")

    with pytest.raises(ModelUnavailable, match="no room"):
        await run_awake(Machine(card).hop, act)
