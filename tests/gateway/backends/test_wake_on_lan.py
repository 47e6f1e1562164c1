"""Wake-on-LAN: the packet, its address, and one packet for each try."""

from __future__ import annotations

import socket

import anyio
import pytest

from hostler.gateway.backends.wake_on_lan import PAUSE_FACTOR, WakeOnLan, magic_packet
from hostler.gateway.wake_settings import WakeSettings

pytestmark = pytest.mark.anyio

MAC = "01:23:45:67:89:ab"


def waker(sock: socket.socket, now: list[float]) -> WakeOnLan:
    settings = WakeSettings(mac=MAC, broadcast=f"127.0.0.1:{sock.getsockname()[1]}", wait_s=10)
    return WakeOnLan("pc", settings, lambda: now[0])


@pytest.mark.parametrize("mac", [MAC, "01-23-45-67-89-AB"])
async def test_the_magic_packet(mac: str) -> None:
    assert magic_packet(mac) == b"\xff" * 6 + bytes.fromhex("0123456789ab") * 16


async def test_one_packet_wakes_for_all_and_a_failed_try_is_followed_by_a_pause() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        now = [0.0]
        subject = waker(sock, now)
        assert [subject.wake() for _ in range(3)] == [10.0] * 3
        assert sock.recv(200) == magic_packet(MAC)
        now[0] = 10.0
        assert subject.wake() is None
        now[0] = 10.0 * (1 + PAUSE_FACTOR)
        assert subject.wake() == now[0] + 10
        assert subject.packets == 2
        assert sock.recv(200) == magic_packet(MAC)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(200)


async def test_a_machine_that_was_awake_in_between_is_woken_again_at_once() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        now = [0.0]
        subject = waker(sock, now)
        subject.wake()
        subject.set_reachable(True)
        assert await subject.wait(0)
        subject.set_reachable(False)
        assert not await subject.wait(0)
        now[0] = 1.0
        assert subject.wake() == 11.0
        assert subject.packets == 2


async def test_waiting_ends_when_the_machine_is_reachable() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        subject = waker(sock, [0.0])
        woken = []

        async def wait() -> None:
            woken.append(await subject.wait(60))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.lowlevel.checkpoint()
            subject.set_reachable(True)
        assert woken == [True]
