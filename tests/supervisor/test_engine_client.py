"""The supervisor's HTTP client for its own engines."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from hostler.supervisor.engine_client import get_status, refuses_connections

pytestmark = pytest.mark.anyio

ADDRESSES = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}


@pytest.fixture(params=ADDRESSES)
def listening(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    with socket.socket(ADDRESSES[request.param]) as server:
        server.bind((request.param, 0))
        server.listen()
        yield request.param, server.getsockname()[1]


def test_a_port_that_listens_does_not_refuse(listening: tuple[str, int]) -> None:
    assert not refuses_connections(*listening)


async def test_a_port_that_refuses_is_noticed_at_once(listening: tuple[str, int]) -> None:
    host, _ = listening
    with socket.socket(ADDRESSES[host]) as bound:
        bound.bind((host, 0))
        port = bound.getsockname()[1]
        assert refuses_connections(host, port)
        assert await get_status(host, port, "/health", timeout_s=30) is None


def test_names_are_connected_to_the_usual_way() -> None:
    assert not refuses_connections("localhost", 1)
