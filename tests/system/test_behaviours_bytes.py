"""Without progress to show, the answer of a backend of the client's own protocol reaches the client byte for byte, with its type."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from system.fallback_chain import start_chain

pytestmark = pytest.mark.anyio

TRANSCRIPTS = Path(__file__).parent.parent / "transcripts"
QUESTION = [{"role": "user", "content": "Hi"}]
EVENTS, LINES, JSON = "text/event-stream", "application/x-ndjson", "application/json"
# The backend's kind, the path, what is asked, and the recorded answer with its media type.
ANSWERS: dict[str, tuple[str, str, dict[str, Any], str, str]] = {
    "chat, whole": ("openai", "/v1/chat/completions", {"messages": QUESTION}, "openai/chat.json", JSON),
    "chat": ("openai", "/v1/chat/completions", {"messages": QUESTION, "stream": True}, "openai/chat.sse", EVENTS),
    "chat with remarks": (
        *("openai", "/v1/chat/completions", {"messages": QUESTION, "stream": True}),
        *("openai/openrouter.sse", f"{EVENTS}; charset=utf-8"),
    ),
    "completion, whole": (
        *("openai", "/v1/completions", {"prompt": "x"}, "openai/completions.json"),
        f"{JSON}; charset=utf-8",
    ),
    "completion": (
        *("openai", "/v1/completions", {"prompt": "x", "stream": True}),
        *("openai/completions.sse", EVENTS),
    ),
    "llama-server's": (
        *("llamacpp", "/v1/chat/completions", {"messages": QUESTION, "stream": True}),
        *("openai/tools.sse", EVENTS),
    ),
    "llama-server's own way": (
        *("llamacpp", "/completion", {"prompt": "x", "stream": True}),
        *("llamacpp/completion.sse", EVENTS),
    ),
    "Ollama's, whole": (
        *("ollama", "/api/chat", {"messages": QUESTION, "stream": False}),
        *("ollama/chat.json", f"{JSON}; charset=utf-8"),
    ),
    "Ollama's": ("ollama", "/api/chat", {"messages": QUESTION}, "ollama/chat.ndjson", LINES),
    "Anthropic's, whole": (
        *("anthropic", "/v1/messages", {"messages": QUESTION, "max_tokens": 9}),
        *("anthropic/anthropic.json", JSON),
    ),
    "Anthropic's": (
        *("anthropic", "/v1/messages", {"messages": QUESTION, "max_tokens": 9, "stream": True}),
        *("anthropic/anthropic.sse", f"{EVENTS}; charset=utf-8"),
    ),
}


@asynccontextmanager
async def reciting(body: bytes, media_type: str, piece: int) -> AsyncIterator[str]:
    """A server that gives this answer to every question, in pieces of so many bytes; its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                sizes = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                await reader.readexactly(int(sizes[0].split(b":")[1]) if sizes else 0)
                begin = f"HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\n"
                if head.startswith(b"GET"):
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                elif media_type.startswith("application/json"):
                    writer.write(f"{begin}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                else:
                    writer.write(f"{begin}Transfer-Encoding: chunked\r\n\r\n".encode())
                    for at in range(0, len(body), piece):
                        part = body[at : at + piece]
                        writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                        await writer.drain()
                    writer.write(b"0\r\n\r\n")
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"


@pytest.mark.parametrize("piece", [97, 1_000_000])
@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_of_the_clients_own_protocol_passes_unchanged(tmp_path: Path, name: str, piece: int) -> None:
    kind, path, asked, recorded, media_type = ANSWERS[name]
    said = (TRANSCRIPTS / recorded).read_bytes()
    async with reciting(said, media_type, piece) as url:
        backends = {"there": {"kind": kind, "url": url, "models": {"there": "there"}, "local": True}}
        gateway = {"switching": {"progress": "off"}, "timeouts": {"first_byte_s": 30, "between_bytes_s": 30}}
        async with start_chain(tmp_path, backends, gateway=gateway) as chain:
            answer = await chain.http.post(path, json={"model": "there", **asked})
    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
    assert answer.content == said
    if media_type.startswith(JSON):
        assert answer.headers["content-length"] == str(len(said))
