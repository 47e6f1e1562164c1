"""The presets of derived models are applied to requests of every protocol."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.adapters.base import Adapter, Incoming
from hostler.adapters.canonical import ChatRequest, CompletionRequest, Request, Text
from hostler.adapters.registry import load_adapters
from hostler.profiles.presets import Preset, PresetMessage, inherit_preset

ADAPTERS = {adapter.name: adapter for adapter in load_adapters()}
MARIO = Preset(
    model="smol",
    system="You are Mario.",
    parameters={"temperature": 0.5, "top_k": 7, "num_predict": 8, "seed": -1, "stop": ("x", "y"), "num_thread": 2},
    messages=(PresetMessage(role="user", content="hi"), PresetMessage(role="assistant", content="Mamma mia")),
)
ASK = [{"role": "user", "content": "Who are you?"}]
FRONT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Mamma mia"}]
SYSTEM = [{"role": "system", "content": "You are Mario."}]


def requested(adapter: str, path: str, body: dict[str, Any], preset: Preset = MARIO) -> Request:
    """A client's request with this preset applied."""
    protocol = ADAPTERS[adapter]
    operation = next(each for each in protocol.operations if each.path == path and "POST" in each.methods)
    request = protocol.decode(operation, Incoming(method="POST", path=path, body=json.dumps(body).encode()))
    return protocol.apply_preset(request, preset)


def sent(request: Request) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(request.origin.body)
    return body


@pytest.mark.parametrize("adapter", ["openai", "ollama", "anthropic", "llamacpp", "lmstudio"])
def test_every_protocol_applies_presets(adapter: str) -> None:
    assert type(ADAPTERS[adapter]).apply_preset is not Adapter.apply_preset


@pytest.mark.parametrize(
    ("adapter", "path"), [("openai", "/v1/chat/completions"), ("lmstudio", "/api/v0/chat/completions")]
)
def test_an_openai_chat_gets_messages_and_sampling(adapter: str, path: str) -> None:
    body = sent(requested(adapter, path, {"model": "mario", "messages": ASK, "unknown": {"kept": True}}))
    assert body == {
        "temperature": 0.5, "top_k": 7, "max_tokens": 8, "stop": ["x", "y"],
        "model": "mario", "messages": [*SYSTEM, *FRONT, *ASK], "unknown": {"kept": True},
    }  # fmt: skip


def test_the_clients_own_values_take_precedence() -> None:
    content = {"temperature": 1.0, "max_completion_tokens": 3, "stop": "z", "top_k": None}
    body = sent(requested("openai", "/v1/chat/completions", {"model": "m", "messages": [*SYSTEM, *ASK], **content}))
    assert {name: body[name] for name in ("temperature", "max_completion_tokens", "stop", "top_k")} == content | {
        "top_k": 7
    }
    assert "max_tokens" not in body
    own = [{"role": "developer", "content": "Be brief."}, *ASK]
    turns = sent(requested("openai", "/v1/chat/completions", {"model": "m", "messages": own}))["messages"]
    assert turns == [*FRONT, *own]


def test_an_openai_prompt_gets_sampling_only() -> None:
    body = sent(requested("openai", "/v1/completions", {"model": "m", "prompt": "Once"}))
    assert body == {"temperature": 0.5, "top_k": 7, "max_tokens": 8, "stop": ["x", "y"], "model": "m", "prompt": "Once"}


def test_a_response_gets_instructions() -> None:
    body = sent(requested("openai", "/v1/responses", {"model": "m", "input": "Hello"}))
    assert body == {
        "temperature": 0.5, "max_output_tokens": 8, "instructions": "You are Mario.", "model": "m", "input": "Hello",
    }  # fmt: skip


def test_llama_cpp_gets_sampling_under_its_names() -> None:
    body = sent(requested("llamacpp", "/completion", {"model": "m", "prompt": "Once", "n_predict": 2}))
    assert body == {"temperature": 0.5, "top_k": 7, "stop": ["x", "y"], "model": "m", "prompt": "Once", "n_predict": 2}


def test_an_anthropic_request_gets_everything() -> None:
    request = requested("anthropic", "/v1/messages", {"model": "m", "max_tokens": 5, "messages": ASK})
    body = sent(request)
    assert body["stop_sequences"] == ["x", "y"] and body["messages"] == [*FRONT, *ASK]
    assert isinstance(request, ChatRequest) and request.conversation is not None
    first = request.conversation.messages[0]
    assert (first.role, first.parts) == ("system", (Text(text="You are Mario."),))
    assert (request.conversation.sampling.temperature, request.conversation.sampling.max_tokens) == (0.5, 5)
    own = sent(
        requested("anthropic", "/v1/messages", {"model": "m", "max_tokens": 5, "messages": ASK, "system": "Mine."})
    )
    assert own["system"] == "Mine."
    count = sent(requested("anthropic", "/v1/messages/count_tokens", {"model": "m", "messages": ASK}))
    assert "temperature" not in count and count["system"] == "You are Mario."


def conversation(request: Request) -> list[tuple[str, str]]:
    assert isinstance(request, ChatRequest) and request.conversation is not None
    return [
        (each.role, "".join(part.text for part in each.parts if isinstance(part, Text)))
        for each in request.conversation.messages
    ]


def test_an_ollama_chat_gets_everything() -> None:
    request = requested("ollama", "/api/chat", {"model": "m", "messages": ASK, "Options": {"top_k": 3}})
    assert conversation(request) == [
        ("system", "You are Mario."), ("user", "hi"), ("assistant", "Mamma mia"), ("user", "Who are you?"),
    ]  # fmt: skip
    assert isinstance(request, ChatRequest) and request.conversation is not None
    how = request.conversation.sampling
    assert (how.temperature, how.top_k, how.max_tokens, how.stop, how.seed) == (0.5, 3, 8, ("x", "y"), None)


def test_an_ollama_chat_keeps_its_own_system_message() -> None:
    own = [{"role": "System", "content": "Mine."}, *ASK]
    assert [role for role, _ in conversation(requested("ollama", "/api/chat", {"model": "m", "messages": own}))] == [
        "user", "assistant", "system", "user",
    ]  # fmt: skip


def test_an_ollama_prompt_gets_everything_unless_raw() -> None:
    assert conversation(requested("ollama", "/api/generate", {"model": "m", "prompt": "Who?"})) == [
        ("system", "You are Mario."), ("user", "hi"), ("assistant", "Mamma mia"), ("user", "Who?"),
    ]  # fmt: skip
    assert (
        conversation(requested("ollama", "/api/generate", {"model": "m", "prompt": "Who?", "system": "Mine."}))[0][1]
        == "Mine."
    )
    raw = requested("ollama", "/api/generate", {"model": "m", "prompt": "Who?", "raw": True})
    assert isinstance(raw, CompletionRequest) and raw.prompt == "Who?" and raw.sampling is not None
    assert raw.sampling.temperature == 0.5


def test_other_requests_stay_as_they_are() -> None:
    for path, body in (("/api/embed", {"input": "x"}), ("/api/chat", {"messages": []})):
        assert sent(requested("ollama", path, {"model": "m", **body})) == {"model": "m", **body}


def test_a_derived_model_inherits_from_its_base() -> None:
    younger = inherit_preset(Preset(model="mario", parameters={"temperature": 0.1}, license=("MIT",)), MARIO)
    assert (younger.model, younger.system, younger.license) == ("smol", "You are Mario.", ("MIT",))
    assert younger.parameters["temperature"] == 0.1 and younger.parameters["top_k"] == 7
    assert younger.messages == MARIO.messages
