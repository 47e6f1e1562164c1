"""A backend that looks like llama-server on the wire and costs next to nothing: `python -m bench.backend --port 0`.

The request determines the answer, so that every proxy can run every scenario: `stream`, `max_tokens` (the number of chunks)
and `user` ("slow" is 20 chunks a second, "large" are chunks of 64 KiB, 200 MiB by default, and "unlike" an embedding whose
head never repeats). Each chunk's text is the time at which it was written. Like llama-server, it closes the connection
after a stream without announcing it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import cast

import uvloop

MODEL = "small"
CHUNKS = 64
LARGE_PIECE = 64 * 1024
LARGE_PIECES = 200 * 1024 * 1024 // LARGE_PIECE

USAGE = {"prompt_tokens": 12, "completion_tokens": CHUNKS, "total_tokens": 12 + CHUNKS}
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nContent-Type: text/event-stream\r\nKeep-Alive: timeout=5, max=100\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def whole(value: object, status: str = "200 OK") -> bytes:
    """A complete answer with this JSON body."""
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status}\r\nServer: llama.cpp\r\nContent-Type: application/json; charset=utf-8\r\n"
    return f"{head}Keep-Alive: timeout=5, max=100\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


ANSWER = whole(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": MODEL,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "word " * 40}}],
        "usage": USAGE,
    }
)
EMBEDDING = whole(
    {
        "object": "list",
        "model": MODEL,
        "data": [{"object": "embedding", "index": 0, "embedding": [0.125] * 64}],
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
)
UNLIKE = EMBEDDING.replace(b"Server:", b"X-Time: %020d\r\nServer:", 1)
GETS = {
    b"/health": whole({"status": "ok"}),
    b"/v1/health": whole({"status": "ok"}),
    b"/models": whole(
        {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "llamacpp"}]}
    ),
    b"/v1/models": whole(
        {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "llamacpp"}]}
    ),
    b"/props": whole({"default_generation_settings": {"n_ctx": 4096}, "total_slots": 64, "model_alias": MODEL}),
    b"/slots": whole([]),
}
MISSING = whole({"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}, "404 Not Found")


def event(delta: object, **more: object) -> bytes:
    """One chunk of a stream as an HTTP chunk."""
    value = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": MODEL,
        "choices": [{"index": 0, "finish_reason": None, "delta": delta}],
    }
    value.update(more)
    return framed(b"data: " + json.dumps(value).encode() + b"\n\n")


def framed(data: bytes) -> bytes:
    """The data as one HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


TIME_WIDTH = 20  # enough digits for nanoseconds, so that every chunk has the same length
EVENT = event({"content": "@" * TIME_WIDTH})
BEFORE, AFTER = EVENT.split(b"@" * TIME_WIDTH)
FIRST = event({"role": "assistant", "content": None})
LARGE_EVENT = event({"content": "x" * LARGE_PIECE})
LAST = event({}, choices=[{"index": 0, "finish_reason": "stop", "delta": {}}], usage=USAGE)
DONE = framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Backend(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.data = b""
        self.transport: asyncio.Transport
        self.writable = True
        self.left = 0
        self.pace = 0.0
        self.large = False
        self.streaming = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.data = self.data + data if self.data else data
        while not self.streaming:
            head, found, rest = self.data.partition(b"\r\n\r\n")
            if not found:
                return
            lower = head.lower()
            at = lower.find(b"\r\ncontent-length:")
            length = int(lower[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if at < 0 and b"\r\ntransfer-encoding:" in lower:
                body, complete, rest = dechunked(rest)
                if not complete:
                    return
                self.data = rest
            elif len(rest) < length:
                return
            else:
                body, self.data = rest[:length], rest[length:]
            self.answer(head.split(b" ", 2), body)

    def answer(self, line: list[bytes], body: bytes) -> None:
        path = line[1].partition(b"?")[0]
        if line[0] != b"POST":
            self.transport.write(GETS.get(path, MISSING))
        elif path.endswith(b"/embeddings"):
            unlike = b'"user": "unlike"' in body or b'"user":"unlike"' in body
            self.transport.write(UNLIKE % time.monotonic_ns() if unlike else EMBEDDING)
        elif not path.endswith(b"/completions"):
            self.transport.write(MISSING)
        elif b'"stream": true' in body or b'"stream":true' in body:
            self.stream(json.loads(body))
        else:
            self.transport.write(ANSWER)

    def stream(self, request: dict[str, object]) -> None:
        self.streaming = True
        user = request.get("user")
        self.large = user == "large"
        self.pace = 0.05 if user == "slow" else 0.0
        chunks = request.get("max_tokens")
        self.left = chunks if isinstance(chunks, int) else LARGE_PIECES if self.large else CHUNKS
        self.transport.write(STREAM_HEAD + FIRST)
        self.next()

    def next(self) -> None:
        """Write one chunk per turn of the loop, since tokens do not arrive in batches."""
        if self.transport.is_closing() or not self.writable:
            return
        if self.left:
            self.left -= 1
            if self.large:
                self.transport.write(LARGE_EVENT)
            else:
                self.transport.write(b"%b%020d%b" % (BEFORE, time.monotonic_ns(), AFTER))
            if self.pace:
                self.loop.call_later(self.pace, self.next)
            else:
                self.loop.call_soon(self.next)
        else:
            self.transport.write(LAST + DONE)
            self.transport.close()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self.streaming:
            self.next()


def dechunked(data: bytes) -> tuple[bytes, bool, bytes]:
    """The body of a chunked request, whether it is complete, and what follows it."""
    pieces: list[bytes] = []
    while True:
        size, found, data = data.partition(b"\r\n")
        if not found:
            return b"", False, b""
        length = int(size, 16)
        if len(data) < length + 2:
            return b"", False, b""
        if not length:
            return b"".join(pieces), True, data[2:]
        pieces.append(data[:length])
        data = data[length + 2 :]


async def serve(port: int) -> None:
    """Serve forever; the first line of the output is the port."""
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    uvloop.run(serve(parser.parse_args().port))
