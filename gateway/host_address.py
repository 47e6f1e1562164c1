"""Whether a supervisor joins its cluster, and the URLs under which gateways reach it, and each other."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Sequence

from hostler.gateway.cluster_settings import ClusterSettings, store_address
from hostler.gateway.settings import Settings, parse_address
from hostler.supervisor.config import SupervisorSettings

_ANY = frozenset({"0.0.0.0", "::", ""})


def joins_cluster(settings: Settings) -> bool:
    """Whether the supervisor of these settings reports itself: only records that the cluster's token signs are believed."""
    cluster = settings.cluster
    return cluster is not None and (cluster.token is not None or cluster.token_file is not None)


def unreachable_reason(cluster: ClusterSettings, supervisor: SupervisorSettings) -> str | None:
    """Why gateways of the cluster could not reach the supervisor, which serves those of this machine alone."""
    if cluster.url is not None:
        return None
    host, port = parse_address(supervisor.listen)
    if host.startswith("/"):
        return "only this machine reaches a Unix socket"
    if port == 0:
        return "its port is another one after each start"
    place = store_address(cluster.store).place
    if _is_loopback(host) and place is not None and not _is_loopback(place[0]):
        return f"only this machine reaches {host}, and the store is on another one"
    return None


async def announced_url(cluster: ClusterSettings, supervisor: SupervisorSettings) -> str | None:
    """The URL as configured, or that of the address at which it listens; `None` if there is none now.

    A supervisor that listens at all addresses is reached at the one from which this machine reaches the store.
    """
    if cluster.url is not None:
        return cluster.url
    if unreachable_reason(cluster, supervisor) is not None:
        return None
    host, port = parse_address(supervisor.listen)
    return await _url(cluster, host, port, tls=supervisor.tls is not None)


async def gateway_url(cluster: ClusterSettings, listen: Sequence[str], *, tls: bool) -> str | None:
    """Where other gateways reach the one that listens there: as configured, or at the first address that they can reach;
    `None` if there is none now."""
    if cluster.gateway_url is not None:
        return cluster.gateway_url
    place = store_address(cluster.store).place
    for host, port in map(parse_address, listen):
        is_here = host.startswith("/") or (_is_loopback(host) and place is not None and not _is_loopback(place[0]))
        if not is_here and port != 0:
            return await _url(cluster, host, port, tls=tls)
    return None


async def _url(cluster: ClusterSettings, host: str, port: int, *, tls: bool) -> str | None:
    if host in _ANY:
        found = await _own_address(cluster)
        if found is None:
            return None
        host = found
    scheme = "https" if tls else "http"
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).version == 6:
            host = f"[{host}]"
    return f"{scheme}://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _own_address(cluster: ClusterSettings) -> str | None:
    """This machine's address on the way to the store. Nothing is sent. Names are looked up by the event loop, whose end does
    not wait for name servers."""
    look_up = asyncio.get_running_loop().getaddrinfo
    place = store_address(cluster.store).place
    try:
        if place is None:
            own = await look_up(socket.gethostname(), None, family=socket.AF_INET)
            return str(own[0][4][0])
        for family, kind, _, _, address in await look_up(*place, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind) as sock:
                sock.connect(address)
                found: str = sock.getsockname()[0]
                return found
    except (OSError, UnicodeError):  # a name that cannot be one, such as `store..lan`
        return None
    return None
