"""A scripted server on loopback that gives one answer in the protocol of the request: OpenAI's, Ollama's, Anthropic's.

The formats are those of the real servers, down to their differences: tool calls come in fragments, whole, or in blocks.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VECTORS = [[0.0, 0.6, 0.8], [0.8, 0.6, 0.0]]
_NUMBERS = {"total_duration": 9_000_000, "load_duration": 1_000_000, "prompt_eval_duration": 2, "eval_duration": 3}
_OLLAMA = {"model": "there", "created_at": "2026-11-22T23:35:28.49764066Z"}
_ANTHROPIC_FINISH = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@dataclass(frozen=True, kw_only=True)
class ScriptedAnswer:
    """What the model answers. `error` is a status with its message, `breaks` an error after the first words.

    Without `reasoning_supported`, requests for reasoning are rejected. `after_tools` answers requests with tool results.
    """

    words: tuple[str, ...] = ("The", " capital", " <is>", " Zürich 🏔")
    thoughts: tuple[str, ...] = ()
    calls: tuple[tuple[str, str, str], ...] = ()
    finish: str = "stop"
    prompt_tokens: int = 21
    completion_tokens: int = 9
    error: tuple[int, str] | None = None
    reasoning_supported: bool = True
    after_tools: ScriptedAnswer | None = None
    breaks: str | None = None


class ScriptedServer:
    """The server. `requests` holds the path and body of each request; `has_responses`: it also has OpenAI's responses API.

    `prepared` are answers in bytes to the next requests, instead of `answer`: status, media type and body, perhaps in two
    parts that arrive one after the other. GET requests are answered from `documents` by path, else as health checks with
    `health_status` and `health`; `documents["/api/show"]` holds answers by model. `base` stands in front of every route, instead of
    `/v1` if it is not empty. `heads` holds method, target and headers of all requests, `bodies` the bodies of `requests` in bytes.
    """

    def __init__(self) -> None:
        self.answer = ScriptedAnswer()
        self.has_responses = False
        self.prepared: list[tuple[int, str, bytes | tuple[bytes, bytes]]] = []
        self.health_status = 200
        self.health = b"{}"
        self.paused = False
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.heads: list[tuple[str, str, dict[str, str]]] = []
        self.bodies: list[bytes] = []
        self.documents: dict[str, Any] = {}
        self.raw: dict[str, tuple[str, bytes]] = {}
        self.base = ""
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
        data = await reader.readexactly(int(headers.get("content-length", "0")))
        method, target, _ = first.split(" ")
        path = target.partition("?")[0]
        self.heads.append((method, target, headers))
        document = self._document(method, path, data)
        if document is not None:
            writer.write(_head(200, "application/json", len(document)) + document)
            return True
        if self.base:
            path = "/v1/" + path.removeprefix(self.base).lstrip("/") if path.startswith(self.base) else "/nowhere"
        if method == "GET" and path in self.raw:
            media_type, content = self.raw[path]
            writer.write(_head(200, media_type, len(content)) + content)
            return True
        if method == "GET" and self.documents:
            writer.write(_head(404, "application/json", 2) + b"{}")
            return True
        if method == "GET":
            writer.write(_head(self.health_status, "application/json", len(self.health)) + self.health)
            return True
        is_form = headers.get("content-type", "").startswith("multipart/")
        body = {} if is_form or not data else json.loads(data)
        self.bodies.append(data)
        self.requests.append((path, body))
        self.paused = bool(self.prepared) and isinstance(self.prepared[0][2], tuple)
        status, media_type, pieces = self._answer(path, body)
        if media_type == "application/json":
            whole = b"".join(pieces)
            writer.write(_head(status, media_type, len(whole)) + whole)
        else:
            writer.write(_head(status, media_type, None))
            for number, piece in enumerate(pieces):
                if (self.answer.breaks and b"error" in piece) or (self.paused and number):
                    # An error that arrives together with the first words could still fall back to another backend.
                    await asyncio.sleep(0.05)
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    def _document(self, method: str, path: str, data: bytes) -> bytes | None:
        if method == "GET" and path in self.documents:
            return _json(self.documents[path])
        if path == "/api/show" and path in self.documents:
            return _json(self.documents[path][json.loads(data)["model"]])
        return None

    def _answer(self, path: str, body: dict[str, Any]) -> tuple[int, str, Iterator[bytes]]:
        if self.prepared:
            status, media_type, data = self.prepared.pop(0)
            return status, media_type, filter(None, [data] if isinstance(data, bytes) else data)
        answer = self.answer
        turns = json.dumps(body.get("messages", ""))
        if answer.after_tools is not None and ('"role": "tool"' in turns or '"tool_result"' in turns):
            answer = answer.after_tools
        ollama = path.startswith("/api/")
        anthropic = path.startswith("/v1/messages")
        error = answer.error
        if not answer.reasoning_supported and (
            body.get("think") or body.get("reasoning_effort") or body.get("thinking")
        ):
            error = (400, '"there" does not support thinking')
        if error is not None:
            status, message = error
            return status, "application/json", iter([_json(_error_body(message, ollama=ollama, anthropic=anthropic))])
        handler = {
            "/v1/chat/completions": openai_chat,
            "/v1/completions": openai_completion,
            "/v1/embeddings": openai_embeddings,
            "/v1/rerank": openai_rerank,
            "/v1/chat/completions/input_tokens": lambda answer, body: iter([{"input_tokens": answer.prompt_tokens}]),
            "/api/chat": ollama_chat,
            "/api/generate": ollama_chat,
            "/api/embed": ollama_embeddings,
            "/v1/messages": anthropic_messages,
            "/v1/messages/count_tokens": lambda answer, body: iter([{"input_tokens": answer.prompt_tokens}]),
        }.get(path)
        if path == "/v1/responses" and self.has_responses:
            handler = openai_response
        if handler is None:
            return (
                404,
                "application/json",
                iter([_json(_error_body("no such route", ollama=ollama, anthropic=anthropic))]),
            )
        chat = path in ("/api/chat", "/api/generate")
        streams = body.get("stream", chat)
        events = handler(answer, body)
        if not streams:
            return 200, "application/json", (_json(event) for event in events)
        if chat:
            return 200, "application/x-ndjson", (_json(event) + b"\n" for event in events)
        if anthropic or path == "/v1/responses":
            return 200, "text/event-stream", (b"event: %s\n" % e["type"].encode() + _event(e) for e in events)
        return 200, "text/event-stream", (_event(event) for event in events)


def openai_chat(answer: ScriptedAnswer, body: dict[str, Any]) -> Iterator[Any]:
    """As llama-server and OpenAI send it."""
    usage = _openai_usage(answer)
    base = {"id": "chatcmpl-1", "created": 1, "model": "there", "object": "chat.completion.chunk"}
    calls = [
        {"id": each, "type": "function", "function": {"name": name, "arguments": arguments}}
        for each, name, arguments in answer.calls
    ]
    if not body.get("stream"):
        message: dict[str, Any] = {"role": "assistant", "content": "".join(answer.words) or None}
        if answer.thoughts:
            message["reasoning_content"] = "".join(answer.thoughts)
        if calls:
            message["tool_calls"] = calls
        choice = {"index": 0, "finish_reason": answer.finish, "message": message}
        yield {**base, "object": "chat.completion", "choices": [choice], "usage": usage}
        return

    def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
        return {**base, "choices": [{"index": 0, "finish_reason": finish, "delta": delta}]}

    yield chunk(role="assistant", content=None)
    for thought in answer.thoughts:
        yield chunk(reasoning_content=thought)
    for number, word in enumerate(answer.words):
        yield chunk(content=word)
        if answer.breaks and number == 1:
            yield {"error": {"code": 500, "message": answer.breaks, "type": "server_error"}}
            return
    for index, call in enumerate(calls):
        arguments = call["function"]["arguments"]
        yield chunk(tool_calls=[{"index": index, **call, "function": {**call["function"], "arguments": arguments[:1]}}])
        for letter in arguments[1:]:
            yield chunk(tool_calls=[{"index": index, "function": {"arguments": letter}}])
    yield chunk(answer.finish)
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**base, "choices": [], "usage": usage}
    yield "[DONE]"


def openai_response(answer: ScriptedAnswer, body: dict[str, Any]) -> Iterator[Any]:
    """A response with text only."""
    words = "".join(answer.words)
    usage = {"input_tokens": answer.prompt_tokens, "output_tokens": answer.completion_tokens}
    item = {"id": "msg_theirs", "type": "message", "role": "assistant", "status": "completed"}
    output = {**item, "content": [{"type": "output_text", "text": words, "annotations": []}]}
    response = {"id": "resp_theirs", "object": "response", "created_at": 1, "model": "there", "output": [output]}
    if not body.get("stream"):
        yield {**response, "status": "completed", "usage": usage}
        return
    yield {"type": "response.created", "response": {**response, "output": [], "status": "in_progress"}}
    yield {"type": "response.output_text.delta", "item_id": "msg_theirs", "output_index": 0, "delta": words}
    yield {"type": "response.completed", "response": {**response, "status": "completed", "usage": usage}}


def openai_completion(answer: ScriptedAnswer, body: dict[str, Any]) -> Iterator[Any]:
    """A text completion."""
    base = {"id": "cmpl-1", "created": 1, "model": "there", "object": "text_completion"}
    usage = _openai_usage(answer)
    if not body.get("stream"):
        choice = {"index": 0, "finish_reason": answer.finish, "text": "".join(answer.words), "logprobs": None}
        yield {**base, "choices": [choice], "usage": usage}
        return
    for word in answer.words:
        yield {**base, "choices": [{"index": 0, "finish_reason": None, "text": word}]}
    yield {**base, "choices": [{"index": 0, "finish_reason": answer.finish, "text": ""}], "usage": usage}
    yield "[DONE]"


def openai_embeddings(answer: ScriptedAnswer, body: dict[str, Any]) -> Iterator[Any]:
    """One vector for each text."""
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    data = [{"object": "embedding", "index": at, "embedding": VECTORS[at]} for at, _ in enumerate(texts)]
    usage = {"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens}
    yield {"object": "list", "model": "there", "data": data, "usage": usage}


def openai_rerank(answer: ScriptedAnswer, body: dict[str, Any]) -> Iterator[Any]:
    """The last document first, in the format of llama-server."""
    assert all(isinstance(document, str) for document in body["documents"])
    order = list(enumerate(body["documents"]))[::-1][: body.get("top_n")]
    results = [{"index": index, "relevance_score": float(index)} for index, _ in order]
    usage = {"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens}
    yield {"model": "there", "object": "list", "usage": usage, "results": results}


def ollama_chat(answer: ScriptedAnswer, body: dict[str, Any]) -> Iterator[Any]:
    """As Ollama sends it, for chat and generate: tool calls come whole and have no index."""
    generates = "messages" not in body
    counts = {"prompt_eval_count": answer.prompt_tokens, "eval_count": answer.completion_tokens, **_NUMBERS}
    # Ollama reports a tool call as a plain stop.
    last = {"done": True, "done_reason": "stop" if answer.finish == "tool_calls" else answer.finish, **counts}

    def line(text: str = "", thought: str = "", calls: Any = None, **more: Any) -> dict[str, Any]:
        message = (
            {"content": text} | ({"thinking": thought} if thought else {}) | ({"tool_calls": calls} if calls else {})
        )
        if generates:
            return {**_OLLAMA, "response": text, **({"thinking": thought} if thought else {}), **more}
        return {**_OLLAMA, "message": {"role": "assistant", **message}, **more}

    calls = [{"function": {"name": name, "arguments": json.loads(arguments)}} for _, name, arguments in answer.calls]
    if body.get("stream") is False:
        yield line("".join(answer.words), "".join(answer.thoughts), calls, **last)
        return
    for thought in answer.thoughts:
        yield line(thought=thought, done=False)
    for number, word in enumerate(answer.words):
        yield line(word, done=False)
        if answer.breaks and number == 1:
            yield {"error": answer.breaks}
            return
    for call in calls:
        yield line(calls=[call], done=False)
    yield line(**last)


def ollama_embeddings(answer: ScriptedAnswer, body: dict[str, Any]) -> Iterator[Any]:
    """One vector for each text."""
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    yield {"model": "there", "embeddings": VECTORS[: len(texts)], "prompt_eval_count": answer.prompt_tokens, **_NUMBERS}


def anthropic_messages(answer: ScriptedAnswer, body: dict[str, Any]) -> Iterator[Any]:
    """As Anthropic sends it: in consecutive content blocks."""
    usage = {"input_tokens": answer.prompt_tokens, "output_tokens": answer.completion_tokens}
    end = {"stop_reason": _ANTHROPIC_FINISH[answer.finish], "stop_sequence": None}
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if answer.thoughts:
        deltas = [{"type": "thinking_delta", "thinking": thought} for thought in answer.thoughts]
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, deltas))
    if answer.words:
        blocks.append(({"type": "text", "text": ""}, [{"type": "text_delta", "text": word} for word in answer.words]))
    for each, name, arguments in answer.calls:
        pieces = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", arguments[:4], arguments[4:])]
        blocks.append(({"type": "tool_use", "id": each, "name": name, "input": {}}, pieces))
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "there"}
    if not body.get("stream"):
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
            if answer.breaks and number == 1 and "text" in delta:
                yield {"type": "error", "error": {"type": "api_error", "message": answer.breaks}}
                return
        yield {"type": "content_block_stop", "index": index}
    yield {"type": "message_delta", "delta": end, "usage": {"output_tokens": answer.completion_tokens}}
    yield {"type": "message_stop"}


def _openai_usage(answer: ScriptedAnswer) -> dict[str, Any]:
    total = answer.prompt_tokens + answer.completion_tokens
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": total,
    }


def _error_body(message: str, *, ollama: bool, anthropic: bool) -> dict[str, Any]:
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
    return f"HTTP/1.1 {status} X\r\nContent-Type: {media_type}\r\n{framing}\r\n\r\n".encode()


#: A certificate for localhost that nobody but tests trusts, with its key.
CERTIFICATE = Path(__file__).with_name("localhost.pem")


def tls_for_tests(*, client_certificates: bool = False) -> ssl.SSLContext:
    """TLS for a server, which may require the certificate from its clients, too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    if client_certificates:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(CERTIFICATE)
    return context


@asynccontextmanager
async def start_scripted_server(port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedServer]:
    """Run a scripted server until the context ends."""
    scripted = ScriptedServer()
    connections: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        try:
            await scripted.serve(reader, writer)
        finally:
            connections.discard(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=tls)
    scheme = "http" if tls is None else "https"
    scripted.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield scripted
    finally:
        server.close()
        for writer in list(connections):
            writer.transport.abort()
        for _ in range(500):
            if not connections:
                break
            await asyncio.sleep(0.01)
