"""Clients of each chat protocol: the same request and its answer in their formats, and as a backend receives it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from fakes.scripted_server import ScriptedAnswer
from system.running_gateway import data_events

TOOL = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@dataclass(kw_only=True)
class ClientAnswer:
    """An answer as a client read it."""

    words: str = ""
    thoughts: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def expected(scripted: ScriptedAnswer) -> ClientAnswer:
    return ClientAnswer(
        words="".join(scripted.words),
        thoughts="".join(scripted.thoughts),
        calls=[(name, json.loads(arguments)) for _, name, arguments in scripted.calls],
        finish=scripted.finish,
        prompt_tokens=scripted.prompt_tokens,
        completion_tokens=scripted.completion_tokens,
    )


def openai_request(stream: bool) -> tuple[str, dict[str, Any]]:
    tools = [
        {"type": "function", "function": {"name": "weather", "description": "Current weather", "parameters": TOOL}}
    ]
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


def openai_answer(answer: httpx.Response, stream: bool) -> ClientAnswer:
    if not stream:
        (choice,) = answer.json()["choices"]
        message, usage = choice["message"], answer.json()["usage"]
        calls = [call["function"] for call in message.get("tool_calls") or []]
        return ClientAnswer(
            words=message.get("content") or "",
            thoughts=message.get("reasoning_content") or "",
            calls=[(call["name"], json.loads(call["arguments"])) for call in calls],
            finish=choice["finish_reason"],
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
        )
    result, calls_by_index = ClientAnswer(), dict[int, list[str]]()
    for event in data_events(answer.text):
        for choice in event["choices"]:
            delta = choice["delta"]
            result.words += delta.get("content") or ""
            result.thoughts += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls") or []:
                known = calls_by_index.setdefault(call["index"], ["", ""])
                known[0] += call["function"].get("name") or ""
                known[1] += call["function"].get("arguments") or ""
            result.finish = choice["finish_reason"] or result.finish
        if event.get("usage"):
            result.prompt_tokens = event["usage"]["prompt_tokens"]
            result.completion_tokens = event["usage"]["completion_tokens"]
    result.calls = [(name, json.loads(arguments)) for name, arguments in calls_by_index.values()]
    assert answer.text.endswith("data: [DONE]\n\n")
    return result


def ollama_request(stream: bool) -> tuple[str, dict[str, Any]]:
    tools = [
        {"type": "function", "function": {"name": "weather", "description": "Current weather", "parameters": TOOL}}
    ]
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


def ollama_answer(answer: httpx.Response, stream: bool) -> ClientAnswer:
    result, lines = ClientAnswer(), [json.loads(line) for line in answer.text.splitlines()]
    for line in lines:
        message = line["message"]
        result.words += message.get("content") or ""
        result.thoughts += message.get("thinking") or ""
        result.calls += [
            (each["function"]["name"], each["function"]["arguments"]) for each in message.get("tool_calls") or []
        ]
    last = lines[-1]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert stream or len(lines) == 1
    result.finish = "tool_calls" if last["done_reason"] == "stop" and result.calls else last["done_reason"]
    result.prompt_tokens, result.completion_tokens = last["prompt_eval_count"], last["eval_count"]
    return result


def anthropic_request(stream: bool) -> tuple[str, dict[str, Any]]:
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
    tools = [{"name": "weather", "description": "Current weather", "input_schema": TOOL}]
    more = {"temperature": 0.5, "top_p": 0.7, "max_tokens": 77, "stop_sequences": ["END"]}
    return "/v1/messages", {"system": "Be brief.", "messages": turns, "tools": tools, "stream": stream, **more}


def anthropic_answer(answer: httpx.Response, stream: bool) -> ClientAnswer:
    finishes = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
    if not stream:
        message = answer.json()
        blocks = message["content"]
        result = ClientAnswer(finish=finishes[message["stop_reason"]])
        usage = message["usage"]
    else:
        result, blocks, usage = ClientAnswer(), [], {}
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
                result.finish = finishes[event["delta"]["stop_reason"]]
                usage |= {key: value for key, value in event["usage"].items() if value is not None}
        assert data_events(answer.text)[-1] == {"type": "message_stop"}
        for block in blocks:
            if block["type"] == "tool_use":
                block["input"] = json.loads(block["partial"] or "{}")
    result.words = "".join(block["text"] for block in blocks if block["type"] == "text")
    result.thoughts = "".join(block["thinking"] for block in blocks if block["type"] == "thinking")
    result.calls = [(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]
    result.prompt_tokens = usage["input_tokens"] + (usage.get("cache_read_input_tokens") or 0)
    result.completion_tokens = usage["output_tokens"]
    return result


def completion_request(stream: bool) -> tuple[str, dict[str, Any]]:
    body = {"prompt": "Once", "stream": stream, "max_tokens": 77, "temperature": 0.5, "stop": ["END"]}
    return "/v1/completions", body | ({"stream_options": {"include_usage": True}} if stream else {})


def completion_answer(answer: httpx.Response, stream: bool) -> ClientAnswer:
    events = data_events(answer.text) if stream else [answer.json()]
    result = ClientAnswer()
    for event in events:
        for choice in event["choices"]:
            result.words += choice["text"]
            result.finish = choice["finish_reason"] or result.finish
        if event.get("usage"):
            result.prompt_tokens = event["usage"]["prompt_tokens"]
            result.completion_tokens = event["usage"]["completion_tokens"]
    return result


def generate_request(stream: bool) -> tuple[str, dict[str, Any]]:
    options = {"num_predict": 77, "temperature": 0.5, "stop": ["END"]}
    return "/api/generate", {"prompt": "Once", "raw": True, "stream": stream, "options": options}


def generate_answer(answer: httpx.Response, stream: bool) -> ClientAnswer:
    lines = [json.loads(line) for line in answer.text.splitlines()]
    last = lines[-1]
    return ClientAnswer(
        words="".join(line["response"] for line in lines),
        finish=last["done_reason"],
        prompt_tokens=last["prompt_eval_count"],
        completion_tokens=last["eval_count"],
    )


def native_request(stream: bool) -> tuple[str, dict[str, Any]]:
    return "/completion", {"prompt": "Once", "stream": stream, "n_predict": 77, "temperature": 0.5, "stop": ["END"]}


def native_answer(answer: httpx.Response, stream: bool) -> ClientAnswer:
    events = data_events(answer.text) if stream else [answer.json()]
    last = events[-1]
    return ClientAnswer(
        words="".join(event["content"] for event in events),
        finish={"limit": "length", "eos": "stop"}[last["stop_type"]],
        prompt_tokens=last["tokens_evaluated"],
        completion_tokens=last["tokens_predicted"],
    )


MakeRequest = Callable[[bool], tuple[str, dict[str, Any]]]
ReadAnswer = Callable[[httpx.Response, bool], ClientAnswer]
CHATS: dict[str, tuple[MakeRequest, ReadAnswer]] = {
    "openai": (openai_request, openai_answer),
    "ollama": (ollama_request, ollama_answer),
    "anthropic": (anthropic_request, anthropic_answer),
}
PROMPTS: dict[str, tuple[MakeRequest, ReadAnswer]] = {
    "openai": (completion_request, completion_answer),
    "ollama": (generate_request, generate_answer),
    "llamacpp": (native_request, native_answer),
}


def received(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """A request as the backend understands it, in OpenAI's terms."""
    reader = {"/api/chat": _received_by_ollama, "/v1/messages": _received_by_anthropic}.get(path, _received_by_openai)
    return reader(body)


def _received_by_openai(body: dict[str, Any]) -> dict[str, Any]:
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


def _received_by_ollama(body: dict[str, Any]) -> dict[str, Any]:
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


def _received_by_anthropic(body: dict[str, Any]) -> dict[str, Any]:
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
    "tools": [("weather", "Current weather", TOOL)],
    "sampling": (0.5, 0.7, 77, ["END"]),
}
