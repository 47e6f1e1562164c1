"""Hosts that no file names: their supervisors have reported themselves to the cluster of this gateway."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import urlsplit

import msgspec

from hostler.gateway.backend_settings import BackendSettings
from hostler.gateway.settings import LOCAL
from hostler.gateway.wake_settings import WakeSettings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

#: How much of its id tells a host from another one of the same name.
_ID_DIGITS = 4


class JoinedHost(msgspec.Struct, frozen=True, kw_only=True):
    """A host of the cluster: `token` is what its supervisor expects of gateways, `certificate` the one that it has, as PEM.
    `wake` is how its machine is woken."""

    name: str
    url: str
    token: str
    certificate: str | None = None
    wake: WakeSettings | None = None

    @property
    def settings(self) -> BackendSettings:
        """Its entry, as it would be in a file."""
        return BackendSettings(kind="supervisor", url=self.url, token=self.token, wake=self.wake)

    def is_at(self, other: JoinedHost) -> bool:
        """Whether the other one is the same, but for a renewed certificate."""
        own, others = ((each.name, each.url, each.token, each.wake, each.certificate is None) for each in (self, other))
        return own == others


def named_hosts(names: Iterable[tuple[str, str]], taken: Iterable[str]) -> dict[str, str]:
    """The names of backends by the ids of hosts, of `names`: ids with the names that hosts have themselves.

    The same at every gateway with the same `taken` names: of several hosts with a name the one with the lowest id has it.
    """
    used = {LOCAL, *taken}
    found: dict[str, str] = {}
    for host_id, name in sorted(names):
        own = name if _NAME.fullmatch(name) else f"host-{host_id[:_ID_DIGITS]}"
        if own in used:
            own = f"{own}-{host_id[:_ID_DIGITS]}"
        if own not in used:
            used.add(own)
            found[host_id] = own
    return found


def chain_with(order: Sequence[str], supervised: Iterable[str], joined: Iterable[str]) -> tuple[str, ...]:
    """The chain with joined hosts by name, behind the last supervisor that the file names, before all other backends."""
    known = set(supervised)
    last = max((place for place, name in enumerate(order) if name in known), default=-1)
    return (*order[: last + 1], *sorted(joined), *order[last + 1 :])


def is_configured(url: str, backends: Mapping[str, BackendSettings]) -> bool:
    """Whether the file names the supervisor at this address, however it spells it."""
    place = _place(url)
    return any(each.kind == "supervisor" and _place(each.shown_url) == place for each in backends.values())


def _place(url: str) -> tuple[str, ...]:
    """An address in the form in which all its spellings are the same."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return (url,)
    if parts.scheme not in ("http", "https"):
        return (url,)
    if host == "localhost":
        host = "127.0.0.1"
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        host = str(getattr(address, "ipv4_mapped", None) or address)
    return (parts.scheme, host, str(port or (443 if parts.scheme == "https" else 80)), parts.path.rstrip("/"))
