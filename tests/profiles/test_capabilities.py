"""What a profile's model can do, from its file and its engine's arguments."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.profiles.capabilities import lacking, with_arguments
from hostler.profiles.schema import ModelFacts, Profile

FACTS = ModelFacts(chat_template="{{ messages }}")


def profile(**fields: Any) -> Profile:
    return Profile(name="m", model="m.gguf", **fields)


@pytest.mark.parametrize(
    ("fields", "lacks"),
    [
        ({}, {"vision", "audio", "tools"}),
        ({"args": ("--mmproj", "p.gguf")}, {"tools"}),
        ({"args": ("-mm", "p.gguf")}, {"tools"}),
        ({"args": ("--mmproj-url=https://x",)}, {"tools"}),
        ({"env": {"LLAMA_ARG_MMPROJ": "p.gguf"}}, {"tools"}),
        ({"args": ("--chat-template-file", "t.jinja")}, {"vision", "audio"}),
        ({"args": ("--chat-template=x",)}, {"vision", "audio"}),
        ({"env": {"LLAMA_ARG_CHAT_TEMPLATE": "x"}}, {"vision", "audio"}),
        ({"args": ("--no-mmproj", "--chat-template-kwargs", "{}")}, {"vision", "audio", "tools"}),
    ],
)
def test_arguments_may_add_what_a_file_lacks(fields: dict[str, Any], lacks: set[str]) -> None:
    assert lacking(with_arguments(FACTS, profile(**fields))) == lacks


def test_what_a_file_has_is_not_lacking() -> None:
    facts = ModelFacts(capabilities=("completion", "vision", "tools"), chat_template="{{ tools }}")
    assert with_arguments(facts, profile()) is facts
    assert lacking(facts) == {"audio"}
    assert lacking(ModelFacts(capabilities=("embedding",))) == {"completion", "vision", "audio"}


def test_nothing_is_known_without_the_file() -> None:
    assert with_arguments(None, profile(args=("--mmproj", "p"))) is None
    assert lacking(None) == frozenset()


def test_a_profile_for_embeddings_is_listed_for_nothing_else() -> None:
    chat = ModelFacts(capabilities=("completion", "vision", "tools"), chat_template="{{ tools }}")
    facts = with_arguments(chat, profile(embeddings=True))
    assert facts is not None and facts.capabilities == ("embedding", "vision")
    assert "completion" not in lacking(facts)


def test_a_file_without_a_template_may_get_one_with_tools() -> None:
    assert "tools" not in lacking(ModelFacts())


@pytest.mark.parametrize(
    "fields", [{"args": ("--reranking",)}, {"args": ("-c", "512", "--rerank")}, {"env": {"LLAMA_ARG_RERANKING": "1"}}]
)
def test_a_reranker_is_listed_for_nothing_else(fields: dict[str, Any]) -> None:
    facts = with_arguments(ModelFacts(capabilities=("embedding",)), profile(**fields))
    assert facts is not None and facts.capabilities == ("rerank",)
