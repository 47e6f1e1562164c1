"""Chooses between the hosts of a gateway: asks them for their offers, and has `host_ranking` decide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hostler.gateway.context import Target
from hostler.gateway.conversation_hints import ConversationHints, with_hint
from hostler.gateway.gateway_settings import PlacementSettings
from hostler.gateway.host_ranking import RankedHost, rank, ranked_names
from hostler.supervisor.contract import PromptIdentity
from hostler.supervisor.scheduling.host import Host
from hostler.supervisor.scheduling.views import HostOffer


class HostChoice:
    """Orders what could serve a request. `hosts` are in the order of the configuration; `hints` are what other
    gateways know, in a cluster."""

    def __init__(self, hosts: Mapping[str, Host], settings: PlacementSettings) -> None:
        self._hosts = hosts
        self._settings = settings
        self.hints: ConversationHints | None = None

    def ordered(self, targets: tuple[Target, ...], prompt: PromptIdentity | None = None) -> tuple[Target, ...]:
        """The targets as `ranked_names` orders their backends."""
        by_name = {each.backend: each for each in targets}
        offers = {
            name: self._hosts[name].offer(each.model, prompt) for name, each in by_name.items() if name in self._hosts
        }
        shown = with_hint(offers, targets[0].model, prompt, self.hints)
        names = ranked_names(list(by_name), shown, replica_wait_s=self._settings.replica_wait_s)
        return tuple(by_name[name] for name in names)

    def names(self, backends: Iterable[str], model: str) -> list[str]:
        """These backends of a model in the order in which a request would try them now."""
        names = list(backends)
        return ranked_names(names, self._offers(names, model), replica_wait_s=self._settings.replica_wait_s)

    def ranked(self, backends: Iterable[str], model: str) -> list[RankedHost]:
        """The hosts among these backends, the best for a request for the model first."""
        return rank(self._offers(backends, model), replica_wait_s=self._settings.replica_wait_s, explain=True)

    def hosts(self, backends: Iterable[str], model: str) -> list[Host]:
        """The same as hosts."""
        return [self._hosts[each.backend] for each in self.ranked(backends, model)]

    def _offers(self, backends: Iterable[str], model: str) -> dict[str, HostOffer]:
        return {name: self._hosts[name].offer(model) for name in backends if name in self._hosts}
