"""A network backend for httpcore that bounds interim responses (1xx), which httpcore reads for as long as they come."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore

#: Interim responses to one request, at most.
MAX_INTERIM = 8
#: Bytes read at a time until the response begins: each interim response costs the parser a tenth of a millisecond.
_STEP = 4 * 1024

_STATUS = re.compile(rb"\n\r?\nHTTP/1\.[01] (\d)")
_LONGEST_STATUS = 13
_BLANK_LINE = b"\n\n"


class InterimLimit(httpcore.AsyncNetworkBackend):
    """Connections as `backend` makes them, with the limit."""

    def __init__(self, backend: httpcore.AsyncNetworkBackend) -> None:
        self._backend = backend

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        stream = await self._backend.connect_tcp(
            host, port, timeout=timeout, local_address=local_address, socket_options=socket_options
        )
        return _LimitedStream(stream)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        stream = await self._backend.connect_unix_socket(path, timeout=timeout, socket_options=socket_options)
        return _LimitedStream(stream)

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


class _LimitedStream(httpcore.AsyncNetworkStream):
    """A connection. From the last write to the status of the response, interim responses are counted."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._waiting = False
        self._interim = 0
        self._tail = _BLANK_LINE

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if not self._waiting:
            return await self._stream.read(max_bytes, timeout)
        data = await self._stream.read(min(max_bytes, _STEP), timeout)
        # A status line may be cut between two reads.
        seen = len(self._tail)
        searched = self._tail + data
        self._tail = searched[1 - _LONGEST_STATUS :]
        for match in _STATUS.finditer(searched):
            if match.end() <= seen:
                continue
            if match[1] != b"1":
                self._waiting = False
                break
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise httpcore.RemoteProtocolError("too many interim responses")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._waiting, self._interim, self._tail = True, 0, _BLANK_LINE
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _LimitedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
