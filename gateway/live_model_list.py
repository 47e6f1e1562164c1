"""The list of models with what changes all the time: when idle ones are unloaded, and whose state is unknown."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from hostler.adapters.model_list import ModelList
from hostler.supervisor.scheduling.host import Host


def live_model_list(listing: ModelList, hosts: Mapping[str, Host], *, now: float, wall: float) -> ModelList:
    """The catalog's `listing` as `hosts` are now; `now` is their clock, `wall` the same moment since the epoch."""
    fields: dict[str, dict[str, object]] = {}
    for model, end in _unload_times(hosts, now, wall).items():
        fields[model] = {"expires_at": end}
    for model in _unreachable_models(hosts):
        fields.setdefault(model, {})["state_known"] = False
    return _changed(listing, fields)


def _unload_times(hosts: Mapping[str, Host], now: float, wall: float) -> dict[str, float]:
    """When idle models will be unloaded, in seconds since the epoch; on several hosts, the last time."""
    ends: dict[str, float] = {}
    for host in hosts.values():
        for model, seconds in host.idle_times(now).items():
            ends[model] = max(ends.get(model, 0.0), wall + seconds)
    return ends


def _unreachable_models(hosts: Mapping[str, Host]) -> set[str]:
    """The models whose hosts are all unreachable."""
    models: dict[bool, set[str]] = {True: set(), False: set()}
    for host in hosts.values():
        if host.status is not None:
            models[host.reachable].update(profile.name for profile in host.status.profiles)
    return models[False] - models[True]


def _changed(listing: ModelList, fields: Mapping[str, Mapping[str, object]]) -> ModelList:
    """The listing with these fields of the cards of these models, and of those that run as them."""
    changed = {
        card.name: msgspec.structs.replace(card, **fields[runs])
        for card in listing.cards
        if (runs := card.preset.model if card.preset is not None else card.name) in fields
    }
    if not changed:
        return listing
    return msgspec.structs.replace(
        listing,
        cards=tuple(changed.get(card.name, card) for card in listing.cards),
        index={spelling: changed.get(card.name, card) for spelling, card in listing.index.items()},
        normal={spelling: changed.get(card.name, card) for spelling, card in listing.normal.items()},
    )
