"""Configured addresses that cannot all be listened on, found before anything is started."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from hostler.gateway.settings import Settings, parse_address

_WILDCARDS = ("0.0.0.0", "::")


def address_mistakes(settings: Settings, engine_ports: range | None) -> Iterator[str]:
    """Addresses that are given twice, or that belong to engines."""
    addresses = [(f"gateway.listen[{index}]", text) for index, text in enumerate(settings.gateway.listen)]
    # The default is not in use with `hostler up`, whose supervisor does not listen.
    if settings.supervisor.listen != Settings().supervisor.listen:
        addresses.append(("supervisor.listen", settings.supervisor.listen))
    for (_, first), (where, second) in combinations(addresses, 2):
        if _overlap(parse_address(first), parse_address(second)):
            yield f"{where}: {second} is the address of gateway.listen, too ({first}); use another port"
    for where, text in addresses:
        if engine_ports is not None and parse_address(text)[1] in engine_ports:
            yield f"{where}: the port of {text} is one of supervisor.engine_ports; use one outside of them"


def _overlap(first: tuple[str, int], second: tuple[str, int]) -> bool:
    """Whether not both can be listened on. Port 0 is any free one, except for Unix sockets."""
    hosts = [host.replace("localhost", "127.0.0.1") for host, _ in (first, second)]
    if first[1] != second[1] or (first[1] == 0 and not hosts[0].startswith("/")):
        return False
    same_family = (":" in hosts[0]) == (":" in hosts[1])
    return hosts[0] == hosts[1] or (same_family and any(host in _WILDCARDS for host in hosts))
