"""A TCP proxy on loopback whose connections can be cut."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import ByteStream, SocketStream

#: Bytes that a dripping proxy forwards at a time.
_DRIP = 16


class TcpProxy:
    """Forwards connections to `port`. `cut` breaks them and refuses new ones, `hold` lets everything vanish that they
    carry, `drip` forwards a few bytes at a time, all until `restore`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._streams: set[ByteStream] = set()
        self._connected = True
        self._flowing = anyio.Event()
        self._flowing.set()
        self._dripping = False
        self.port = 0

    def point_to(self, target: int) -> None:
        """Forward new connections to this port."""
        self._target = target

    async def cut(self) -> None:
        """Break all connections."""
        self._connected = False
        for stream in list(self._streams):
            await anyio.aclose_forcefully(stream)

    def hold(self) -> None:
        """Forward nothing, like a cable that was pulled."""
        self._flowing = anyio.Event()

    def drip(self) -> None:
        """Forward a few bytes at a time, so that each frame arrives by itself."""
        self._dripping = True

    def restore(self) -> None:
        """Forward connections again."""
        self._connected = True
        self._dripping = False
        self._flowing.set()

    async def serve(self, client: SocketStream) -> None:
        """Forward one connection."""
        if not self._connected:
            await anyio.aclose_forcefully(client)
            return
        try:
            connected = await anyio.connect_tcp("127.0.0.1", self._target)
        except OSError:
            await anyio.aclose_forcefully(client)
            return
        async with client, connected as upstream:
            self._streams |= {client, upstream}
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._forward, client, upstream, tasks.cancel_scope)
                    tasks.start_soon(self._forward, upstream, client, tasks.cancel_scope)
            finally:
                self._streams -= {client, upstream}

    async def _forward(self, source: ByteStream, sink: ByteStream, scope: anyio.CancelScope) -> None:
        try:
            async for data in source:
                await self._flowing.wait()
                step = _DRIP if self._dripping else len(data)
                for start in range(0, len(data), step):
                    await sink.send(data[start : start + step])
                    await anyio.sleep(0.001 if self._dripping else 0)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        scope.cancel()


@asynccontextmanager
async def proxy_to(url: str) -> AsyncIterator[TcpProxy]:
    """Run a proxy to the server at `url` until the context ends."""
    proxy = TcpProxy(int(url.rpartition(":")[2]))
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        proxy.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.start_soon(listener.serve, proxy.serve)
        yield proxy
        tasks.cancel_scope.cancel()
