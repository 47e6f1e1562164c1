"""Cards of models that no supervisor has described."""

from __future__ import annotations

from hostler.gateway.config import BackendSettings
from hostler.gateway.model_catalog import Catalog
from hostler.supervisor.contract import HostStatus, ProfileInfo

BACKENDS = {
    "cloud": BackendSettings(kind="openai", url="https://cloud.example", models={"far": "far-1"}),
    "asleep": BackendSettings(kind="supervisor", url="http://asleep:8080", models={"big": "big"}),
    "awake": BackendSettings(kind="supervisor", url="http://awake:8080"),
}


def test_a_model_known_by_name_only_is_as_old_as_the_gateway() -> None:
    catalog = Catalog(BACKENDS, tuple(BACKENDS), version="1", since=1_700_000_000.7)
    before = {card.name: card.created for card in catalog.listing.cards}
    catalog.update_host("awake", HostStatus(profiles=(ProfileInfo(name="own", modified_at=1_600_000_000.2),)))
    after = {card.name: card.created for card in catalog.listing.cards}
    assert before == {"far": 1_700_000_000, "big": 1_700_000_000}
    assert after == {**before, "own": 1_600_000_000}
