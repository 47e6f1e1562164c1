"""Who listens at a port, asked in each of the ways in which a system may tell."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostler.supervisor import engine_client as health

ADDRESSES = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")


@pytest.fixture(params=ADDRESSES)
def listening(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    with socket.socket(ADDRESSES[request.param]) as server:
        server.bind((request.param, 0))
        server.listen()
        yield request.param, server.getsockname()[1]


@linux
def test_the_kernel_and_its_tables_name_the_same_socket(listening: tuple[str, int]) -> None:
    asked, read = health._sockets_at(listening[1]), health._sockets_in_tables(Path("/proc/self"), listening[1])
    assert asked == read != set()


@linux
def test_the_owner_of_a_port_is_told_from_others(listening: tuple[str, int]) -> None:
    with subprocess.Popen(["sleep", "60"], close_fds=True) as other:
        try:
            assert health._proc_says_so(os.getpid(), listening[1])
            assert not health._proc_says_so(other.pid, listening[1])
        finally:
            other.kill()


def test_connections_to_a_port_are_not_its_owners(listening: tuple[str, int]) -> None:
    with socket.create_connection(listening) as client:
        assert not health._nobody_listens(*listening)
        assert not health._proc_says_so(os.getpid(), client.getsockname()[1])


@pytest.mark.anyio
async def test_where_nobody_listens_there_is_no_answer_at_once(listening: tuple[str, int]) -> None:
    host, _ = listening
    with socket.socket(ADDRESSES[host]) as bound:
        bound.bind((host, 0))
        port = bound.getsockname()[1]
        assert health._nobody_listens(host, port)
        assert await health.get_status(host, port, "/health", timeout_s=30) is None


def test_names_and_far_addresses_are_asked_the_usual_way() -> None:
    assert not health._nobody_listens("localhost", 1)
