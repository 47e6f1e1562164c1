"""What a client of one protocol asks for reaches a backend of another one as it was meant."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.adapters.anthropic.adapter import AnthropicAdapter
from hostler.adapters.anthropic.upstream import AnthropicUpstream
from hostler.adapters.base import Adapter, Incoming, Upstream
from hostler.adapters.errors import BadRequest
from hostler.adapters.ollama.adapter import OllamaAdapter
from hostler.adapters.ollama.upstream import OllamaUpstream
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.openai.upstream import OpenAIUpstream

CLIENTS: dict[str, Adapter] = {
    "/v1/chat/completions": OpenAIAdapter(),
    "/v1/responses": OpenAIAdapter(),
    "/v1/messages": AnthropicAdapter(),
    "/api/chat": OllamaAdapter(),
}
OPENAI, ENGINE = OpenAIUpstream(), OpenAIUpstream(engine=True)
ANTHROPIC, OLLAMA = AnthropicUpstream(), OllamaUpstream()
PNG = "iVBORw0KGgo="
HELLO = [{"role": "user", "content": "Hi"}]
ANY: dict[str, Any] = {"type": "object"}


def sent(path: str, body: dict[str, Any], upstream: Upstream) -> dict[str, Any]:
    """The body for the backend, of which the client speaks another protocol or another form of it."""
    client = CLIENTS[path]
    operation = next(each for each in client.operations if each.path == path)
    filled = {"model": "a", **({"input": "Hi"} if path == "/v1/responses" else {"messages": HELLO}), **body}
    if path == "/v1/messages":
        filled.setdefault("max_tokens", 9)
    request = client.expand(
        client.decode(operation, Incoming(method="POST", path=path, body=json.dumps(filled).encode()))
    )
    built: dict[str, Any] = json.loads(upstream.build(request, model="b", stream=True).body)
    return built


def chosen(body: dict[str, Any]) -> dict[str, Any]:
    """The sampling parameters in the body for a backend."""
    names = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}
    return {name: value for name, value in body.items() if name in names}


@pytest.mark.parametrize("value", [0.0, 0.8, 1.0])
@pytest.mark.parametrize(
    ("path", "upstream"),
    [("/v1/chat/completions", ANTHROPIC), ("/v1/responses", ANTHROPIC), ("/v1/messages", OPENAI)],
)
def test_a_temperature_that_the_client_sets_is_sent_whatever_it_is(path: str, upstream: Upstream, value: float) -> None:
    assert chosen(sent(path, {"temperature": value}, upstream)) == {"temperature": value}


@pytest.mark.parametrize("upstream", [OPENAI, ANTHROPIC])
def test_ollamas_own_defaults_are_no_wish_of_its_clients(upstream: Upstream) -> None:
    assert chosen(sent("/api/chat", {}, upstream)) == {}
    assert chosen(sent("/api/chat", {"options": {"temperature": 0.8}}, upstream)) == {"temperature": 0.8}
    assert chosen(sent("/api/chat", {"options": {"top_k": 40}}, upstream)) == {"top_k": 40}


def test_engines_get_ollamas_defaults() -> None:
    assert chosen(sent("/api/chat", {}, ENGINE)) == {
        "temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("strict", [True, False, None])
def test_a_strict_tool_stays_strict(strict: bool | None) -> None:
    function = {"name": "f", "parameters": ANY, "strict": strict}
    tools = {
        "/v1/chat/completions": {"type": "function", "function": function},
        "/v1/responses": {"type": "function", **function},
        "/v1/messages": {"name": "f", "input_schema": ANY, "strict": strict},
    }
    for path in ("/v1/chat/completions", "/v1/responses"):
        (tool,) = sent(path, {"tools": [tools[path]]}, ANTHROPIC)["tools"]
        assert tool.get("strict", False) is (strict is True)  # what the protocol takes for granted is left out
    (tool,) = sent("/v1/messages", {"tools": [tools["/v1/messages"]]}, OPENAI)["tools"]
    assert tool["function"].get("strict") is strict


@pytest.mark.parametrize("parameters", [None, {}, {"properties": {"a": {}}}, {"type": "object", "required": ["a"]}])
def test_the_input_of_a_tool_has_the_type_that_anthropic_requires(parameters: dict[str, Any] | None) -> None:
    function = {"name": "f"} if parameters is None else {"name": "f", "parameters": parameters}
    body = {"tools": [{"type": "function", "function": function}]}
    (tool,) = sent("/v1/chat/completions", body, ANTHROPIC)["tools"]
    assert tool["input_schema"] == {"type": "object", **(parameters or {})}


@pytest.mark.parametrize("parameters", [[], "object", 1])
def test_parameters_that_are_no_schema_are_named(parameters: Any) -> None:
    body = {"tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}]}
    with pytest.raises(BadRequest, match="must be a JSON Schema"):
        sent("/v1/chat/completions", body, ANTHROPIC)


@pytest.mark.parametrize("upstream", [ENGINE, ANTHROPIC, OLLAMA])
@pytest.mark.parametrize("mode", ["auto", "required"])
def test_only_the_allowed_tools_of_a_response_can_be_called(upstream: Upstream, mode: str) -> None:
    tools = [{"type": "function", "name": name, "parameters": ANY} for name in ("a", "b", "c")]
    allowed = [{"type": "function", "name": "b"}]
    body = sent(
        "/v1/responses",
        {"tools": tools, "tool_choice": {"type": "allowed_tools", "mode": mode, "tools": allowed}},
        upstream,
    )
    (tool,) = body["tools"]
    assert tool.get("function", tool)["name"] == "b"
    if upstream is ENGINE:
        assert body["tool_choice"] == mode


@pytest.mark.parametrize(("given", "usual"), [("image/jpg", "image/jpeg"), ("image/webp", "image/webp")])
def test_an_image_has_the_usual_name_of_its_type(given: str, usual: str) -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:{given};base64,{PNG}"}}
    (turn,) = sent("/v1/chat/completions", {"messages": [{"role": "user", "content": [image]}]}, ANTHROPIC)["messages"]
    assert turn["content"] == [{"type": "image", "source": {"type": "base64", "media_type": usual, "data": PNG}}]


def test_instructions_alone_are_a_message_for_anthropic() -> None:
    body = sent("/v1/chat/completions", {"messages": [{"role": "system", "content": "Say hi."}]}, ANTHROPIC)
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Say hi."}]}]
    assert "system" not in body


@pytest.mark.parametrize("asked", [True, False], ids=["with a question", "alone"])
def test_an_image_from_a_tool_is_shown_by_the_user(asked: bool) -> None:
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"}
    calls = [{"type": "function_call", "call_id": each, "name": "view", "arguments": "{}"} for each in ("c1", "c2")]
    results = [
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "Here"}, image]},
        {"type": "function_call_output", "call_id": "c2", "output": "Nothing"},
    ]
    question = [{"role": "user", "content": "What is it?"}] if asked else []
    history = [{"role": "user", "content": "Look"}, *calls, *results, *question]
    *_, first, second, user = sent("/v1/responses", {"input": history}, ENGINE)["messages"]
    assert (first["role"], first["content"], second["content"]) == ("tool", "Here", "Nothing")
    shown = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}]
    assert user["role"] == "user"
    assert user["content"][1:] == shown + ([{"type": "text", "text": "What is it?"}] if asked else [])


FREE = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


@pytest.mark.parametrize(("schema", "strict"), [(FREE, False), ({**FREE, "additionalProperties": False}, True)])
def test_a_schema_is_strict_for_openai_only_if_its_strict_mode_takes_it(schema: Any, strict: bool) -> None:
    wanted = sent("/api/chat", {"format": schema}, OPENAI)["response_format"]["json_schema"]
    assert (wanted["schema"], wanted["strict"]) == (schema, strict)


@pytest.mark.parametrize(
    "field",
    [{"mcp_servers": [{"type": "url", "url": "https://x.example", "name": "x"}]}, {"container": {"skills": []}}],
)
@pytest.mark.parametrize("upstream", [ENGINE, OLLAMA], ids=["engine", "ollama"])
def test_what_only_anthropics_servers_run_is_refused_elsewhere(upstream: Upstream, field: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="cannot run tools of its own"):
        sent("/v1/messages", field, upstream)


def test_an_update_of_the_configuration_counts_for_what_follows() -> None:
    schema = {"type": "object", "properties": {}}
    history = [
        {"role": "user", "content": "Hi"},
        {"type": "configuration_update", "reasoning": {"effort": "low"}},
        {"type": "configuration_update", "text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}},
        {"role": "user", "content": "Go on"},
    ]
    body = sent("/v1/responses", {"input": history, "reasoning": {"effort": "high"}}, ENGINE)
    assert [turn["content"] for turn in body["messages"]] == ["Hi", "Go on"]
    assert body["reasoning_effort"] == "low"
    assert body["response_format"]["json_schema"]["schema"] == schema
    history[2] = {"type": "configuration_update", "text": {"format": {"type": "text"}}}
    plain = {"input": history, "text": {"format": {"type": "json_object"}}}
    assert "response_format" not in sent("/v1/responses", plain, ENGINE)


@pytest.mark.parametrize("update", [{"reasoning": 1}, {"text": {"format": "json"}}])
def test_an_invalid_update_of_the_configuration_is_named(update: dict[str, Any]) -> None:
    history = [{"role": "user", "content": "Hi"}, {"type": "configuration_update", **update}]
    with pytest.raises(BadRequest, match=r"input\[1\]"):
        sent("/v1/responses", {"input": history}, ENGINE)


def test_a_result_without_an_id_belongs_to_the_call_of_its_tool() -> None:
    calls = [{"type": "function_call", "call_id": each, "name": each, "arguments": "{}"} for each in ("a", "b")]
    results = [{"type": "function_call_output", "name": each, "output": each} for each in ("b", "a")]
    *_, first, second = sent("/v1/responses", {"input": [*calls, *results]}, ENGINE)["messages"]
    assert (first["tool_call_id"], second["tool_call_id"]) == ("b", "a")


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('{"a":1.50}', {"a": 1.5}),
        ("", {}),
        (" ", {}),
        ('{"a": "cut o', {"arguments": '{"a": "cut o'}),
        ("[1]", {"arguments": "[1]"}),
        ("plain words", {"arguments": "plain words"}),
    ],
)
def test_arguments_that_a_model_wrote_badly_stay_in_its_history(arguments: str, read: dict[str, Any]) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    history = [
        *HELLO,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "?"},
    ]
    turns = sent("/v1/chat/completions", {"messages": history}, ANTHROPIC)["messages"]
    assert turns[1]["content"] == [{"type": "tool_use", "id": "c", "name": "f", "input": read}]
    turns = sent("/v1/chat/completions", {"messages": history}, OLLAMA)["messages"]
    assert turns[1]["tool_calls"][0]["function"]["arguments"] == read


def test_anthropic_gets_an_instruction_to_answer_with_any_object() -> None:
    body = sent("/v1/chat/completions", {"response_format": {"type": "json_object"}}, ANTHROPIC)
    assert "one JSON object and nothing else" in body["system"]
    assert "output_config" not in body
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    body = sent("/v1/chat/completions", {"messages": messages, "response_format": {"type": "json_object"}}, ANTHROPIC)
    assert body["system"].startswith("Be brief.\n\n")
    assert "system" not in sent("/api/chat", {"format": ANY}, ANTHROPIC)


@pytest.mark.parametrize(("choice", "names"), [("b", ["b"]), (None, ["a", "b"]), ("unknown", ["a", "b"])])
def test_ollama_gets_only_the_tool_that_has_to_be_called(choice: str | None, names: list[str]) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("a", "b")]
    chosen_tool = {} if choice is None else {"tool_choice": {"type": "function", "function": {"name": choice}}}
    body = sent("/v1/chat/completions", {"tools": tools, **chosen_tool}, OLLAMA)
    assert [tool["function"]["name"] for tool in body["tools"]] == names
