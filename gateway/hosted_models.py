"""The models of hosts, whose supervisors have reported them: their cards, places and profiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from hostler.adapters.model_list import ModelCard
from hostler.gateway.model_cards import merge_cards, profile_card
from hostler.gateway.plain_models import CatalogBackend
from hostler.profiles.capabilities import lacking
from hostler.supervisor.contract import HostStatus, ProfileInfo


class HostedModels(msgspec.Struct, frozen=True):
    """Several hosts may have a model: `places` has it at each of them, `profiles` in the order of the chain."""

    cards: dict[str, ModelCard]
    places: dict[str, dict[str, CatalogBackend]]
    profiles: dict[str, list[ProfileInfo]]
    default: str | None


def hosted_models(hosts: Mapping[str, HostStatus], chain: Iterable[str]) -> HostedModels:
    """The models of these hosts; of what several of them have, the first one of the chain comes first."""
    cards: dict[str, ModelCard] = {}
    places: dict[str, dict[str, CatalogBackend]] = {}
    profiles: dict[str, list[ProfileInfo]] = {}
    default: str | None = None
    for backend in chain:
        host = hosts.get(backend)
        if host is None:
            continue
        statuses = {status.model: status for status in host.models}
        for profile in host.profiles:
            card = profile_card(profile, statuses.get(profile.name))
            known = cards.get(profile.name)
            cards[profile.name] = card if known is None else merge_cards(known, card)
            places.setdefault(profile.name, {})[backend] = CatalogBackend(
                backend=backend,
                name_there=profile.name,
                context=profile.context,
                hosted=True,
                lacks=lacking(profile.facts),
                limits=profile.limits,
            )
            profiles.setdefault(profile.name, []).append(profile)
            if profile.default and default is None:
                default = profile.name
    return HostedModels(cards, places, profiles, default)
