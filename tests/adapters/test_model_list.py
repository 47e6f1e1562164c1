"""Models are found by name and alias, exactly or in any spelling."""

from __future__ import annotations

from hostler.adapters.model_list import ModelCard, ModelList

SMALL = ModelCard(name="Small", aliases=("tiny:latest",))
HIDDEN = ModelCard(name="hidden", listed=False)
MODELS = ModelList(cards=(SMALL, HIDDEN), index={"Small": SMALL, "tiny:latest": SMALL, "hidden": HIDDEN})


def test_find_needs_the_exact_spelling() -> None:
    assert MODELS.find("Small") is MODELS.find("tiny:latest") is SMALL
    assert MODELS.find("small") is None


def test_resolve_accepts_any_spelling() -> None:
    assert MODELS.resolve("Library/SMALL:Latest") is MODELS.resolve("tiny") is SMALL
    assert MODELS.resolve("unknown") is None


def test_an_exact_name_is_preferred() -> None:
    other = ModelCard(name="small")
    models = ModelList(cards=(SMALL, other), index={"Small": SMALL, "small": other})
    assert models.resolve("small") is other


def test_only_listed_models_are_named() -> None:
    assert MODELS.names() == ["Small"]
