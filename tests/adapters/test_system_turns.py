"""System and developer messages at the beginning become one, whatever protocol they came in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.adapters.base import Adapter, Incoming
from hostler.adapters.canonical import ChatMessage, Text
from hostler.adapters.llamacpp.upstream import LlamaCppUpstream
from hostler.adapters.ollama.adapter import OllamaAdapter
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.system_turns import with_one_system_turn

SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "system", "content": "Be kind."}]
USER = {"role": "user", "content": "Hello"}
MID = {"role": "system", "content": "Later."}


def sent(adapter: Adapter, operation: str, **body: Any) -> list[dict[str, Any]]:
    """The messages that an engine gets."""
    route = next(each for each in adapter.operations if each.name == operation)
    data = json.dumps({"model": "m", **body}).encode()
    request = adapter.decode(
        route, Incoming(method="POST", path=route.path, body=data, query="", path_params={}, headers={})
    )
    wire = LlamaCppUpstream().build(adapter.expand(request), model="m", stream=True)
    messages: list[dict[str, Any]] = json.loads(wire.body)["messages"]
    return messages


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_responses_api_joins_instructions_and_leading_turns(role: str) -> None:
    turns = [{"role": role, "content": "Be brief."}, {"role": "developer", "content": "Be kind."}, USER]
    messages = sent(OpenAIAdapter(), "responses", instructions="You code.", input=turns)
    assert messages == [{"role": "system", "content": "You code.\n\nBe brief.\n\nBe kind."}, USER]


def test_ollamas_protocol_joins_leading_turns() -> None:
    assert sent(OllamaAdapter(), "chat", messages=[*SYSTEM, USER]) == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        USER,
    ]


def test_later_system_turns_stay_where_they_are() -> None:
    messages = sent(OllamaAdapter(), "chat", messages=[SYSTEM[0], USER, MID])
    assert [message["role"] for message in messages] == ["system", "user", "system"]


def test_empty_system_turns_disappear() -> None:
    empty = ChatMessage(role="system", parts=(Text(text=" "),))
    user = ChatMessage(role="user", parts=(Text(text="Hello"),))
    assert with_one_system_turn([empty, empty, user]) == [user]
    assert with_one_system_turn([user]) == [user]
    assert with_one_system_turn([]) == []
