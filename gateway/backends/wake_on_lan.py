"""Wakes a sleeping machine: one magic packet for each attempt, however many requests wait for it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import anyio

from hostler.gateway.config import WakeSettings

logger = logging.getLogger(__name__)

#: After a machine was called in vain, it is left in peace for so many times `wait_s`.
PEACE = 5.0
DISCARD_PORT = 9


class Waker:
    """The calls to one machine. `heard` tells it whether the machine's supervisor answers."""

    def __init__(self, name: str, settings: WakeSettings, clock: Callable[[], float]) -> None:
        self._name = name
        self._settings = settings
        self._clock = clock
        self._until = float("-inf")
        self._awake = anyio.Event()
        self.calls = 0

    def heard(self, reachable: bool) -> None:
        """The supervisor answers, or does not any more."""
        if reachable:
            self._until = float("-inf")
            self._awake.set()
        elif self._awake.is_set():
            self._awake = anyio.Event()

    def call(self) -> float | None:
        """Until when (on the clock) the machine may be waited for; it is called if nobody has called it yet.

        `None` while it is left in peace after a call in vain.
        """
        now = self._clock()
        if now >= self._until + PEACE * self._settings.wait_s:
            self._until = now + self._settings.wait_s
            self.calls += 1
            self._send()
        return self._until if now < self._until else None

    async def wait(self, seconds: float) -> bool:
        """Wait for the machine, at most so long. Returns whether it is awake."""
        with anyio.move_on_after(max(0.0, seconds)):
            await self._awake.wait()
        return self._awake.is_set()

    def _send(self) -> None:
        host, _, port = self._settings.broadcast.partition(":")
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sock.setblocking(False)
                sock.sendto(magic_packet(self._settings.mac), (host, int(port or DISCARD_PORT)))
        except OSError as error:
            logger.warning("%s could not be called (backends.%s.wake): %s", self._name, self._name, error)
        else:
            logger.info("%s does not answer; called it by Wake-on-LAN", self._name)


def magic_packet(mac: str) -> bytes:
    """Six bytes of ones, and the card's address sixteen times."""
    return b"\xff" * 6 + bytes.fromhex(mac.replace(":", "").replace("-", "")) * 16
