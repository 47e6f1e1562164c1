"""Every spelling of a name that Ollama accepts refers to the same model."""

from __future__ import annotations

import pytest
from fakes.ollama_harness import SMOL, OllamaHarness
from hypothesis import given
from hypothesis import strategies as st

from hostler.adapters.model_names import normalized, ollama_name


@pytest.fixture
def harness() -> OllamaHarness:
    return OllamaHarness()


@pytest.mark.parametrize(
    "spelling",
    ["smol", "SMOL:Latest", "library/smol", "registry.ollama.ai/library/smol:latest", " smol ", "Registry.Ollama.AI/Library/Smol", "tiny", "smol:local"],
)  # fmt: skip
def test_every_spelling_of_a_name_finds_the_model(harness: OllamaHarness, spelling: str) -> None:
    assert harness.respond_json("show", {"model": spelling})["modelfile"].splitlines()[1] == "FROM smol:latest"
    assert harness.listing.resolve(spelling) is SMOL


@pytest.mark.parametrize("spelling", ["org/sub/far@v1", "org/sub-far-v1", "Org/Sub-Far-V1:latest"])
def test_a_name_with_other_characters_is_found_in_both_forms(harness: OllamaHarness, spelling: str) -> None:
    card = harness.listing.resolve(spelling)
    assert card is not None and card.name == "org/sub/far@v1"


@pytest.mark.parametrize("spelling", ["smo", "smol:8b", "other/smol", "", "smol/", "smol:"])
def test_other_names_find_nothing_or_the_same(harness: OllamaHarness, spelling: str) -> None:
    card = harness.listing.resolve(spelling)
    assert card is None or (spelling == "smol:" and card is SMOL)


@given(name=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._/@-]{0,20}(:[a-z0-9]{1,4})?", fullmatch=True))
def test_the_shown_name_refers_to_its_model(name: str) -> None:
    assert normalized(ollama_name(name)) == normalized(name) == normalized(name.upper())
