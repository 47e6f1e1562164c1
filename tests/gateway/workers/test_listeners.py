"""The listening sockets of workers."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hostler.gateway.server.server import ListenError, bind, spreads_connections
from hostler.gateway.workers.listeners import Listeners

LOOPBACK = [("127.0.0.1", 0)]


def never(sock: socket.socket) -> bool:
    return False


def address(sock: socket.socket) -> tuple[str, int]:
    host, port = sock.getsockname()
    return host, port


def test_each_worker_has_a_socket_of_its_own_where_the_system_spreads_connections() -> None:
    (bound,) = bind(LOOPBACK, "gateway.listen", several=True)
    listeners = Listeners([bound], 3, is_spread=spreads_connections)
    try:
        sockets = [each for number in (1, 2, 3) for each in listeners.of(number)]
        assert {address(each) for each in sockets} == {address(bound)}
        assert len({each.fileno() for each in sockets}) == (3 if spreads_connections(bound) else 1)
        assert not any(each.get_inheritable() for each in sockets)
    finally:
        listeners.close()


@pytest.mark.parametrize("foreign", [True, False])
def test_other_sockets_are_shared(foreign: bool) -> None:
    (bound,) = bind(LOOPBACK, "gateway.listen")
    is_spread = spreads_connections if foreign else never
    listeners = Listeners([bound], 2, is_spread=is_spread, foreign=foreign)
    assert listeners.of(1) == listeners.of(2) == (bound,)
    listeners.close()
    assert bound.fileno() == -1


def test_an_address_in_use_is_noticed_by_another_gateway_with_workers() -> None:
    (bound,) = bind(LOOPBACK, "gateway.listen", several=True)
    listeners = Listeners([bound], 2, is_spread=spreads_connections)
    try:
        with pytest.raises(ListenError, match="another program is using it"):
            bind([address(bound)], "gateway.listen", several=True)
    finally:
        listeners.close()


@pytest.mark.parametrize("foreign", [True, False])
def test_only_own_unix_sockets_are_removed(tmp_path: Path, foreign: bool) -> None:
    path = tmp_path / "gateway.sock"
    listeners = Listeners(bind([(str(path), 0)], "gateway.listen"), 2, is_spread=spreads_connections, foreign=foreign)
    listeners.close()
    listeners.remove_paths()
    assert path.exists() is foreign
