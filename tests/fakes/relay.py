"""A wire that can be cut: passes bytes on to a port of this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import ByteStream, SocketStream


class Relay:
    """`port` is where to connect. `cut` breaks what is connected, and refuses others until `mend`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._streams: set[ByteStream] = set()
        self._whole = True
        self.port = 0

    async def cut(self) -> None:
        """Break every connection."""
        self._whole = False
        for stream in list(self._streams):
            await anyio.aclose_forcefully(stream)

    def mend(self) -> None:
        """Let connections through again."""
        self._whole = True

    async def serve(self, near: SocketStream) -> None:
        """One connection."""
        if not self._whole:
            await anyio.aclose_forcefully(near)
            return
        async with near, await anyio.connect_tcp("127.0.0.1", self._target) as far:
            self._streams |= {near, far}
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_pass_on, near, far, tasks.cancel_scope)
                    tasks.start_soon(_pass_on, far, near, tasks.cancel_scope)
            finally:
                self._streams -= {near, far}


async def _pass_on(source: ByteStream, sink: ByteStream, over: anyio.CancelScope) -> None:
    try:
        async for part in source:
            await sink.send(part)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    over.cancel()


@asynccontextmanager
async def relay_to(url: str) -> AsyncIterator[Relay]:
    """A wire to the server at `url`, as long as the context lasts."""
    relay = Relay(int(url.rpartition(":")[2]))
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        relay.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.start_soon(listener.serve, relay.serve)
        yield relay
        tasks.cancel_scope.cancel()
