"""Wakes a sleeping machine: magic packets in regular intervals, however many requests wait for it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import anyio

from hostler.adapters.errors import BackendUnavailable
from hostler.gateway.wake_settings import WakeSettings

logger = logging.getLogger(__name__)

#: After waking failed, the machine is not woken again for this many times `wait_s`.
PAUSE_FACTOR = 5.0
DISCARD_PORT = 9
#: While requests wait, the packet is sent again after so many seconds: the machine may have been falling asleep.
RESEND_S = 3.0


class StillAsleep(BackendUnavailable):
    """The machine was not woken, or did not wake up."""


class WakeOnLan:
    """Wakes one machine; `packets` counts the attempts. `set_reachable` reports whether its supervisor or server answers;
    `awake` is false once it did not."""

    def __init__(self, name: str, settings: WakeSettings, clock: Callable[[], float]) -> None:
        self._name = name
        self._settings = settings
        self._clock = clock
        self._until = float("-inf")
        self._awake = anyio.Event()
        self.awake = True
        self.packets = 0
        self._sent_at = float("-inf")

    def set_reachable(self, reachable: bool) -> None:
        """The supervisor or server answers, or no longer does."""
        self.awake = reachable
        if reachable:
            self._until = float("-inf")
            self._awake.set()
        elif self._awake.is_set():
            self._awake = anyio.Event()

    def wake(self) -> float | None:
        """Send a packet unless the machine is being woken already. Returns until when (by `clock`) to wait for it;
        `None` while waking is suspended after a failed try."""
        now = self._clock()
        if now >= self._until + PAUSE_FACTOR * self._settings.wait_s:
            self._until = now + self._settings.wait_s
            self.packets += 1
            self._send()
        return self._until if now < self._until else None

    async def wake_and_wait(self) -> None:
        """Wake the machine and wait for it. Raises `StillAsleep`."""
        until = self.wake()
        if until is None:
            raise StillAsleep(f"{self._name} is asleep and did not wake up a moment ago", backend=self._name)
        if not await self.wait(until - self._clock()):
            raise StillAsleep(f"{self._name} is asleep and did not wake up in time", backend=self._name)

    async def wait(self, seconds: float) -> bool:
        """Wait for the machine for at most `seconds`. Returns whether it is awake."""
        with anyio.move_on_after(max(0.0, seconds)):
            while not self._awake.is_set():
                with anyio.move_on_after(RESEND_S):
                    await self._awake.wait()
                if not self._awake.is_set() and self._clock() - self._sent_at >= RESEND_S:
                    self._send()
        return self._awake.is_set()

    def _send(self) -> None:
        self._sent_at = self._clock()
        host, _, port = self._settings.broadcast.partition(":")
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sock.setblocking(False)
                sock.sendto(magic_packet(self._settings.mac), (host, int(port or DISCARD_PORT)))
        except OSError as error:
            logger.warning(
                "%s: sending the Wake-on-LAN packet failed (backends.%s.wake): %s", self._name, self._name, error
            )
        else:
            logger.info("%s: not responding; sent a Wake-on-LAN packet", self._name)


def magic_packet(mac: str) -> bytes:
    """The Wake-on-LAN payload: six bytes of ones, then the MAC address sixteen times."""
    return b"\xff" * 6 + bytes.fromhex(mac.replace(":", "").replace("-", "")) * 16
