"""Magic packets: what is in them, where they go, and that nobody is called twice for one attempt."""

from __future__ import annotations

import socket

import anyio
import pytest

from hostler.gateway.backends.wake_on_lan import PEACE, Waker, magic_packet
from hostler.gateway.config import WakeSettings

pytestmark = pytest.mark.anyio

MAC = "01:23:45:67:89:ab"


def waker(sock: socket.socket, now: list[float]) -> Waker:
    settings = WakeSettings(mac=MAC, broadcast=f"127.0.0.1:{sock.getsockname()[1]}", wait_s=10)
    return Waker("pc", settings, lambda: now[0])


@pytest.mark.parametrize("mac", [MAC, "01-23-45-67-89-AB"])
async def test_a_packet_is_six_bytes_of_ones_and_the_address_sixteen_times(mac: str) -> None:
    assert magic_packet(mac) == b"\xff" * 6 + bytes.fromhex("0123456789ab") * 16


async def test_one_attempt_is_one_packet_and_the_machine_is_left_in_peace_after_it() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        now = [0.0]
        subject = waker(sock, now)
        assert [subject.call() for _ in range(3)] == [10.0] * 3
        assert sock.recv(200) == magic_packet(MAC)
        now[0] = 10.0
        assert subject.call() is None
        now[0] = 10.0 * (1 + PEACE)
        assert subject.call() == now[0] + 10
        assert subject.calls == 2
        assert sock.recv(200) == magic_packet(MAC)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(200)


async def test_a_machine_that_was_awake_in_between_is_called_again_at_once() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        now = [0.0]
        subject = waker(sock, now)
        subject.call()
        subject.heard(True)
        assert await subject.wait(0)
        subject.heard(False)
        assert not await subject.wait(0)
        now[0] = 1.0
        assert subject.call() == 11.0
        assert subject.calls == 2


async def test_whoever_waits_goes_on_when_the_machine_is_heard_of() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        subject = waker(sock, [0.0])
        woken = []

        async def wait() -> None:
            woken.append(await subject.wait(60))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.lowlevel.checkpoint()
            subject.heard(True)
        assert woken == [True]
