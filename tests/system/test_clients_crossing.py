"""Every client's protocol meets every backend's: the same story arrives, whatever the way it was told.

Where a protocol has no place for something, `missing` says so, and docs/compatibility.md says it to people.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.storyteller import VECTORS, Story, Storyteller, open_storyteller
from system.chain import open_chain
from system.house import data_events

pytestmark = pytest.mark.anyio

BACKENDS = ("llamacpp", "openai", "ollama", "anthropic")
TOOL = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALLS = (("call_1", "weather", '{"city": "Zürich"}'), ("call_2", "now", "{}"))
STORIES = {
    "plain": Story(),
    "thoughtful": Story(thoughts=("Hm, ", "Zürich?")),
    "calling": Story(calls=CALLS, finish="tool_calls"),
    "calling only": Story(words=(), thoughts=("Look.",), calls=CALLS[:1], finish="tool_calls"),
    "cut": Story(finish="length"),
}
SPOKEN = ("plain", "cut")


@dataclass(kw_only=True)
class Said:
    """What a client understood."""

    words: str = ""
    thoughts: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def expected(story: Story) -> Said:
    return Said(
        words="".join(story.words),
        thoughts="".join(story.thoughts),
        calls=[(name, json.loads(arguments)) for _, name, arguments in story.calls],
        finish=story.finish,
        prompt_tokens=story.prompt_tokens,
        completion_tokens=story.completion_tokens,
    )


# How each client asks, and how it reads what it gets.


def openai_asks(stream: bool) -> tuple[str, dict[str, Any]]:
    tools = [{"type": "function", "function": {"name": "weather", "description": "Tells it", "parameters": TOOL}}]
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_0", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
        ]},
        {"role": "tool", "tool_call_id": "call_0", "content": "rain"},
        {"role": "user", "content": [
            {"type": "text", "text": "And here?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
        ]},
    ]  # fmt: skip
    more = {"temperature": 0.5, "top_p": 0.7, "max_tokens": 77, "stop": ["END"]}
    body = {"messages": turns, "tools": tools, "stream": stream, **more}
    return "/v1/chat/completions", body | ({"stream_options": {"include_usage": True}} if stream else {})


def openai_reads(answer: httpx.Response, stream: bool) -> Said:
    if not stream:
        (choice,) = answer.json()["choices"]
        message, usage = choice["message"], answer.json()["usage"]
        calls = [call["function"] for call in message.get("tool_calls") or []]
        return Said(
            words=message.get("content") or "",
            thoughts=message.get("reasoning_content") or "",
            calls=[(call["name"], json.loads(call["arguments"])) for call in calls],
            finish=choice["finish_reason"],
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
        )
    said, calls_by_index = Said(), dict[int, list[str]]()
    for event in data_events(answer.text):
        for choice in event["choices"]:
            delta = choice["delta"]
            said.words += delta.get("content") or ""
            said.thoughts += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls") or []:
                known = calls_by_index.setdefault(call["index"], ["", ""])
                known[0] += call["function"].get("name") or ""
                known[1] += call["function"].get("arguments") or ""
            said.finish = choice["finish_reason"] or said.finish
        if event.get("usage"):
            said.prompt_tokens = event["usage"]["prompt_tokens"]
            said.completion_tokens = event["usage"]["completion_tokens"]
    said.calls = [(name, json.loads(arguments)) for name, arguments in calls_by_index.values()]
    assert answer.text.endswith("data: [DONE]\n\n")
    return said


def ollama_asks(stream: bool) -> tuple[str, dict[str, Any]]:
    tools = [{"type": "function", "function": {"name": "weather", "description": "Tells it", "parameters": TOOL}}]
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"function": {"name": "weather", "arguments": {"city": "Bern"}}}
        ]},
        {"role": "tool", "tool_name": "weather", "content": "rain"},
        {"role": "user", "content": "And here?", "images": ["iVBORw0KGgo="]},
    ]  # fmt: skip
    options = {"temperature": 0.5, "top_p": 0.7, "num_predict": 77, "stop": ["END"]}
    return "/api/chat", {"messages": turns, "tools": tools, "stream": stream, "options": options}


def ollama_reads(answer: httpx.Response, stream: bool) -> Said:
    said, lines = Said(), [json.loads(line) for line in answer.text.splitlines()]
    for line in lines:
        message = line["message"]
        said.words += message.get("content") or ""
        said.thoughts += message.get("thinking") or ""
        said.calls += [
            (each["function"]["name"], each["function"]["arguments"]) for each in message.get("tool_calls") or []
        ]
    last = lines[-1]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert stream or len(lines) == 1
    said.finish = "tool_calls" if last["done_reason"] == "stop" and said.calls else last["done_reason"]
    said.prompt_tokens, said.completion_tokens = last["prompt_eval_count"], last["eval_count"]
    return said


def anthropic_asks(stream: bool) -> tuple[str, dict[str, Any]]:
    picture = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": "call_0", "name": "weather", "input": {"city": "Bern"}}
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "call_0", "content": "rain"},
            {"type": "text", "text": "And here?"},
            {"type": "image", "source": picture},
        ]},
    ]  # fmt: skip
    tools = [{"name": "weather", "description": "Tells it", "input_schema": TOOL}]
    more = {"temperature": 0.5, "top_p": 0.7, "max_tokens": 77, "stop_sequences": ["END"]}
    return "/v1/messages", {"system": "Be brief.", "messages": turns, "tools": tools, "stream": stream, **more}


def anthropic_reads(answer: httpx.Response, stream: bool) -> Said:
    finishes = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
    if not stream:
        message = answer.json()
        blocks = message["content"]
        said = Said(finish=finishes[message["stop_reason"]])
        usage = message["usage"]
    else:
        said, blocks, usage = Said(), [], {}
        for event in data_events(answer.text):
            if event["type"] == "message_start":
                usage = dict(event["message"]["usage"])
            elif event["type"] == "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append({**event["content_block"], "partial": ""})
            elif event["type"] == "content_block_delta":
                block, delta = blocks[event["index"]], event["delta"]
                block["partial"] += delta.get("partial_json", "")
                for key in ("text", "thinking"):
                    if key in delta:
                        block[key] += delta[key]
            elif event["type"] == "message_delta":
                said.finish = finishes[event["delta"]["stop_reason"]]
                usage |= {key: value for key, value in event["usage"].items() if value is not None}
        assert data_events(answer.text)[-1] == {"type": "message_stop"}
        for block in blocks:
            if block["type"] == "tool_use":
                block["input"] = json.loads(block["partial"] or "{}")
    said.words = "".join(block["text"] for block in blocks if block["type"] == "text")
    said.thoughts = "".join(block["thinking"] for block in blocks if block["type"] == "thinking")
    said.calls = [(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]
    said.prompt_tokens = usage["input_tokens"] + (usage.get("cache_read_input_tokens") or 0)
    said.completion_tokens = usage["output_tokens"]
    return said


def completion_asks(stream: bool) -> tuple[str, dict[str, Any]]:
    body = {"prompt": "Once", "stream": stream, "max_tokens": 77, "temperature": 0.5, "stop": ["END"]}
    return "/v1/completions", body | ({"stream_options": {"include_usage": True}} if stream else {})


def completion_reads(answer: httpx.Response, stream: bool) -> Said:
    events = data_events(answer.text) if stream else [answer.json()]
    said = Said()
    for event in events:
        for choice in event["choices"]:
            said.words += choice["text"]
            said.finish = choice["finish_reason"] or said.finish
        if event.get("usage"):
            said.prompt_tokens = event["usage"]["prompt_tokens"]
            said.completion_tokens = event["usage"]["completion_tokens"]
    return said


def generate_asks(stream: bool) -> tuple[str, dict[str, Any]]:
    options = {"num_predict": 77, "temperature": 0.5, "stop": ["END"]}
    return "/api/generate", {"prompt": "Once", "raw": True, "stream": stream, "options": options}


def generate_reads(answer: httpx.Response, stream: bool) -> Said:
    lines = [json.loads(line) for line in answer.text.splitlines()]
    last = lines[-1]
    return Said(
        words="".join(line["response"] for line in lines),
        finish=last["done_reason"],
        prompt_tokens=last["prompt_eval_count"],
        completion_tokens=last["eval_count"],
    )


def native_asks(stream: bool) -> tuple[str, dict[str, Any]]:
    return "/completion", {"prompt": "Once", "stream": stream, "n_predict": 77, "temperature": 0.5, "stop": ["END"]}


def native_reads(answer: httpx.Response, stream: bool) -> Said:
    events = data_events(answer.text) if stream else [answer.json()]
    last = events[-1]
    return Said(
        words="".join(event["content"] for event in events),
        finish={"limit": "length", "eos": "stop"}[last["stop_type"]],
        prompt_tokens=last["tokens_evaluated"],
        completion_tokens=last["tokens_predicted"],
    )


Asks = Callable[[bool], tuple[str, dict[str, Any]]]
Reads = Callable[[httpx.Response, bool], Said]
CHATS: dict[str, tuple[Asks, Reads]] = {
    "openai": (openai_asks, openai_reads),
    "ollama": (ollama_asks, ollama_reads),
    "anthropic": (anthropic_asks, anthropic_reads),
}
PROMPTS: dict[str, tuple[Asks, Reads]] = {
    "openai": (completion_asks, completion_reads),
    "ollama": (generate_asks, generate_reads),
    "llamacpp": (native_asks, native_reads),
}

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_chat = pytest.mark.parametrize("client", CHATS)
each_mode = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


@asynccontextmanager
async def meeting(tmp_path: Path, kind: str) -> AsyncIterator[tuple[Storyteller, httpx.AsyncClient]]:
    """A gateway before a scripted backend of this kind, which calls the model `m` `there`."""
    async with open_storyteller() as teller:
        backend = {"kind": kind, "url": teller.url, "models": {"m": "there"}}
        async with open_chain(tmp_path, {"there": backend}) as chain:
            yield teller, chain.http


def heard(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """A conversation as the backend understands it, in OpenAI's words."""
    reader = {"/api/chat": _heard_by_ollama, "/v1/messages": _heard_by_anthropic}.get(path, _heard_by_openai)
    return reader(body)


def _heard_by_openai(body: dict[str, Any]) -> dict[str, Any]:
    turns: list[Any] = []
    for message in body["messages"]:
        content = message.get("content") or ""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        images = [part["image_url"]["url"].partition(",")[2] for part in parts if part["type"] == "image_url"]
        calls = [call["function"] for call in message.get("tool_calls") or []]
        turns.append((
            message["role"], text, images, [(call["name"], json.loads(call["arguments"])) for call in calls],
        ))  # fmt: skip
    tools = [each["function"] for each in body["tools"]]
    return {
        "model": body["model"],
        "turns": turns,
        "tools": [(tool["name"], tool["description"], tool["parameters"]) for tool in tools],
        "sampling": (body["temperature"], body["top_p"], body["max_tokens"], body["stop"]),
    }


def _heard_by_ollama(body: dict[str, Any]) -> dict[str, Any]:
    turns: list[Any] = []
    for message in body["messages"]:
        calls = [call["function"] for call in message.get("tool_calls") or []]
        turns.append((
            message["role"], message.get("content") or "", message.get("images") or [],
            [(call["name"], call["arguments"]) for call in calls],
        ))  # fmt: skip
    tools = [each["function"] for each in body["tools"]]
    options = body["options"]
    return {
        "model": body["model"],
        "turns": turns,
        "tools": [(tool["name"], tool["description"], tool["parameters"]) for tool in tools],
        "sampling": (options["temperature"], options["top_p"], options["num_predict"], options["stop"]),
    }


def _heard_by_anthropic(body: dict[str, Any]) -> dict[str, Any]:
    system = body["system"]
    turns: list[Any] = [("system", system if isinstance(system, str) else system[0]["text"], [], [])]
    for message in body["messages"]:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for block in blocks:
            if block["type"] == "tool_result":
                result = block["content"]
                turns.append(("tool", result if isinstance(result, str) else result[0]["text"], [], []))
        text = "".join(block["text"] for block in blocks if block["type"] == "text")
        images = [block["source"]["data"] for block in blocks if block["type"] == "image"]
        calls = [(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]
        if text or images or calls:
            turns.append((message["role"], text, images, calls))
    return {
        "model": body["model"],
        "turns": turns,
        "tools": [(tool["name"], tool["description"], tool["input_schema"]) for tool in body["tools"]],
        # Its models take either a temperature or this.
        "sampling": (body["temperature"], body.get("top_p", 0.7), body["max_tokens"], body["stop_sequences"]),
    }


CONVERSATION = {
    "model": "there",
    "turns": [
        ("system", "Be brief.", [], []),
        ("user", "Weather?", [], []),
        ("assistant", "", [], [("weather", {"city": "Bern"})]),
        ("tool", "rain", [], []),
        ("user", "And here?", ["iVBORw0KGgo="], []),
    ],
    "tools": [("weather", "Tells it", TOOL)],
    "sampling": (0.5, 0.7, 77, ["END"]),
}


@each_chat
@each_backend
@each_mode
async def test_a_chat_arrives_as_it_was_asked_and_as_it_was_told(
    tmp_path: Path, client: str, backend: str, stream: bool
) -> None:
    asks, reads = CHATS[client]
    path, body = asks(stream)
    async with meeting(tmp_path, backend) as (teller, http):
        for name, story in STORIES.items():
            teller.story = story
            answer = await http.post(path, json={"model": "m", **body})
            assert answer.status_code == 200, answer.text
            assert reads(answer, stream) == expected(story), name
            assert heard(*teller.asked[-1]) == CONVERSATION


@each_mode
async def test_a_model_that_writes_half_a_call_is_no_reason_to_leave_its_server_alone(
    tmp_path: Path, stream: bool
) -> None:
    path, body = ollama_asks(stream)
    async with meeting(tmp_path, "openai") as (teller, http):
        teller.story = Story(words=(), calls=(("call_1", "weather", '{"city": "Zü'),), finish="length")
        for _ in range(5):
            answer = await http.post(path, json={"model": "m", **body})
            assert answer.status_code == 500
            assert 'invalid tool call arguments for "weather"' in answer.json()["error"]
        assert len(teller.asked) == 5
        teller.story = Story()
        assert (await http.post(path, json={"model": "m", **body})).status_code == 200


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/v1/messages"])
async def test_a_plain_server_is_not_told_what_openai_would_refuse(tmp_path: Path, path: str) -> None:
    question: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "prompt": "Once", "raw": True}
    async with meeting(tmp_path, "openai") as (teller, http):
        await http.post(path, json={"model": "m", "max_tokens": 9, **question})
    ((_, body),) = teller.asked
    known = {"model", "messages", "prompt", "temperature", "top_p", "max_tokens", "stream", "stream_options"}
    assert set(body) <= known


async def test_anthropic_is_not_told_what_every_client_of_ollamas_sends_along(tmp_path: Path) -> None:
    question = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    async with meeting(tmp_path, "anthropic") as (teller, http):
        await http.post("/api/chat", json=question)
    ((_, body),) = teller.asked
    assert set(body) == {"model", "messages", "max_tokens", "stream"}


async def test_a_plain_server_is_told_what_the_client_asked_for_beyond(tmp_path: Path) -> None:
    options = {"top_k": 5, "repeat_penalty": 1.5}
    messages = [{"role": "user", "content": "Hi"}]
    async with meeting(tmp_path, "openai") as (teller, http):
        await http.post("/api/chat", json={"model": "m", "messages": messages, "options": options})
    ((_, body),) = teller.asked
    assert (body["top_k"], body["repetition_penalty"]) == (5, 1.5)


@pytest.mark.parametrize("client", PROMPTS)
@pytest.mark.parametrize("backend", BACKENDS[:3])
@each_mode
async def test_a_prompt_is_continued_as_it_stands(tmp_path: Path, client: str, backend: str, stream: bool) -> None:
    if client == backend:
        return  # this engine's own form is its own business
    asks, reads = PROMPTS[client]
    path, body = asks(stream)
    async with meeting(tmp_path, backend) as (teller, http):
        for name in SPOKEN:
            teller.story = STORIES[name]
            answer = await http.post(path, json={"model": "m", **body})
            assert answer.status_code == 200, answer.text
            assert reads(answer, stream) == expected(teller.story), name


@pytest.mark.parametrize(("path", "key"), [("/v1/embeddings", "data"), ("/api/embed", "embeddings")])
@pytest.mark.parametrize("backend", BACKENDS[:3])
async def test_vectors_arrive(tmp_path: Path, path: str, key: str, backend: str) -> None:
    async with meeting(tmp_path, backend) as (teller, http):
        answer = (await http.post(path, json={"model": "m", "input": ["one", "two"]})).json()
        assert teller.asked[-1][1]["input"] == ["one", "two"]
    found = [each["embedding"] if isinstance(each, dict) else each for each in answer[key]]
    assert found == [pytest.approx(vector) for vector in VECTORS]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank", "/v1/rerank/"])
@pytest.mark.parametrize("backend", ["llamacpp", "openai"])
async def test_documents_are_ordered(tmp_path: Path, path: str, backend: str) -> None:
    async with meeting(tmp_path, backend) as (teller, http):
        asked: dict[str, Any] = {"model": "m", "query": "q", "documents": ["one", "two"], "top_n": 1}
        plain = (await http.post(path, json=asked)).json()
        assert plain["results"] == [{"index": 1, "relevance_score": 1.0}]
        objects = {**asked, "documents": [{"text": "one"}, {"text": "two"}], "return_documents": True}
        answer = await http.post(path, json=objects)
        assert answer.json()["results"] == [{"index": 1, "relevance_score": 1.0, "document": {"text": "two"}}]
        assert answer.json()["usage"]["total_tokens"] == 21
        (_, first), (where, last) = teller.asked
    assert where == "/v1/rerank"
    assert first == {**asked, "model": "there"}
    assert (last["documents"], last["top_n"]) == (["one", "two"], 1)


@pytest.mark.parametrize("backend", ["llamacpp", "openai", "anthropic"])
async def test_tokens_are_counted_where_the_backend_can_count(tmp_path: Path, backend: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    async with meeting(tmp_path, backend) as (_, http):
        anthropic = await http.post("/v1/messages/count_tokens", json=body)
    assert anthropic.json() == {"input_tokens": 21}


@pytest.mark.parametrize("client", [*CHATS, "llamacpp"])
@each_backend
@each_mode
async def test_a_refusal_arrives_in_the_clients_own_form(
    tmp_path: Path, client: str, backend: str, stream: bool
) -> None:
    path, body = (CHATS if client in CHATS else PROMPTS)[client][0](stream)
    if (client, backend) == ("llamacpp", "anthropic"):
        return  # refused by the gateway itself, below
    async with meeting(tmp_path, backend) as (teller, http):
        teller.story = Story(refusal=(400, "too many umlauts"))
        answer = await http.post(path, json={"model": "m", **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert "too many umlauts" in (error if client == "ollama" else error["message"])
    assert answer.json().get("type") == ("error" if client == "anthropic" else None)


WISHES: dict[str, dict[str, Any]] = {
    "openai": {"reasoning_effort": "high"},
    "anthropic": {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
}


@pytest.mark.parametrize("client", WISHES)
@pytest.mark.parametrize("backend", ["openai", "ollama", "anthropic"])
async def test_a_model_that_cannot_think_is_asked_again_without_the_wish(
    tmp_path: Path, client: str, backend: str
) -> None:
    path, body = CHATS[client][0](False)
    async with meeting(tmp_path, backend) as (teller, http):
        teller.story = Story(thinks=False)
        answer = await http.post(path, json={"model": "m", **body, **WISHES[client]})
        assert answer.status_code == (400 if client == backend else 200), answer.text
        teller.story = Story(refusal=(400, "think of something else"))
        asked = len(teller.asked)
        refused = await http.post(path, json={"model": "m", **body})
    assert refused.status_code == 400
    assert len(teller.asked) == asked + 1


@each_chat
@each_backend
async def test_what_breaks_in_the_middle_ends_in_an_error(tmp_path: Path, client: str, backend: str) -> None:
    path, body = CHATS[client][0](True)
    async with meeting(tmp_path, backend) as (teller, http):
        teller.story = Story(breaks="the mountain moved")
        answer = await http.post(path, json={"model": "m", **body})
    assert answer.status_code == 200
    assert "capital" in answer.text
    events = [json.loads(line) for line in answer.text.splitlines()] if client == "ollama" else data_events(answer.text)
    error = events[-1]["error"]
    assert "broke off its answer" in (error if client == "ollama" else error["message"])


@pytest.mark.parametrize(
    ("path", "body", "backends"),
    [
        ("/v1/completions", {"prompt": "Once"}, ("anthropic",)),
        ("/api/generate", {"prompt": "Once", "raw": True}, ("anthropic",)),
        ("/completion", {"prompt": "Once"}, ("anthropic",)),
        ("/v1/embeddings", {"input": "one"}, ("anthropic",)),
        ("/api/embed", {"input": "one"}, ("anthropic",)),
        ("/v1/audio/speech", {"input": "Hi"}, ("ollama", "anthropic")),
        ("/v1/rerank", {"query": "q", "documents": ["d"]}, ("ollama", "anthropic")),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "Hi"}]}, ("ollama",)),
        ("/tokenize", {"content": "Hi"}, ("openai", "ollama", "anthropic")),
        ("/infill", {"input_prefix": "a", "input_suffix": "b"}, ("openai", "ollama", "anthropic")),
    ],
)
async def test_what_a_backend_cannot_do_is_refused_in_words(
    tmp_path: Path, path: str, body: dict[str, Any], backends: tuple[str, ...]
) -> None:
    for backend in backends:
        folder = tmp_path / backend
        folder.mkdir()
        async with meeting(folder, backend) as (teller, http):
            answer = await http.post(path, json={"model": "m", **body})
            assert answer.status_code in (400, 404, 501), (backend, answer.text)
            assert "does not support" in answer.text, (backend, answer.text)
            assert teller.asked == []
