"""Hosts that only other gateways of a cluster use, so that each gateway shows the whole installation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from hostler.gateway.cluster.announcements import Announcements
from hostler.gateway.cluster.membership import Member
from hostler.gateway.cluster.plausibility import is_plausible
from hostler.gateway.cluster_view import GatewayHost, HostElsewhere
from hostler.gateway.events import printable

_CHANNEL: Final = "gateway-hosts"
#: After which silence a gateway's hosts are no longer shown, in seconds.
_LIFETIME_S: Final = 3.0
#: Gateways whose hosts are shown, hosts of each, and models of each of these, at most.
_MAX_GATEWAYS, _MAX_HOSTS, _MAX_MODELS = 256, 100, 100


class SharedHosts:
    """`own` returns this gateway's hosts. They are announced together with its requests, while others look."""

    def __init__(
        self,
        announcements: Announcements,
        *,
        own: Callable[[], Sequence[GatewayHost]],
        gateways: Callable[[], Mapping[str, Member]],
        clock: Callable[[], float],
    ) -> None:
        self._announcements = announcements
        self._own = own
        self._gateways = gateways
        self._clock = clock
        self._others: dict[str, tuple[float, tuple[GatewayHost, ...]]] = {}
        announcements.listen(_CHANNEL, self._on_hosts)

    def announce(self) -> None:
        """Tell the other gateways."""
        self._announcements.send(_CHANNEL, list(self._own())[:_MAX_HOSTS])

    def elsewhere(self) -> tuple[HostElsewhere, ...]:
        """The hosts that this gateway does not use, by their names, each once."""
        now = self._clock()
        self._others = {sender: each for sender, each in self._others.items() if now - each[0] < _LIFETIME_S}
        own = {each.generation for each in self._own()}
        found: dict[int, HostElsewhere] = {}
        for sender, (_, hosts) in self._others.items():
            member = self._gateways().get(sender)
            gateway = printable(sender if member is None else member.name, 100)
            for host in hosts:
                if host.generation not in own:
                    known = found.get(host.generation, host.view)
                    gateways = tuple(sorted({*known.gateways, gateway}))
                    found[host.generation] = msgspec.structs.replace(known, gateways=gateways)
        return tuple(sorted(found.values(), key=lambda each: (each.name, each.gateways)))

    def _on_hosts(self, sender: str, message: bytes) -> None:
        if sender not in self._others and len(self._others) >= _MAX_GATEWAYS:
            return
        try:
            hosts = msgspec.json.decode(message, type=tuple[GatewayHost, ...])
        except (msgspec.MsgspecError, RecursionError):
            return
        shown = (
            msgspec.structs.replace(
                each, view=msgspec.structs.replace(each.view, models=each.view.models[:_MAX_MODELS], gateways=())
            )
            for each in hosts[:_MAX_HOSTS]
            if is_plausible(each)
        )
        self._others[sender] = (self._clock(), tuple(shown))
