"""Ollama's requests are decoded with its defaults and rejected with its messages."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import msgspec
import pytest
from fakes.ollama_harness import HI, OllamaHarness

from hostler.adapters.canonical import (
    ChatRequest,
    CompletionRequest,
    Conversation,
    EmbedRequest,
    LoadRequest,
    Media,
    Request,
    Sampling,
    Text,
)

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()


DEFAULTS = Sampling(
    temperature=0.8, top_p=0.9, top_k=40, min_p=0.0, typical_p=1.0, repeat_penalty=1.0, repeat_last_n=64,
    presence_penalty=0.0, frequency_penalty=0.0,
    assumed=frozenset({
        "temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "presence_penalty",
        "frequency_penalty",
    }),
)  # fmt: skip


@pytest.fixture
def harness() -> OllamaHarness:
    return OllamaHarness()


def conversation(request: Request) -> Conversation:
    assert isinstance(request, ChatRequest)
    assert request.conversation is not None
    return request.conversation


def content(request: Request) -> list[tuple[str, str]]:
    messages = conversation(request).messages
    return [(m.role, "".join(part.text for part in m.parts if isinstance(part, Text))) for m in messages]


def test_a_chat_is_decoded_and_streams_by_default(harness: OllamaHarness) -> None:
    request = harness.chat()
    assert isinstance(request, ChatRequest)
    assert (request.model, request.output.stream, content(request)) == ("smol", True, [("user", "hi")])
    for stream, streams in ((True, True), (None, True), (False, False)):
        requested = harness.chat(stream=stream)
        assert isinstance(requested, ChatRequest) and requested.output.stream is streams


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({}, {}),
        (None, {}),
        ({"temperature": None, "stop": None}, {}),
        ({"temperature": 0, "top_k": 1.9, "min_p": 0.1}, {"temperature": 0.0, "top_k": 1, "min_p": 0.1}),
        ({"num_predict": -1, "seed": -1}, {}),
        ({"num_predict": 2.9, "seed": 7}, {"max_tokens": 2, "seed": 7}),
        ({"num_predict": 0}, {"max_tokens": 0}),
        ({"stop": ["a", ""]}, {"stop": ("a",)}),
        ({"num_ctx": 8192, "num_gpu": 1, "mirostat": 2, "unheard_of": {}}, {}),
        ({"top_k": 1e300}, {"top_k": 2**31 - 1}),
    ],
)
def test_options_become_sampling_with_ollamas_own_defaults(
    harness: OllamaHarness, options: Any, changed: dict[str, Any]
) -> None:
    assumed = DEFAULTS.assumed - changed.keys()
    expected = msgspec.structs.replace(DEFAULTS, **changed, assumed=assumed)
    assert conversation(harness.chat(options=options)).sampling == expected


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"temperature": "x"}, '"temperature" must be of type float32'),
        ({"temperature": True}, '"temperature" must be of type float32'),
        ({"top_k": "1"}, '"top_k" must be of type integer'),
        ({"num_ctx": []}, '"num_ctx" must be of type integer'),
        ({"stop": "a"}, '"stop" must be of type array'),
        ({"stop": [1]}, '"stop" must be of an array of strings'),
        ({"use_mmap": 1}, '"use_mmap" must be of type boolean'),
    ],
)
def test_an_option_of_a_wrong_type_is_a_500_as_in_ollama(
    harness: OllamaHarness, options: dict[str, Any], kind: str
) -> None:
    response = harness.respond("chat", {"model": "smol", "messages": HI, "options": options})
    assert (response.status, json.loads(response.body)) == (500, {"error": f"option {kind}"})


def test_messages_keep_their_images_calls_thinking_and_names(harness: OllamaHarness) -> None:
    arguments = {"b": 1, "a": {"z": []}}
    request = harness.chat(
        model="able",
        messages=[
            {"role": "USER", "content": "look", "images": [PNG]},
            {
                "role": "assistant",
                "thinking": "hm",
                "tool_calls": [{"id": "i", "function": {"name": "f", "arguments": arguments}}],
            },
            {"role": "tool", "content": "1", "tool_name": "f", "tool_call_id": "i"},
        ],
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"oneOf": [], "minimum": 1}}}],
    )
    user, assistant, tool = conversation(request).messages
    assert user.role == "user"
    assert user.parts == (Media(kind="image", data=PNG, mime="image/png"), Text(text="look"))
    assert (assistant.reasoning, assistant.tool_calls[0].id) == ("hm", "i")
    assert assistant.tool_calls[0].arguments == '{"b":1,"a":{"z":[]}}'
    assert (tool.role, tool.name, tool.tool_call_id) == ("tool", "f", "i")
    assert bytes(conversation(request).tools[0].parameters or b"") == b'{"oneOf":[],"minimum":1}'


@pytest.mark.parametrize(
    ("start", "kind", "mime"),
    [
        (b"RIFF\0\0\0\0WAVEfmt ", "audio", "audio/wav"),
        (b"ID3\4", "audio", "audio/mp3"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image", "image/webp"),
        (b"\xff\xd8\xff\xe0", "image", "image/jpeg"),
        (b"GIF89a", "image", "image/gif"),
    ],
)
def test_media_types_are_detected_from_the_first_bytes(
    harness: OllamaHarness, start: bytes, kind: str, mime: str
) -> None:
    data = base64.b64encode(start + bytes(20)).decode()
    request = harness.chat(model="far", messages=[{"role": "user", "images": [data]}])
    assert conversation(request).messages[0].parts == (Media(kind=kind, data=data, mime=mime),)  # type: ignore[arg-type]


def test_field_names_are_case_insensitive_and_trailing_data_is_ignored(harness: OllamaHarness) -> None:
    body = b' {"MODEL":"smol","Messages":[{"Role":"user","CONTENT":"\\ud83d\\ude00x\xff"}],"nonsense":[1]} {trailing'
    assert content(harness.decode("chat", body)) == [("user", "\U0001f600x\ufffd")]


@pytest.mark.parametrize("level", ["high", "medium", "low", "max", True, False])
def test_thinking_is_a_level_or_a_flag(harness: OllamaHarness, level: str | bool) -> None:
    assert conversation(harness.chat(model="able", think=level)).thinking == level


@pytest.mark.parametrize(
    ("wanted", "schema"),
    [("json", b'"json"'), ({"type": "object", "b": 1, "a": 2}, b'{"type":"object","b":1,"a":2}'), ("", None)],
)
def test_a_format_becomes_the_output_schema(harness: OllamaHarness, wanted: Any, schema: bytes | None) -> None:
    request = harness.chat(format=wanted)
    assert isinstance(request, ChatRequest)
    assert (None if request.output.schema is None else bytes(request.output.schema)) == schema


@pytest.mark.parametrize(
    ("keep_alive", "seconds"),
    [(None, None), (0, 0.0), ("0s", 0.0), ("0", 0.0), (1.5, 1.5), ("1h30m", 5400.0), ("300ms", 0.3), (-1, math.inf), ("-1s", math.inf), (10**400, math.inf), (-(10**400), math.inf)],
)  # fmt: skip
def test_keep_alive_is_seconds_or_a_duration(harness: OllamaHarness, keep_alive: Any, seconds: float | None) -> None:
    request = harness.chat(keep_alive=keep_alive)
    assert isinstance(request, ChatRequest)
    assert request.keep_alive_s == pytest.approx(seconds) if seconds is not None else request.keep_alive_s is None


@pytest.mark.parametrize(
    ("name", "body", "kind"),
    [
        ("chat", {"model": "smol"}, "load"),
        ("chat", {"model": "smol", "messages": [], "keep_alive": "0s"}, "unload"),
        ("chat", {"model": "smol", "messages": [], "keep_alive": -1}, "load"),
        ("generate", {"model": "smol"}, "load"),
        ("generate", {"model": "smol", "prompt": "", "keep_alive": 0.0}, "unload"),
        ("embed", {"model": "smol", "input": []}, "load"),
        ("embed", {"model": "smol", "input": ""}, "load"),
        ("embeddings", {"model": "smol"}, "load"),
    ],
)
def test_a_request_without_content_loads_or_unloads_the_model(
    harness: OllamaHarness, name: str, body: Any, kind: str
) -> None:
    request = harness.decode(name, body)
    assert isinstance(request, LoadRequest)
    assert (request.kind, request.model) == (kind, "smol")


def test_a_prompt_becomes_a_chat_to_use_the_models_template(harness: OllamaHarness) -> None:
    request = harness.decode("generate", {"model": "able", "prompt": "p", "system": "s", "images": [PNG]})
    assert content(request) == [("system", "s"), ("user", "p")]
    assert isinstance(conversation(request).messages[1].parts[0], Media)


def test_a_raw_prompt_becomes_a_completion(harness: OllamaHarness) -> None:
    request = harness.decode("generate", {"model": "smol", "prompt": "p", "raw": True})
    assert isinstance(request, CompletionRequest)
    assert (request.prompt, request.suffix, request.sampling) == ("p", None, DEFAULTS)


def test_a_suffix_becomes_a_completion(harness: OllamaHarness) -> None:
    request = harness.decode("generate", {"model": "able", "prompt": "p", "suffix": "s"})
    assert isinstance(request, CompletionRequest)
    assert (request.prompt, request.suffix) == ("p", "s")


def test_embeddings_accept_one_text_or_several(harness: OllamaHarness) -> None:
    one = harness.decode("embed", {"model": "vectors", "input": "a", "dimensions": 2})
    several = harness.decode("embed", {"model": "vectors", "input": ["a", ""]})
    older = harness.decode("embeddings", {"model": "vectors", "prompt": "a"})
    assert isinstance(one, EmbedRequest) and (one.inputs, one.dimensions, one.normalize) == (("a",), 2, None)
    assert isinstance(several, EmbedRequest) and several.inputs == ("a", "")
    assert isinstance(older, EmbedRequest) and (older.inputs, older.normalize) == (("a",), False)


def test_log_probabilities_are_requested_with_at_least_one_alternative(harness: OllamaHarness) -> None:
    for fields, wanted in (({}, None), ({"logprobs": True}, 1), ({"logprobs": True, "top_logprobs": 3}, 3)):
        request = harness.chat(**fields)
        assert isinstance(request, ChatRequest) and request.output.logprobs == wanted


BAD = [
    (b"", "missing request body"),
    (b" \n", "missing request body"),
    (b"{b}", "invalid character 'b' looking for beginning of object key string"),
    (b"x", "invalid character 'x' looking for beginning of value"),
    (b'{"a" 1}', "invalid character '1' after object key"),
    (b'{"a":1 "b"}', "invalid character '\"' after object key:value pair"),
    (b'{"a":[1 2]}', "invalid character '2' after array element"),
    (b'{"a":1,}', "invalid character '}' looking for beginning of object key string"),
    (b'{"a":NaN}', "invalid character 'N' looking for beginning of value"),
    (b'{"a":"\\x"}', "invalid character 'x' in string escape code"),
    (b'{"model":"x"', "unexpected EOF"),
    (b'{"model":"x', "unexpected EOF"),
    (b"[1]", "json: cannot unmarshal array into Go value of type api.ChatRequest"),
    ({"model": 1}, "json: cannot unmarshal number into Go struct field ChatRequest.model of type string"),
    ({"model": ""}, "model is required"),
    ({}, "model is required"),
    ({"model": "a b"}, "invalid model name"),
    ({"messages": {}}, "json: cannot unmarshal object into Go struct field ChatRequest.messages of type []api.Message"),
    ({"messages": [{"content": ["x"]}]}, "json: cannot unmarshal array into Go struct field Message.content of type string"),
    ({"stream": 1}, "json: cannot unmarshal number into Go struct field ChatRequest.stream of type bool"),
    ({"think": "maybe"}, 'invalid think value: "maybe" (must be "high", "medium", "low", "max", true, or false)'),
    ({"think": True}, '"smol" does not support thinking'),
    ({"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
    ({"keep_alive": "10"}, 'time: missing unit in duration "10"'),
    ({"keep_alive": "1d"}, 'time: unknown unit "d" in duration "1d"'),
    ({"keep_alive": ""}, 'time: invalid duration ""'),
    ({"keep_alive": True}, "Unsupported type: 'bool'"),
    ({"tools": [{"function": {"name": "f"}}]}, "registry.ollama.ai/library/smol:latest does not support tools"),
    ({"messages": [{"role": "user", "images": [PNG]}]}, "registry.ollama.ai/library/smol:latest does not support vision"),
    ({"messages": [{"role": "user", "images": ["data:image/png;base64,AAAA"]}]}, "illegal base64 data at input byte 4"),
    ({"model": "vectors"}, '"vectors" does not support chat'),
]  # fmt: skip


@pytest.mark.parametrize(("body", "message"), BAD)
def test_invalid_requests_have_ollamas_messages(harness: OllamaHarness, body: Any, message: str) -> None:
    if isinstance(body, dict):
        body = {"model": "smol", "messages": HI} | body if body else {}
    response = harness.respond("chat", body)
    assert (response.status, json.loads(response.body)) == (400, {"error": message})
    assert response.media_type.startswith("application/json")


@pytest.mark.parametrize(
    ("name", "body", "status", "message"),
    [
        ("generate", {}, 404, "model '' not found"),
        ("embed", {}, 404, "model '' not found"),
        ("embeddings", {}, 400, "model is required"),
        ("generate", {"model": "smol", "prompt": "p", "raw": True, "system": "s"}, 400, "raw mode does not support template, system, or context"),
        ("generate", {"model": "smol", "prompt": "p", "raw": True, "context": [1]}, 400, "raw mode does not support template, system, or context"),
        ("generate", {"model": "smol", "prompt": "p", "suffix": "s"}, 400, "registry.ollama.ai/library/smol:latest does not support insert"),
        ("generate", {"model": "vectors", "prompt": "p"}, 400, '"vectors" does not support generate'),
        ("embed", {"model": "vectors", "input": [1]}, 400, "invalid input type"),
        ("embed", {"model": "vectors", "input": {}}, 400, "invalid input type"),
        ("chat", {"model": "smol", "messages": HI, "format": "xml"}, 500, 'invalid format: "\\"xml\\""; expected "json" or a valid JSON Schema object'),
    ],
)  # fmt: skip
def test_each_operation_has_its_own_messages(
    harness: OllamaHarness, name: str, body: Any, status: int, message: str
) -> None:
    response = harness.respond(name, body)
    assert (response.status, json.loads(response.body)) == (status, {"error": message})


def test_a_body_that_is_too_deep_or_has_too_many_keys_is_rejected(harness: OllamaHarness) -> None:
    for body in (b'{"a":' * 200 + b"1" + b"}" * 200, b"[" * 100_000, b"{" + b'"a":1,' * 200_000 + b'"b":1}'):
        assert harness.respond("chat", body).status == 400
