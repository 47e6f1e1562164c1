"""The names of a backend's models: filters, mappings, and wildcards in both directions."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from hostler.gateway.model_mapping import ModelMapping, Wildcard, mapping_mistakes, matches

Models = Mapping[str, str | tuple[str, ...]]


def listed(models: Models, *names_there: str) -> list[tuple[str, str]]:
    mapping = ModelMapping.parse(models)
    return [(ours, theirs) for theirs in names_there for ours in mapping.names_here(theirs)]


def test_without_settings_all_models_are_listed_under_their_own_names() -> None:
    assert listed({}, "a", "b/c") == [("a", "a"), ("b/c", "b/c")]


@pytest.mark.parametrize(
    ("models", "names"),
    [
        ({"include": ("qwen*",)}, ["qwen3:8b", "Qwen2"]),
        ({"exclude": ("*embed*", "phi")}, ["qwen3:8b", "Qwen2"]),
        ({"include": ("*:8b", "phi"), "exclude": ("phi",)}, ["qwen3:8b"]),
    ],
)
def test_filters_are_shell_patterns_without_regard_to_case(models: Models, names: list[str]) -> None:
    assert [ours for ours, _ in listed(models, "qwen3:8b", "Qwen2", "nomic-embed-text", "phi")] == names


def test_a_mapping_lists_its_own_names_only() -> None:
    assert listed({"fast": "qwen3:8b"}, "qwen3:8b", "phi") == []
    assert ModelMapping.parse({"fast": "qwen3:8b"}).name_there("fast") == "qwen3:8b"


def test_a_mapping_beside_a_filter_adds_names() -> None:
    assert listed({"fast": "qwen3:8b", "include": ("qwen*",)}, "qwen3:8b", "phi") == [("qwen3:8b", "qwen3:8b")]


def test_a_wildcard_lists_and_finds_names_in_both_directions() -> None:
    models = {"openrouter/*": "*"}
    assert listed(models, "openai/gpt-5") == [("openrouter/openai/gpt-5", "openai/gpt-5")]
    mapping = ModelMapping.parse(models)
    assert mapping.name_there("openrouter/openai/gpt-5") == "openai/gpt-5"
    assert mapping.name_there("openai/gpt-5") is None
    assert mapping.passes("openrouter/not/listed") == "not/listed"
    assert ModelMapping.parse({"*": "*"}).passes("x") == "x"


def test_a_wildcard_that_stands_for_one_model_lists_and_passes_nothing() -> None:
    mapping = ModelMapping.parse({"*": "phi"})
    assert mapping.name_there("anything") == "phi"
    assert mapping.passes("anything") is None
    assert listed({"*": "phi"}, "phi", "other") == []


def test_an_exact_name_comes_before_a_wildcard_and_a_narrow_one_before_a_wide_one() -> None:
    mapping = ModelMapping.parse({"*": "phi", "gpt-*": "openai/*", "gpt-5": "best"})
    assert [mapping.name_there(name) for name in ("gpt-5", "gpt-4", "other")] == ["best", "openai/4", "phi"]


def test_a_wildcard_stands_for_at_least_one_character() -> None:
    wildcard = Wildcard("a-*-z", "*")
    assert [wildcard.name_there(name) for name in ("a-b-z", "a--z", "a-z", "b-c-z")] == ["b", None, None, None]


def test_filters_hold_for_wildcards_too() -> None:
    mapping = ModelMapping.parse({"or/*": "*", "exclude": ("*:free",)})
    assert mapping.passes("or/a:free") is None
    assert mapping.passes("or/a") == "a"


@pytest.mark.parametrize(
    ("models", "key", "message"),
    [
        ({"a": "b*"}, "a", "stands for many models"),
        ({"a*b*": "*"}, "a*b*", "only one"),
        ({"a": ""}, "a", "is empty"),
        ({"only": ("a",)}, "only", "lists are for include and exclude"),
    ],
)
def test_mistakes_are_named(models: Models, key: str, message: str) -> None:
    ((found, words),) = mapping_mistakes(models)
    assert found == key
    assert message in words


def test_filters_are_no_settings_of_a_supervisor() -> None:
    ((_, words),) = mapping_mistakes({"include": ("a",)}, supervisor=True)
    assert "supervisors report their profiles" in words


def test_no_pattern_matches_nothing() -> None:
    assert not matches("a", ())
