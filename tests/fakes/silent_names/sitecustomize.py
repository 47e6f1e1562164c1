"""Loaded by programs under test: the name server answers for no name. Addresses need none."""

import socket
import threading

_real = socket.getaddrinfo


def _getaddrinfo(host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002 - as the real one
    try:
        return _real(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
    except socket.gaierror:
        if flags & socket.AI_NUMERICHOST:
            raise
    threading.Event().wait(60)
    raise socket.gaierror(socket.EAI_AGAIN, "no name server answers")


socket.getaddrinfo = _getaddrinfo
