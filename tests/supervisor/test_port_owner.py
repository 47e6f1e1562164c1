"""Which process owns a port, in each of the ways in which the system may tell."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from hostler.supervisor import port_owner

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
    dumped = port_owner._listening_sockets(listening[1])
    read = port_owner._sockets_in_tables(Path("/proc/self"), listening[1])
    assert dumped == read != set()


@linux
def test_distinguishes_the_owner_from_other_processes(listening: tuple[str, int]) -> None:
    with subprocess.Popen(["sleep", "60"], close_fds=True) as other:
        try:
            assert port_owner._owns_socket(os.getpid(), listening[1])
            assert not port_owner._owns_socket(other.pid, listening[1])
        finally:
            other.kill()


@linux
def test_a_connection_to_a_port_does_not_own_it(listening: tuple[str, int]) -> None:
    with socket.create_connection(listening) as client:
        assert not port_owner._owns_socket(os.getpid(), client.getsockname()[1])


def test_a_process_owns_what_its_children_listen_on(listening: tuple[str, int]) -> None:
    script = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    command = ["sh", "-c", f'"{sys.executable}" -c "{script}"; true']
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None and parent.stdin is not None
        port = int(parent.stdout.readline())
        assert anyio.run(port_owner.owns_port, parent.pid, port) is True
        assert anyio.run(port_owner.owns_port, parent.pid, listening[1]) is False
        parent.stdin.write("\n")


def test_does_not_know_of_a_process_that_is_gone() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert anyio.run(port_owner.owns_port, process.pid, 1) is None
