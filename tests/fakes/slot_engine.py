"""A fake engine that saves and restores slots, as files of a given size and without a model."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from hostler.supervisor.contract import EngineAddress


def checkpoint_appendix(count: int, *, state: bytes = b"state") -> bytes:
    """What llama-server appends to the file of a slot with so many context checkpoints."""
    checkpoint = struct.pack("<qii", 100, 0, 99) + b"".join(struct.pack("<Q", len(s)) + s for s in (state, b"", b""))
    return b"SCKP" + struct.pack("<II", 1, count) + checkpoint * count


def token_list(tokens: Iterable[int]) -> bytes:
    """How the file of a slot with these tokens begins."""
    listed = [*tokens]
    return struct.pack(f"<4sII{len(listed)}i", b"qsgg", 3, len(listed), *listed)


class SlotEngine:
    """Answers the slot routes as llama-server does. A slot of n `tokens` is a file of n bytes.

    `missing` bytes are not written, `reported` replaces the reported number. Files end with `checkpoints`, if any. Unless it
    `counts`, it does not say how many tokens a slot has, as older ones. It may hang,
    crash on a restore, or be `silent` at one path.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tokens: list[Any] = [1000, 500]
        self.busy: set[int] = set()
        self.restored: dict[int, bytes] = {}
        self.requests: list[str] = []
        self.reported: int | None = None
        #: How many tokens a restore reports instead of those of the file.
        self.restores: int | None = None
        #: The status of an answer to an erasure, or `None` if it hangs up.
        self.erases: int | None = 200
        self.missing = 0
        self.checkpoints = 0
        self.counts = True
        #: Slot files begin with tokens, and a prompt that is a part of them leaves the slot with it.
        self.last_prompt: int | None = None
        self.build = "b1"
        self.hangs = self.crashes = False
        self.silent = ""
        self.hanging = asyncio.Event()
        self.address = EngineAddress(model="alpha", host="", port=0, key="k", generation=1, context=9, parallel=2)

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/props":
            return 200, {"build_info": self.build, "total_slots": 2}
        if path == "/slots":
            listed = [
                {"id": number, "n_ctx": 9, "is_processing": number in self.busy}
                | ({} if tokens is None else {"n_prompt_tokens": tokens} if self.counts else {"id_task": 0})
                for number, tokens in enumerate(self.tokens)
            ]
            return 200, listed
        if path == "/completion":
            kept = min(self.last_prompt or 0, len(body["prompt"]))
            self.tokens[body["id_slot"]] = len(body["prompt"])
            return 200, {"prompt_progress": {"cache": kept}} if body["stream"] else {"timings": {"cache_n": kept}}
        slot = int(path.split("/")[2].partition("?")[0])
        if path.endswith("erase"):
            return self.erases or 0, {"n_erased": len(self.restored.pop(slot))}
        file = self.directory / body["filename"]
        if path.endswith("save"):
            appendix = checkpoint_appendix(self.checkpoints) if self.checkpoints else b""
            tokens = self.tokens[slot]
            head = b"" if self.last_prompt is None else token_list(range(tokens))
            content = head + bytes([slot]) * (tokens - self.missing) + appendix
            file.write_bytes(content)
            return 200, {"n_saved": tokens, "n_written": self.reported or len(content) + self.missing}
        self.restored[slot] = file.read_bytes()
        appended = len(checkpoint_appendix(self.checkpoints)) if self.checkpoints else 0
        tokens = self.restores or len(self.restored[slot]) - appended
        return 200, {"n_restored": tokens, "n_read": len(self.restored[slot])}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:"))
            body = json.loads(await reader.readexactly(length) or b"{}")
            method, path, _ = head.split(" ", 2)
            self.requests.append(f"{method} {path}")
            assert "authorization: bearer k" in head.lower()
            if ("restore" in path and self.crashes) or ("erase" in path and self.erases is None):
                return
            if ("action" in path and self.hangs) or path == self.silent:
                self.hanging.set()
                await reader.read()
                return
            status, answer = self.answer(method, path, body)
            content = json.dumps(answer).encode()
            if body.get("stream"):
                content = b"data: " + content + b"\n\n"
            writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
            await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def running_slot_engine(directory: Path) -> AsyncIterator[SlotEngine]:
    engine = SlotEngine(directory)
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    engine.address = replace(engine.address, host="127.0.0.1", port=server.sockets[0].getsockname()[1])
    async with server:
        yield engine
