"""The storm's judge: what it takes for whole, for broken and for refused, and that it sees every lie."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chaos.judge import Lie, Protocol, StormRequest, judge

WHOLE = ["r1.0", "r1.1", "r1.2"]
LIES = {
    "cut": ["r1.0", "r1.1"],
    "cut in the middle": ["r1.0", "r1.2"],
    "duplicated": ["r1.0", "r1.1", "r1.1", "r1.2"],
    "mixed": ["r1.0", "r2.1", "r1.2"],
}
KINDS = [(protocol, stream) for protocol in ("openai", "ollama", "anthropic", "responses") for stream in (True, False)]


def request(protocol: Protocol, stream: bool) -> StormRequest:
    return StormRequest(name="r1", words=3, model="a", protocol=protocol, stream=stream)


def sse(*values: Any) -> str:
    return "".join(f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n" for value in values)


def body(protocol: str, stream: bool, words: list[str], *, ended: bool = True, error: bool = False) -> str:
    """What a gateway sends to a client of that protocol."""
    texts = [f"{word} " for word in words]
    if protocol == "openai" and stream:
        chunks: list[Any] = [{"choices": [{"delta": {"content": text}}]} for text in texts]
        chunks += [{"error": {"message": "x"}}] if error else []
        return sse(*chunks, *([{"choices": [{"delta": {}, "finish_reason": "stop"}]}, "[DONE]"] if ended else []))
    if protocol == "ollama" and stream:
        lines: list[Any] = [{"message": {"content": text}, "done": False} for text in texts]
        lines += [{"error": "x"}] if error else []
        lines += [{"message": {"content": ""}, "done": True, "done_reason": "stop"}] if ended else []
        return "".join(json.dumps(line) + "\n" for line in lines)
    if protocol == "anthropic" and stream:
        events: list[Any] = [
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}} for text in texts
        ]
        events += [{"type": "error", "error": {}}] if error else []
        return sse(*events, *([{"type": "message_stop"}] if ended else []))
    if protocol == "responses" and stream:
        deltas: list[Any] = [{"type": "response.output_text.delta", "delta": text} for text in texts]
        deltas += [{"type": "response.failed"}] if error else []
        return sse(*deltas, *([{"type": "response.completed"}] if ended else []))
    text = "".join(texts)
    if protocol == "responses":
        message = {"type": "message", "content": [{"type": "output_text", "text": text}]}
        return json.dumps({"status": "completed" if ended else "incomplete", "output": [message]})
    if protocol == "openai":
        finish = "stop" if ended else None
        return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": finish}]})
    if protocol == "ollama":
        return json.dumps({"message": {"content": text}, "done_reason": "stop" if ended else ""})
    return json.dumps({"content": [{"type": "text", "text": text}], "stop_reason": "end_turn" if ended else None})


@pytest.mark.parametrize(("protocol", "stream"), KINDS)
def test_a_whole_answer_is_complete(protocol: Protocol, stream: bool) -> None:
    assert judge(request(protocol, stream), 200, body(protocol, stream, WHOLE)) == "complete"


@pytest.mark.parametrize(("protocol", "stream"), KINDS)
@pytest.mark.parametrize("lie", LIES)
def test_every_lie_is_seen(protocol: Protocol, stream: bool, lie: str) -> None:
    with pytest.raises(Lie) as raised:
        judge(request(protocol, stream), 200, body(protocol, stream, LIES[lie]))
    assert raised.value.kind == lie.partition(" ")[0]


@pytest.mark.parametrize(("protocol", "stream"), KINDS)
def test_an_answer_without_its_end_is_cut(protocol: Protocol, stream: bool) -> None:
    with pytest.raises(Lie, match="cut"):
        judge(request(protocol, stream), 200, body(protocol, stream, WHOLE, ended=False))


@pytest.mark.parametrize("protocol", ["openai", "ollama", "anthropic", "responses"])
def test_a_stream_that_reports_its_error_is_broken_and_still_must_not_lie(protocol: Protocol) -> None:
    some = body(protocol, True, WHOLE[:2], ended=False, error=True)
    assert judge(request(protocol, True), 200, some) == "broken"
    mixed = body(protocol, True, LIES["mixed"], ended=False, error=True)
    with pytest.raises(Lie, match="mixed"):
        judge(request(protocol, True), 200, mixed)


def test_a_vector_has_the_numbers_of_its_request() -> None:
    asked = StormRequest(name="r000012t3", words=4, model="v", protocol="embeddings", stream=False)
    assert judge(asked, 200, '{"data": [{"embedding": [12, 3, 4]}]}') == "complete"
    with pytest.raises(Lie, match="mixed"):
        judge(asked, 200, '{"data": [{"embedding": [13, 3, 4]}]}')
    with pytest.raises(Lie, match="malformed"):
        judge(asked, 200, '{"data": []}')


def test_an_error_is_refused_if_it_says_so() -> None:
    assert judge(request("openai", True), 503, '{"error": {"message": "busy"}}') == "refused"
    for status, text in ((503, "<html>"), (418, '{"error": {}}'), (200, "<html>")):
        with pytest.raises(Lie, match="malformed"):
            judge(request("openai", False), status, text)
