"""A scripted server on loopback that tells one story in whichever protocol it is asked: OpenAI's, Ollama's, Anthropic's.

The forms are those of the real servers, with their oddities: calls of tools come in fragments, whole, or in blocks.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

VECTORS = [[0.0, 0.6, 0.8], [0.8, 0.6, 0.0]]
_NUMBERS = {"total_duration": 9_000_000, "load_duration": 1_000_000, "prompt_eval_duration": 2, "eval_duration": 3}
_OLLAMA = {"model": "there", "created_at": "2026-11-22T23:35:28.49764066Z"}
_ANTHROPIC_FINISH = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@dataclass(frozen=True, kw_only=True)
class Story:
    """What the model says. `refusal` is an error status with its message, `breaks` an error after the first words.

    One that does not think refuses whoever wishes it to. `then` is told to who comes back with the result of a call.
    """

    words: tuple[str, ...] = ("The", " capital", " <is>", " Zürich 🏔")
    thoughts: tuple[str, ...] = ()
    calls: tuple[tuple[str, str, str], ...] = ()
    finish: str = "stop"
    prompt_tokens: int = 21
    completion_tokens: int = 9
    refusal: tuple[int, str] | None = None
    thinks: bool = True
    then: Story | None = None
    breaks: str | None = None


class Storyteller:
    """The server. `asked` holds the path and the body of each request; `responds`: it knows OpenAI's responses, too."""

    def __init__(self) -> None:
        self.story = Story()
        self.responds = False
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        method, target, _ = first.split(" ")
        path = target.partition("?")[0]
        if method == "GET":
            writer.write(_head(200, "application/json", 2) + b"{}")
            return True
        asked = json.loads(body)
        self.asked.append((path, asked))
        status, media_type, pieces = self._answer(path, asked)
        if media_type == "application/json":
            data = b"".join(pieces)
            writer.write(_head(status, media_type, len(data)) + data)
        else:
            writer.write(_head(status, media_type, None))
            for piece in pieces:
                if self.story.breaks and b"error" in piece:
                    # What arrives together with the first words could still be answered by somebody else.
                    await asyncio.sleep(0.05)
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    def _answer(self, path: str, asked: dict[str, Any]) -> tuple[int, str, Iterator[bytes]]:
        story = self.story
        turns = json.dumps(asked.get("messages", ""))
        if story.then is not None and ('"role": "tool"' in turns or '"tool_result"' in turns):
            story = story.then
        ollama = path.startswith("/api/")
        anthropic = path.startswith("/v1/messages")
        refusal = story.refusal
        if not story.thinks and (asked.get("think") or asked.get("reasoning_effort") or asked.get("thinking")):
            refusal = (400, '"there" does not support thinking')
        if refusal is not None:
            status, message = refusal
            return status, "application/json", iter([_json(_refusal(message, ollama=ollama, anthropic=anthropic))])
        told = {
            "/v1/chat/completions": openai_chat,
            "/v1/completions": openai_completion,
            "/v1/embeddings": openai_vectors,
            "/v1/rerank": openai_order,
            "/v1/chat/completions/input_tokens": lambda story, asked: iter([{"input_tokens": story.prompt_tokens}]),
            "/api/chat": ollama_chat,
            "/api/generate": ollama_chat,
            "/api/embed": ollama_vectors,
            "/v1/messages": anthropic_messages,
            "/v1/messages/count_tokens": lambda story, asked: iter([{"input_tokens": story.prompt_tokens}]),
        }.get(path)
        if path == "/v1/responses" and self.responds:
            told = openai_response
        if told is None:
            return 404, "application/json", iter([_json(_refusal("no such route", ollama=ollama, anthropic=anthropic))])
        chat = path in ("/api/chat", "/api/generate")
        streams = asked.get("stream", chat)
        events = told(story, asked)
        if not streams:
            return 200, "application/json", (_json(event) for event in events)
        if chat:
            return 200, "application/x-ndjson", (_json(event) + b"\n" for event in events)
        if anthropic or path == "/v1/responses":
            return 200, "text/event-stream", (b"event: %s\n" % e["type"].encode() + _event(e) for e in events)
        return 200, "text/event-stream", (_event(event) for event in events)


def openai_chat(story: Story, asked: dict[str, Any]) -> Iterator[Any]:
    """As llama-server and OpenAI tell it."""
    usage = _openai_usage(story)
    base = {"id": "chatcmpl-1", "created": 1, "model": "there", "object": "chat.completion.chunk"}
    calls = [
        {"id": each, "type": "function", "function": {"name": name, "arguments": arguments}}
        for each, name, arguments in story.calls
    ]
    if not asked.get("stream"):
        message: dict[str, Any] = {"role": "assistant", "content": "".join(story.words) or None}
        if story.thoughts:
            message["reasoning_content"] = "".join(story.thoughts)
        if calls:
            message["tool_calls"] = calls
        choice = {"index": 0, "finish_reason": story.finish, "message": message}
        yield {**base, "object": "chat.completion", "choices": [choice], "usage": usage}
        return

    def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
        return {**base, "choices": [{"index": 0, "finish_reason": finish, "delta": delta}]}

    yield chunk(role="assistant", content=None)
    for thought in story.thoughts:
        yield chunk(reasoning_content=thought)
    for number, word in enumerate(story.words):
        yield chunk(content=word)
        if story.breaks and number == 1:
            yield {"error": {"code": 500, "message": story.breaks, "type": "server_error"}}
            return
    for index, call in enumerate(calls):
        arguments = call["function"]["arguments"]
        yield chunk(tool_calls=[{"index": index, **call, "function": {**call["function"], "arguments": arguments[:1]}}])
        for letter in arguments[1:]:
            yield chunk(tool_calls=[{"index": index, "function": {"arguments": letter}}])
    yield chunk(story.finish)
    if (asked.get("stream_options") or {}).get("include_usage"):
        yield {**base, "choices": [], "usage": usage}
    yield "[DONE]"


def openai_response(story: Story, asked: dict[str, Any]) -> Iterator[Any]:
    """A response, as far as words go."""
    words = "".join(story.words)
    usage = {"input_tokens": story.prompt_tokens, "output_tokens": story.completion_tokens}
    item = {"id": "msg_theirs", "type": "message", "role": "assistant", "status": "completed"}
    said = {**item, "content": [{"type": "output_text", "text": words, "annotations": []}]}
    answer = {"id": "resp_theirs", "object": "response", "created_at": 1, "model": "there", "output": [said]}
    if not asked.get("stream"):
        yield {**answer, "status": "completed", "usage": usage}
        return
    yield {"type": "response.created", "response": {**answer, "output": [], "status": "in_progress"}}
    yield {"type": "response.output_text.delta", "item_id": "msg_theirs", "output_index": 0, "delta": words}
    yield {"type": "response.completed", "response": {**answer, "status": "completed", "usage": usage}}


def openai_completion(story: Story, asked: dict[str, Any]) -> Iterator[Any]:
    """A prompt continued."""
    base = {"id": "cmpl-1", "created": 1, "model": "there", "object": "text_completion"}
    usage = _openai_usage(story)
    if not asked.get("stream"):
        choice = {"index": 0, "finish_reason": story.finish, "text": "".join(story.words), "logprobs": None}
        yield {**base, "choices": [choice], "usage": usage}
        return
    for word in story.words:
        yield {**base, "choices": [{"index": 0, "finish_reason": None, "text": word}]}
    yield {**base, "choices": [{"index": 0, "finish_reason": story.finish, "text": ""}], "usage": usage}
    yield "[DONE]"


def openai_vectors(story: Story, asked: dict[str, Any]) -> Iterator[Any]:
    """As many vectors as there are texts."""
    texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
    data = [{"object": "embedding", "index": at, "embedding": VECTORS[at]} for at, _ in enumerate(texts)]
    usage = {"prompt_tokens": story.prompt_tokens, "total_tokens": story.prompt_tokens}
    yield {"object": "list", "model": "there", "data": data, "usage": usage}


def openai_order(story: Story, asked: dict[str, Any]) -> Iterator[Any]:
    """The last document first, as llama-server tells it."""
    assert all(isinstance(document, str) for document in asked["documents"])
    order = list(enumerate(asked["documents"]))[::-1][: asked.get("top_n")]
    results = [{"index": index, "relevance_score": float(index)} for index, _ in order]
    usage = {"prompt_tokens": story.prompt_tokens, "total_tokens": story.prompt_tokens}
    yield {"model": "there", "object": "list", "usage": usage, "results": results}


def ollama_chat(story: Story, asked: dict[str, Any]) -> Iterator[Any]:
    """As Ollama tells it, for chat and generate: a call comes whole, and nothing but its order numbers it."""
    generates = "messages" not in asked
    counts = {"prompt_eval_count": story.prompt_tokens, "eval_count": story.completion_tokens, **_NUMBERS}
    # Ollama knows no other reason for a call of a tool than the end.
    last = {"done": True, "done_reason": "stop" if story.finish == "tool_calls" else story.finish, **counts}

    def line(text: str = "", thought: str = "", calls: Any = None, **more: Any) -> dict[str, Any]:
        said = {"content": text} | ({"thinking": thought} if thought else {}) | ({"tool_calls": calls} if calls else {})
        if generates:
            return {**_OLLAMA, "response": text, **({"thinking": thought} if thought else {}), **more}
        return {**_OLLAMA, "message": {"role": "assistant", **said}, **more}

    calls = [{"function": {"name": name, "arguments": json.loads(arguments)}} for _, name, arguments in story.calls]
    if asked.get("stream") is False:
        yield line("".join(story.words), "".join(story.thoughts), calls, **last)
        return
    for thought in story.thoughts:
        yield line(thought=thought, done=False)
    for number, word in enumerate(story.words):
        yield line(word, done=False)
        if story.breaks and number == 1:
            yield {"error": story.breaks}
            return
    for call in calls:
        yield line(calls=[call], done=False)
    yield line(**last)


def ollama_vectors(story: Story, asked: dict[str, Any]) -> Iterator[Any]:
    """As many vectors as there are texts."""
    texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
    yield {"model": "there", "embeddings": VECTORS[: len(texts)], "prompt_eval_count": story.prompt_tokens, **_NUMBERS}


def anthropic_messages(story: Story, asked: dict[str, Any]) -> Iterator[Any]:
    """As Anthropic tells it: in blocks, one after the other."""
    usage = {"input_tokens": story.prompt_tokens, "output_tokens": story.completion_tokens}
    end = {"stop_reason": _ANTHROPIC_FINISH[story.finish], "stop_sequence": None}
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if story.thoughts:
        deltas = [{"type": "thinking_delta", "thinking": thought} for thought in story.thoughts]
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, deltas))
    if story.words:
        blocks.append(({"type": "text", "text": ""}, [{"type": "text_delta", "text": word} for word in story.words]))
    for each, name, arguments in story.calls:
        pieces = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", arguments[:4], arguments[4:])]
        blocks.append(({"type": "tool_use", "id": each, "name": name, "input": {}}, pieces))
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "there"}
    if not asked.get("stream"):
        content = []
        for block, deltas in blocks:
            if block["type"] == "tool_use":
                content.append({**block, "input": json.loads("".join(piece["partial_json"] for piece in deltas))})
            else:
                content.append({**block, block["type"]: "".join(piece[block["type"]] for piece in deltas)})
        yield {**message, "content": content, **end, "usage": usage}
        return
    opened = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    yield {"type": "message_start", "message": opened}
    for index, (block, deltas) in enumerate(blocks):
        yield {"type": "content_block_start", "index": index, "content_block": block}
        yield {"type": "ping"}
        for number, delta in enumerate(deltas):
            yield {"type": "content_block_delta", "index": index, "delta": delta}
            if story.breaks and number == 1 and "text" in delta:
                yield {"type": "error", "error": {"type": "api_error", "message": story.breaks}}
                return
        yield {"type": "content_block_stop", "index": index}
    yield {"type": "message_delta", "delta": end, "usage": {"output_tokens": story.completion_tokens}}
    yield {"type": "message_stop"}


def _openai_usage(story: Story) -> dict[str, Any]:
    total = story.prompt_tokens + story.completion_tokens
    return {
        "prompt_tokens": story.prompt_tokens,
        "completion_tokens": story.completion_tokens,
        "total_tokens": total,
    }


def _refusal(message: str, *, ollama: bool, anthropic: bool) -> dict[str, Any]:
    if ollama:
        return {"error": message}
    if anthropic:
        return {"type": "error", "error": {"type": "invalid_request_error", "message": message}}
    return {"error": {"code": 400, "message": message, "type": "invalid_request_error"}}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _event(value: Any) -> bytes:
    return b"data: " + (value.encode() if isinstance(value, str) else _json(value)) + b"\n\n"


def _head(status: int, media_type: str, length: int | None) -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"HTTP/1.1 {status} Told\r\nContent-Type: {media_type}\r\n{framing}\r\n\r\n".encode()


@asynccontextmanager
async def open_storyteller() -> AsyncIterator[Storyteller]:
    """A storyteller that listens."""
    teller = Storyteller()
    connections: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        try:
            await teller.serve(reader, writer)
        finally:
            connections.discard(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    teller.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield teller
    finally:
        server.close()
        for writer in list(connections):
            writer.transport.abort()
        for _ in range(500):
            if not connections:
                break
            await asyncio.sleep(0.01)
