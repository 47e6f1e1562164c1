"""The listening sockets of other workers, on which a worker accepts connections while these do not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import anyio


class StandIn:
    """Accepts what connects to the sockets of `others`, by their numbers, while they do not serve.

    `listen` starts to accept connections of a socket, which it closes in the end. `run` until cancelled.
    """

    def __init__(
        self,
        others: Mapping[int, Sequence[socket.socket]],
        listen: Callable[[socket.socket], Awaitable[asyncio.Server]],
    ) -> None:
        self._others = dict(others)
        self._listen = listen
        self._listening: dict[int, list[asyncio.Server]] = {}
        self._absent: Collection[int] = ()
        self._changed = anyio.Event()

    @property
    def numbers(self) -> Collection[int]:
        """The workers for which this one accepts connections now."""
        return self._listening.keys()

    def update(self, absent: Collection[int]) -> None:
        """These workers do not serve; all others do."""
        self._absent = absent
        self._changed.set()

    async def run(self) -> None:
        """Listen as was last reported, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed = anyio.Event()
            for number in [each for each in self._listening if each not in self._absent]:
                for server in self._listening.pop(number):
                    server.close()  # the socket itself stays open here and elsewhere, and so do the connections
            for number in self._absent:
                if number in self._others and number not in self._listening:
                    servers = self._listening[number] = []
                    # All at once: `close` may be called while this waits.
                    for sock in [each.dup() for each in self._others[number]]:
                        servers.append(await self._listen(sock))

    def close(self) -> None:
        """Keep no socket open any more, but for those that are listened on, and listen on no others."""
        for sockets in self._others.values():
            for sock in sockets:
                sock.close()
        self._others.clear()
