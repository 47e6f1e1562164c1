"""The listening sockets of workers: connections are spread over them by the system. The main process keeps every socket
open, and the other workers serve those of one that has ended."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Sequence

#: Connections that may wait for a worker.
_BACKLOG = 2048


class Listeners:
    """The sockets of each worker, made of the `bound` ones, whose first owner is this object.

    Where the system spreads connections over several sockets of an address (`is_spread`), each worker has one of its own.
    All others are shared by all workers: on other systems, Unix sockets, and what a service manager has passed on
    (`foreign`).
    """

    def __init__(
        self,
        bound: Sequence[socket.socket],
        count: int,
        *,
        is_spread: Callable[[socket.socket], bool],
        foreign: bool = False,
    ) -> None:
        self._paths = [
            each.getsockname() for each in bound if each.family == getattr(socket, "AF_UNIX", None) and not foreign
        ]
        self._own: list[list[socket.socket]] = [[] for _ in range(count)]
        self._shared: list[socket.socket] = []
        for each in bound:
            if foreign or not is_spread(each):
                self._shared.append(each)
                continue
            self._own[0].append(each)
            for sockets in self._own[1:]:
                sockets.append(_sibling(each))

    def of(self, number: int) -> tuple[socket.socket, ...]:
        """The sockets of a worker, which are numbered from 1."""
        return (*self._own[number - 1], *self._shared)

    def of_others(self, number: int) -> dict[int, tuple[socket.socket, ...]]:
        """The sockets that only the other workers have, by their numbers."""
        return {each: tuple(own) for each, own in enumerate(self._own, 1) if own and each != number}

    def close(self) -> None:
        """Close the sockets here; those that workers have inherited stay open there."""
        for each in (*self._shared, *(each for sockets in self._own for each in sockets)):
            each.close()

    def remove_paths(self) -> None:
        """Remove the Unix sockets that were made here."""
        for path in self._paths:
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108 - sockets are named by text


def _sibling(first: socket.socket) -> socket.socket:
    sock = socket.socket(first.family, first.type, first.proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if first.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(first.getsockname())
        sock.listen(_BACKLOG)
        sock.setblocking(False)
        sock.set_inheritable(False)
    except BaseException:
        sock.close()
        raise
    return sock
