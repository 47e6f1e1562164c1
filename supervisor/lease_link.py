"""The gateway's end of a host's connections: kept, given up when they fall silent, and renewed."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable
from typing import Final

import anyio
import msgspec

from hostler.supervisor.contract import SupervisorUnreachable
from hostler.supervisor.lease_connection import IncompatibleSupervisor, LeaseConnection, open_connection
from hostler.supervisor.lease_frames import DEAD_S, PING_S, EventFrame, HelloFrame, PingFrame

#: Pauses between two attempts to connect, in seconds.
RETRY_S: Final = 0.25
MAX_RETRY_S: Final = 2.0

#: A connection that lasted this long is renewed at once when it ends, in seconds.
STABLE_S: Final = 1.0

#: After a pause of this process itself for longer, the supervisor may have given its leases to others, in seconds.
SUSPENDED_S: Final = 2.0

_SUSPENDED = "may have given up this gateway, which was suspended"


class LeaseLink:
    """A connection to the supervisor at `url`, or the attempts to get one.

    `hello` makes the first frame of each connection. `on_lost` is called with the problem, and whether it is another
    release of the supervisor, whenever there is no connection and none could be had at once. `usable` is whether a
    connection that ended is worth an immediate attempt.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        hello: Callable[[], HelloFrame],
        on_frame: Callable[[EventFrame], None],
        on_lost: Callable[[str, bool], None],
        usable: Callable[[], bool],
        connect_s: float,
        tls: ssl.SSLContext | None = None,
        silence_s: float = DEAD_S,
    ) -> None:
        self.url = url
        self._token = token
        self._hello = hello
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._usable = usable
        self._connect_s = connect_s
        self._tls = tls
        self._silence_s = silence_s
        self._connection: LeaseConnection | None = None
        self._alive_at = 0.0

    async def run(self) -> None:
        """Keep connected until cancelled."""
        pause_s = RETRY_S
        while True:
            try:
                connection = await open_connection(
                    self.url, self._token, self._on_frame, timeout_s=self._connect_s, tls=self._tls
                )
            except SupervisorUnreachable as error:
                self._on_lost(str(error), isinstance(error, IncompatibleSupervisor))
            else:
                if await self._follow(connection):
                    pause_s = RETRY_S
                    continue
                self._on_lost(f"the supervisor at {self.url} {connection.lost}", False)
            await anyio.sleep(pause_s * random.uniform(0.75, 1.0))
            pause_s = min(2 * pause_s, MAX_RETRY_S)

    async def _follow(self, connection: LeaseConnection) -> bool:
        """Serve a connection to its end. Returns whether to connect again at once."""
        loop = asyncio.get_running_loop()
        self._connection = connection
        connection.send(self._hello())
        began = self._alive_at = loop.time()
        try:
            while not connection.closed.is_set():
                with anyio.move_on_after(PING_S):
                    await connection.closed.wait()
                    break
                now = loop.time()
                if self.was_suspended():
                    connection.close(_SUSPENDED)
                elif now - connection.heard_at > self._silence_s:
                    connection.close(f"was silent for {self._silence_s:g} s")
                    return False
                self._alive_at = now
                connection.send(PingFrame())
        finally:
            self._connection = None
            if not connection.closed.is_set():
                connection.finish()
        return not connection.rejected and self._usable() and loop.time() - began > STABLE_S

    def was_suspended(self) -> bool:
        """Whether this process has just stood still for so long that the supervisor may have given it up."""
        return asyncio.get_running_loop().time() - self._alive_at > PING_S + SUSPENDED_S

    def send(self, frame: msgspec.Struct) -> None:
        """Send a frame, if there is a connection."""
        if self._connection is not None:
            self._connection.send(frame)

    def close(self, reason: str = _SUSPENDED) -> None:
        """Give the current connection up."""
        if self._connection is not None:
            self._connection.close(reason)
