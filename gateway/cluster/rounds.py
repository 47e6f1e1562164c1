"""The rhythm of a background task: a round every few seconds, sooner when something has changed, never without a pause."""

from __future__ import annotations

from typing import Final

import anyio

#: The shortest time between the starts of two rounds, in seconds. Any client with write access to the store can publish change
#: messages at any rate.
PAUSE_S: Final = 0.1


class Rounds:
    """A round begins after `every_s`, or `soon` after it was asked for."""

    def __init__(self, every_s: float, *, pause_s: float = PAUSE_S) -> None:
        self._every_s = every_s
        self._pause_s = pause_s
        self._began = -pause_s
        self._wake = anyio.Event()

    def soon(self) -> None:
        """Begin another round without waiting for its time."""
        self._wake.set()

    async def next(self) -> None:
        """Wait until the next round begins."""
        with anyio.move_on_after(self._every_s):
            await self._wake.wait()
        await anyio.sleep_until(self._began + self._pause_s)
        self._wake = anyio.Event()
        self._began = anyio.current_time()
