"""Cards of servers' models and of those derived from others."""

from __future__ import annotations

from hostler.adapters.model_list import ModelCard
from hostler.adapters.remote_models import RemoteModel
from hostler.gateway.backend_settings import ModelDescription
from hostler.gateway.model_cards import merge_cards, preset_card, server_card
from hostler.profiles.presets import Preset


def test_a_model_of_which_nothing_is_known_is_as_old_as_the_gateway_and_has_no_facts() -> None:
    card = server_card("m", None, ModelDescription(), name_there="m", since=5)
    assert (card.created, card.facts, card.kind, card.state) == (5, None, "chat", "loaded")


def test_only_a_real_checksum_is_a_digest() -> None:
    def digest(text: str) -> str:
        return server_card("m", RemoteModel(name="m", digest=text), ModelDescription(), name_there="m", since=5).digest

    assert digest("a" * 64) == "a" * 64
    assert digest("latest") == ""


def test_a_description_makes_facts() -> None:
    described = ModelDescription(capabilities=("completion", "vision"), quantization="Q8_0", description="mine")
    card = server_card("m", None, described, name_there="m", since=5)
    assert card.facts is not None and card.facts.quantization == "Q8_0"
    assert (card.capabilities, card.description) == (("completion", "vision"), "mine")


def test_a_copy_keeps_the_digest_and_a_changed_model_has_its_own() -> None:
    base = ModelCard(name="m", digest="a" * 64)
    assert preset_card("copy", Preset(model="m"), base).digest == base.digest
    assert preset_card("other", Preset(model="m", system="Be brief."), base).digest != base.digest


def test_a_model_on_two_hosts_has_the_better_state_and_the_smaller_context() -> None:
    merged = merge_cards(ModelCard(name="m", state="failed", context=1), ModelCard(name="m", state="loaded", context=2))
    assert (merged.state, merged.context) == ("loaded", 1)
