"""What the list of models shows of hosts as they are now."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.model_list import ModelCard, ModelList
from hostler.gateway.live_model_list import live_model_list
from hostler.supervisor.contract import HostStatus, ProfileInfo

CARDS = tuple(ModelCard(name=name, state="loaded") for name in ("a", "b"))
LISTING = ModelList(cards=CARDS, index={card.name: card for card in CARDS}, normal={})


class OneHost:
    """A host with these models, of which idle ones are unloaded after so many seconds."""

    def __init__(self, *models: str, reachable: bool = True, idle: dict[str, float] | None = None) -> None:
        self.status = HostStatus(profiles=tuple(ProfileInfo(name=model) for model in models))
        self.reachable = reachable
        self._idle = idle or {}

    def idle_times(self, now: float) -> dict[str, float]:
        return {model: seconds - now for model, seconds in self._idle.items()}


def listed(**hosts: Any) -> dict[str, dict[str, object]]:
    """What differs from the catalog's cards."""
    live = live_model_list(LISTING, hosts, now=10.0, wall=1000.0)
    assert [live.index[card.name] for card in live.cards] == list(live.cards)
    changes = {}
    for before, card in zip(CARDS, live.cards, strict=True):
        own, new = msgspec.structs.asdict(before), msgspec.structs.asdict(card)
        changes[card.name] = {key: value for key, value in new.items() if value != own[key]}
    return changes


def test_nothing_changes_while_all_is_reachable_and_nothing_idle() -> None:
    hosts: dict[str, Any] = {"pc": OneHost("a", "b")}
    assert live_model_list(LISTING, hosts, now=0.0, wall=0.0) is LISTING


def test_an_idle_model_says_when_it_is_unloaded_by_the_last_of_its_hosts() -> None:
    hosts = {"pc": OneHost("a", idle={"a": 40.0}), "tower": OneHost("a", idle={"a": 60.0})}
    assert listed(**hosts) == {"a": {"expires_at": 1050.0}, "b": {}}


def test_the_state_of_a_model_is_unknown_while_none_of_its_hosts_is_reachable() -> None:
    hosts = {"pc": OneHost("a"), "tower": OneHost("a", "b", reachable=False, idle={"b": 30.0})}
    assert listed(**hosts) == {"a": {}, "b": {"expires_at": 1020.0, "state_known": False}}
