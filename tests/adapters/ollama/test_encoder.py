"""Responses in Ollama's protocol: lines that the official SDK reads, and whole responses of the same chunks."""

from __future__ import annotations

import json
import time
from typing import Any

import ollama
import pytest
from fakes.ollama_harness import OllamaHarness
from hypothesis import given
from hypothesis import strategies as st

from hostler.adapters.base import Encoder, Timing
from hostler.adapters.canonical import ChatRequest, Chunk, Progress, ResponseHead, Text, TokenLogprob, ToolCall, Usage
from hostler.adapters.errors import BackendBroken, GatewayError, TooManyRequests

COUNTS = Usage(prompt_tokens=11, completion_tokens=6, cached_tokens=3, prompt_ms=690.582, completion_ms=8312.151)
METRICS = {
    "total_duration": 10_192_426_603,
    "load_duration": 1_187_045_333,
    "prompt_eval_count": 11,
    "prompt_eval_cached_count": 3,
    "prompt_eval_duration": 690_582_000,
    "eval_count": 6,
    "eval_duration": 8_312_151_000,
}
TIMING = Timing(queue_s=0.187045333, switch_s=1.0, total_s=10.192426603)
DURATIONS = [name for name in METRICS if name.endswith("duration")]
WHEN = "2023-11-14T22:13:20Z"

pieces = st.builds(
    Chunk,
    wire=st.just("openai"),
    text=st.text(max_size=8),
    reasoning=st.text(max_size=4),
    usage=st.none() | st.just(COUNTS),
)


@pytest.fixture
def harness() -> OllamaHarness:
    return OllamaHarness()


def say(text: str = "", **more: Any) -> Chunk:
    return Chunk(wire="openai", text=text, **more)


def call(index: int, name: str | None = None, arguments: str = "", call_id: str | None = None) -> Chunk:
    return say(tool_calls=(ToolCall(index=index, id=call_id, name=name, arguments=arguments),))


def test_a_chat_is_streamed_in_lines_with_counts_in_the_last(harness: OllamaHarness) -> None:
    request = harness.chat(model=" SMOL:Latest")
    lines = harness.lines(request, say(), say("I"), say(" am"), say(finish="length"), say(usage=COUNTS), timing=TIMING)
    head = {"model": " SMOL:Latest", "created_at": WHEN}
    assert lines == [
        {**head, "message": {"role": "assistant", "content": "I"}, "done": False},
        {**head, "message": {"role": "assistant", "content": " am"}, "done": False},
        {**head, "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "length", **METRICS},
    ]


def test_a_whole_response_is_folded_from_the_same_chunks(harness: OllamaHarness) -> None:
    request = harness.chat(stream=False)
    chunks = say(reasoning="h"), say(reasoning="m"), say("I"), say(" am", finish="stop", usage=COUNTS)
    body = harness.encode(request, *chunks, timing=TIMING)
    assert b"\n" not in body
    assert json.loads(body) == {
        "model": "smol",
        "created_at": WHEN,
        "message": {"role": "assistant", "content": "I am", "thinking": "hm"},
        "done": True,
        "done_reason": "stop",
        **METRICS,
    }


def test_lines_are_plain_json_without_blank_ones_and_safe_in_html(harness: OllamaHarness) -> None:
    body = harness.encode(harness.chat(), say("<&>\n"), say(finish="stop"))
    assert body.endswith(b"\n") and b"\n\n" not in body and b"<" not in body
    assert json.loads(body.splitlines()[0])["message"]["content"] == "<&>\n"


def test_each_media_type_is_ollamas(harness: OllamaHarness) -> None:
    def media_type(**fields: Any) -> str:
        return harness.adapter.encoder(harness.chat(**fields), response_id="", created=0, progress="off").media_type

    assert media_type() == "application/x-ndjson"
    assert media_type(stream=False) == media_type(messages=[]) == "application/json; charset=utf-8"


def test_thinking_has_its_own_field_before_the_content(harness: OllamaHarness) -> None:
    lines = harness.lines(harness.chat(model="able"), say(reasoning="hmm "), say("yes"), say(finish="stop"))
    assert lines[0]["message"] == {"role": "assistant", "content": "", "thinking": "hmm "}
    assert lines[1]["message"] == {"role": "assistant", "content": "yes"}


def test_each_tool_call_is_a_line_once_it_is_complete(harness: OllamaHarness) -> None:
    lines = harness.lines(
        harness.chat(),
        call(0, "f", '{"b":1,', "abc"),
        call(0, arguments='"a":"x"}'),
        call(1, "g"),
        say(finish="tool_calls"),
    )
    result = [line["message"].get("tool_calls") for line in lines]
    assert result[0] == [{"id": "abc", "function": {"index": 0, "name": "f", "arguments": {"b": 1, "a": "x"}}}]
    assert list(result[0][0]["function"]["arguments"]) == ["b", "a"]
    assert result[1][0]["function"] == {"index": 1, "name": "g", "arguments": {}}
    assert result[1][0]["id"].startswith("call_") and len(result[1][0]["id"]) == 13
    assert result[2] is None and (lines[2]["done"], lines[2]["done_reason"]) == (True, "stop")


def test_a_whole_response_has_all_calls_in_its_message(harness: OllamaHarness) -> None:
    chunks = call(0, "f", "{}", "a"), call(1, "g", "{}", "b"), say(finish="tool_calls")
    message = json.loads(harness.encode(harness.chat(stream=False), *chunks))["message"]
    assert [each["id"] for each in message["tool_calls"]] == ["a", "b"]


@pytest.mark.parametrize("stream", [True, False])
def test_arguments_that_are_no_object_are_an_error(harness: OllamaHarness, stream: bool) -> None:
    with pytest.raises(GatewayError, match='invalid tool call arguments for "f"'):
        harness.encode(harness.chat(stream=stream), call(0, "f", '{"a":'), say(finish="tool_calls"))


def test_alternatives_to_tokens_are_included_only_on_request(harness: OllamaHarness) -> None:
    token = TokenLogprob(token="I", logprob=-2.17, top=(TokenLogprob(token="I", logprob=-2.17, bytes=(73,)),))
    plain = harness.lines(harness.chat(logprobs=True), say("I", logprobs=(token,)), say(finish="stop"))
    assert plain[0]["logprobs"] == [{"token": "I", "logprob": -2.17, "bytes": [73]}]
    assert "logprobs" not in plain[1]
    rich = json.loads(
        harness.encode(harness.chat(logprobs=True, top_logprobs=1, stream=False), say("I", logprobs=(token,)), say("!"))
    )
    assert rich["logprobs"][0]["top_logprobs"] == [{"token": "I", "logprob": -2.17, "bytes": [73]}]
    unasked = harness.lines(harness.chat(), say("I", logprobs=(token,)), say(finish="stop"))
    assert "logprobs" not in unasked[0]


def test_without_timing_the_engines_total_is_used(harness: OllamaHarness) -> None:
    last = harness.lines(harness.chat(), say("x", finish="stop", usage=COUNTS))[-1]
    assert (last["total_duration"], last["load_duration"]) == (9_002_733_000, 1)


@pytest.mark.parametrize("stream", [True, False])
def test_durations_are_always_there_and_never_0(harness: OllamaHarness, stream: bool) -> None:
    text = harness.encode(harness.chat(stream=stream), say("x", finish="stop"))
    last = json.loads(text.splitlines()[-1])
    durations = {name: value for name, value in last.items() if name.endswith("duration")}
    assert durations == dict.fromkeys(DURATIONS, 1)


def test_embeddings_have_their_durations(harness: OllamaHarness) -> None:
    request = harness.decode("embed", {"model": "smol", "input": "hi"})
    body = json.loads(harness.encode(request, say(vectors=((1.0, 0.0),))))
    assert (body["total_duration"], body["load_duration"]) == (1, 1)


def test_the_encoder_takes_timing(harness: OllamaHarness) -> None:
    encoder = harness.adapter.encoder(harness.chat(), response_id="", created=0, progress="off")
    assert type(encoder).set_timing is not Encoder.set_timing


def test_blank_lines_of_a_backend_are_forwarded_in_no_time(harness: OllamaHarness) -> None:
    encoder = harness.adapter.encoder(harness.chat(), response_id="", created=0, progress="off")
    encoder.start(ResponseHead(media_type="application/x-ndjson"))
    line = b'{"model":"theirs","done":false}\n'
    began_at = time.process_time()
    assert encoder.encode(Chunk(wire="ollama", raw=b"\n" * 200_000 + line)).endswith(b'{"model":"smol","done":false}\n')
    assert time.process_time() - began_at < 2.0


def test_with_a_clock_each_line_has_its_own_time(harness: OllamaHarness) -> None:
    encoder = harness.adapter.encoder(harness.chat(), response_id="", created=0, progress="off")
    moments = iter((1_700_000_000.25, 1_700_000_001.000001))
    encoder.set_clock(lambda: next(moments))
    lines = encoder.encode(say("x")) + encoder.encode(say(finish="stop")) + encoder.finish()
    result = [json.loads(line)["created_at"] for line in lines.splitlines()]
    assert result == ["2023-11-14T22:13:20.25Z", "2023-11-14T22:13:21.000001Z"]


@pytest.mark.parametrize(
    ("name", "body", "response"),
    [
        ("chat", {"model": "smol", "messages": []}, {"message": {"role": "assistant", "content": ""}, "done_reason": "load"}),
        ("chat", {"model": "smol", "keep_alive": 0}, {"message": {"role": "assistant", "content": ""}, "done_reason": "unload"}),
        ("generate", {"model": "smol"}, {"response": "", "done_reason": "load"}),
        ("generate", {"model": "smol", "keep_alive": 0}, {"response": "", "done_reason": "unload"}),
    ],
)  # fmt: skip
def test_loading_and_unloading_have_one_object(
    harness: OllamaHarness, name: str, body: dict[str, Any], response: dict[str, Any]
) -> None:
    result = json.loads(harness.encode(harness.decode(name, body)))
    assert result == {"model": "smol", "created_at": WHEN, "done": True, **response}


def test_generate_returns_a_context_that_continues_the_conversation(harness: OllamaHarness) -> None:
    first = harness.decode("generate", {"model": "smol", "prompt": "I am Bob", "system": "Be kind"})
    lines = harness.lines(first, say("Hi"), say(" Bob"), say(finish="stop"))
    assert [line["response"] for line in lines] == ["Hi", " Bob", ""]
    assert "context" not in lines[0]
    second = harness.decode("generate", {"model": "smol", "prompt": "Who am I?", "context": lines[-1]["context"]})
    assert isinstance(second, ChatRequest) and second.conversation is not None
    turns = [
        (m.role, "".join(part.text for part in m.parts if isinstance(part, Text))) for m in second.conversation.messages
    ]
    assert turns == [("system", "Be kind"), ("user", "I am Bob"), ("assistant", "Hi Bob"), ("user", "Who am I?")]


def test_a_raw_prompt_has_no_context(harness: OllamaHarness) -> None:
    request = harness.decode("generate", {"model": "smol", "prompt": "p", "raw": True, "stream": False})
    result = json.loads(harness.encode(request, say("x", finish="stop")))
    assert result["response"] == "x" and "context" not in result


def test_embeddings_are_normalised_also_when_truncated(harness: OllamaHarness) -> None:
    request = harness.decode("embed", {"model": "vectors", "input": ["a", "b"], "dimensions": 2})
    chunk = say(vectors=((3.0, 4.0, 12.0), (0.0, 0.0, 1.0)), usage=Usage(prompt_tokens=2))
    assert json.loads(harness.encode(request, chunk, timing=Timing(total_s=1.5, switch_s=0.5))) == {
        "model": "vectors",
        "embeddings": [[0.6, 0.8], [0.0, 0.0]],
        "total_duration": 1_500_000_000,
        "load_duration": 500_000_000,
        "prompt_eval_count": 2,
    }


def test_the_legacy_embedding_is_not_normalised(harness: OllamaHarness) -> None:
    request = harness.decode("embeddings", {"model": "vectors", "prompt": "a"})
    assert json.loads(harness.encode(request, say(vectors=((3.0, 4.0),)))) == {"embedding": [3.0, 4.0]}


def test_without_input_there_are_no_vectors(harness: OllamaHarness) -> None:
    assert json.loads(harness.encode(harness.decode("embed", {"model": "vectors"}))) == {
        "model": "vectors",
        "embeddings": [],
    }
    assert json.loads(harness.encode(harness.decode("embeddings", {"model": "vectors"}))) == {"embedding": []}


def test_a_failed_attempt_leaves_nothing_in_the_next_response(harness: OllamaHarness) -> None:
    encoder = harness.adapter.encoder(harness.chat(stream=False), response_id="", created=0, progress="off")
    head = harness.adapter.encoder(harness.chat(), response_id="", created=0, progress="off")
    assert head.heartbeat(Progress(phase="loading", model="smol")) == b""
    encoder.start(ResponseHead())
    encoder.encode(say("half", tool_calls=(ToolCall(name="f"),)))
    encoder.start(ResponseHead())
    encoder.encode(say("whole", finish="stop"))
    assert json.loads(encoder.finish())["message"] == {"role": "assistant", "content": "whole"}


LOADING = Progress(phase="loading", model="smol", eta_s=5.0)


@pytest.mark.parametrize("operation", ["chat", "generate"])
def test_a_waiting_stream_gets_lines_without_content(harness: OllamaHarness, operation: str) -> None:
    request = harness.decode(
        operation, {"model": "smol", "prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    )
    encoder = harness.adapter.encoder(request, response_id="", created=0, progress="thinking")
    line = json.loads(encoder.heartbeat(LOADING))
    content = {"message": {"role": "assistant", "content": ""}} if operation == "chat" else {"response": ""}
    assert line == {"model": "smol", "created_at": line["created_at"], **content, "done": False}
    assert encoder.heartbeat(LOADING).endswith(b"}\n")


@pytest.mark.parametrize(
    ("mode", "shown"), [("thinking", ["[hostler] loading smol (5 s left)\n", None]), ("quiet", [None, None])]
)
def test_a_client_that_asked_for_thinking_is_shown_the_progress(
    harness: OllamaHarness, mode: str, shown: list[str | None]
) -> None:
    encoder = harness.adapter.encoder(harness.chat(model="able", think=True), response_id="", created=0, progress=mode)
    lines = [json.loads(encoder.heartbeat(LOADING)) for _ in range(2)]
    assert [line["message"].get("thinking") for line in lines] == shown


@pytest.mark.parametrize(("mode", "stream"), [("off", True), ("comments", True), ("thinking", False)])
def test_nothing_is_sent_where_there_is_no_place_for_it(harness: OllamaHarness, mode: str, stream: bool) -> None:
    encoder = harness.adapter.encoder(harness.chat(stream=stream), response_id="", created=0, progress=mode)
    assert encoder.heartbeat(LOADING) == b""


def test_an_error_in_a_stream_is_the_last_line(harness: OllamaHarness) -> None:
    encoder = harness.adapter.encoder(harness.chat(), response_id="", created=0, progress="off")
    assert json.loads(encoder.error(BackendBroken("it died"))) == {"error": "it died"}
    assert json.loads(encoder.error(TooManyRequests("full", model="smol"))) == {
        "error": "server busy, please try again.  maximum pending requests exceeded"
    }


@given(
    content=st.lists(pieces, max_size=12), finish=st.sampled_from(["stop", "length", "tool_calls", "content_filter"])
)
def test_the_sdk_reads_any_response(content: list[Chunk], finish: str) -> None:
    harness = OllamaHarness()
    chunks = [*content, say(finish=finish)]
    text, thinking = "".join(c.text for c in content), "".join(c.reasoning for c in content)
    lines = [ollama.ChatResponse.model_validate(line) for line in harness.lines(harness.chat(), *chunks)]
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    assert "".join(line.message.content or "" for line in lines) == text
    assert "".join(line.message.thinking or "" for line in lines) == thinking
    whole = ollama.ChatResponse.model_validate_json(harness.encode(harness.chat(stream=False), *chunks))
    assert (whole.message.content, whole.message.thinking or "", whole.done) == (text, thinking, True)
    generated = harness.decode("generate", {"model": "smol", "prompt": "p"})
    parts = [ollama.GenerateResponse.model_validate(line) for line in harness.lines(generated, *chunks)]
    assert "".join(part.response or "" for part in parts) == text
