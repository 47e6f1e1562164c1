"""The port that an engine listens on: a free one, from the configured range."""

from __future__ import annotations

import socket
from collections.abc import Collection

from hostler.supervisor.contract import Failure, SupervisorError


def parse_port_range(text: str | None) -> range | None:
    """Parses `8100-8199` or `8100`; `None` means any port. Raises `ValueError`."""
    if text is None:
        return None
    first, _, last = text.partition("-")
    ports = range(int(first), int(last or first) + 1)
    if not ports or ports[0] < 1 or ports[-1] > 65535:
        raise ValueError(f'"{text}" is not a range of ports: expected first-last, for example 8100-8199')
    return ports


def free_port(host: str, ports: range | None, *, avoid: Collection[int] = ()) -> int:
    """A port on which nothing listens now. It may be taken before it is used: the caller has to retry then.

    Raises `SupervisorError` (`port_taken`) if the whole range is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in ports if ports is not None else (0,) * 8:
        if port in avoid:
            continue
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As the engine does: connections of an engine that has just exited do not matter.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                last = error
                continue
            found: int = probe.getsockname()[1]
            if found not in avoid:
                return found
    where = f"engine_ports {ports[0]}-{ports[-1]}" if ports is not None else f"engine_host {host}"
    reason = f" ({last.strerror})" if "last" in locals() else ""
    raise SupervisorError(Failure(kind="port_taken", message=f"no free port in {where}{reason}"))
