"""Interim responses: a few are skipped, many end the connection, wherever they are cut."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httpcore
import pytest

from hostler.gateway.backends.interim_limit import MAX_INTERIM, InterimLimit

pytestmark = pytest.mark.anyio

INTERIM = b"HTTP/1.1 103 Early Hints\r\nlink: x HTTP/1.1 200\r\n\r\n"
FINAL = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
REQUEST = httpcore.Request("GET", "http://cloud/", headers=[("host", "cloud")])


class Stream(httpcore.AsyncNetworkStream):
    """Gives these bytes, `size` at a time."""

    def __init__(self, data: bytes, size: int) -> None:
        self.data = data
        self.size = size

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        size = min(max_bytes, self.size)
        piece, self.data = self.data[:size], self.data[size:]
        return piece

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        pass

    async def aclose(self) -> None:
        pass

    def get_extra_info(self, info: str) -> Any:
        return None


class Network(httpcore.AsyncNetworkBackend):
    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return self.stream


async def ask(data: bytes, size: int) -> bytes:
    async with httpcore.AsyncConnectionPool(network_backend=InterimLimit(Network(Stream(data, size)))) as pool:
        return await (await pool.handle_async_request(REQUEST)).aread()


@pytest.mark.parametrize("size", [1, 7, 11, 12, 13, 14, 50, 100_000])
async def test_a_few_interim_responses_are_skipped(size: int) -> None:
    assert await ask(INTERIM * MAX_INTERIM + FINAL, size) == b"ok"


@pytest.mark.parametrize("size", [1, 7, 11, 12, 13, 14, 50, 100_000])
async def test_many_interim_responses_end_the_connection(size: int) -> None:
    with pytest.raises(httpcore.RemoteProtocolError, match="interim"):
        await ask(INTERIM * (MAX_INTERIM + 1) + FINAL, size)
