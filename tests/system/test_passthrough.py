"""Sounds and pictures pass through as they are, both ways: only the model's name is another one."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest
from system.fallback_chain import start_chain

pytestmark = pytest.mark.anyio

SOUND = bytes(range(256)) * 40
ANSWERS = {
    "/v1/audio/transcriptions": ("application/json", b'{"text": "Hello", "next_month": 1}'),
    "/v1/audio/translations": ("application/json", b'{"text": "Hello"}'),
    "/v1/audio/speech": ("audio/mpeg", SOUND),
    "/v1/images/generations": ("application/json", b'{"created": 1, "data": [{"b64_json": "AAAA"}]}'),
    "/v1/images/edits": ("application/json", b'{"created": 1, "data": [{"b64_json": "BBBB"}]}'),
    "/v1/moderations": ("application/json", b'{"id": "m", "model": "there", "results": []}'),
}
TRANSCRIPT = b'event: transcript.text.delta\ndata: {"type":"transcript.text.delta","delta":"Hel"}\n\ndata: [DONE]\n\n'


class Studio:
    """A server for sounds and pictures. `asked` holds path, media type and body of each request."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, bytes]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.rstrip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                path = first.split(" ")[1]
                if first.startswith("POST"):
                    self.requests.append((path, headers["content-type"], body))
                kind, answer = ANSWERS.get(path, ("application/json", b"{}"))
                if b'name="stream"' in body:
                    kind, answer = "text/event-stream", TRANSCRIPT
                written = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(answer)}\r\n\r\n"
                writer.write(written.encode() + answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def studio(tmp_path: Path, kind: str) -> AsyncIterator[tuple[Studio, openai.AsyncOpenAI]]:
    """OpenAI's package before a gateway before a studio, which calls the model `m` `there`."""
    studio = Studio()
    server = await asyncio.start_server(studio.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        async with start_chain(tmp_path, {"s": {"kind": kind, "url": url, "models": {"m": "there"}}}) as chain:
            address = f"{chain.http.base_url}/v1"
            async with openai.AsyncOpenAI(base_url=address, api_key="unused", max_retries=0) as client:
                yield studio, client
    finally:
        server.close()


each_kind = pytest.mark.parametrize("kind", ["openai", "llamacpp"])


@each_kind
async def test_audio_is_transcribed(tmp_path: Path, kind: str) -> None:
    file = ("a.wav", io.BytesIO(SOUND), "audio/wav")
    async with studio(tmp_path, kind) as (there, client):
        transcription = await client.audio.transcriptions.create(model="m", file=file, language="de")
        form = {"file": ("a.wav", SOUND), "model": (None, "m")}
        translated = await client._client.post(f"{client.base_url}audio/translations", files=form)
        assert translated.json() == {"text": "Hello"}
    assert (transcription.text, transcription.model_extra) == ("Hello", {"next_month": 1})
    for path, media_type, body in there.requests:
        assert path in ANSWERS
        assert media_type.startswith("multipart/form-data; boundary=")
        assert SOUND in body
        assert body.count(b"\r\n\r\nthere\r\n") == 1
        assert b"\r\n\r\nm\r\n" not in body


async def test_transcriptions_are_streamed(tmp_path: Path) -> None:
    async with studio(tmp_path, "openai") as (there, client):
        form = {"model": (None, "m"), "stream": (None, "true"), "file": ("a.wav", SOUND)}
        url = f"{client.base_url}audio/transcriptions"
        answer = await client._client.post(url, files=form)
    assert (answer.headers["content-type"].partition(";")[0], answer.content) == ("text/event-stream", TRANSCRIPT)
    assert len(there.requests) == 1


@each_kind
async def test_speech_is_generated(tmp_path: Path, kind: str) -> None:
    async with studio(tmp_path, kind) as (there, client):
        spoken = await client.audio.speech.create(model="m", voice="alloy", input="Hello")
        assert (spoken.response.headers["content-type"], spoken.content) == ("audio/mpeg", SOUND)
    ((_, _, body),) = there.requests
    assert json.loads(body) == {"model": "there", "voice": "alloy", "input": "Hello"}


@each_kind
async def test_images_are_generated_and_edited(tmp_path: Path, kind: str) -> None:
    async with studio(tmp_path, kind) as (there, client):
        made = await client.images.generate(model="m", prompt="a cat", n=2)
        changed = await client.images.edit(model="m", prompt="a dog", image=("a.png", SOUND, "image/png"))
        assert (await client.moderations.create(model="m", input="x")).id == "m"
    assert [(picture.data or [])[0].b64_json for picture in (made, changed)] == ["AAAA", "BBBB"]
    generated, edited, _ = there.requests
    assert json.loads(generated[2]) == {"model": "there", "prompt": "a cat", "n": 2}
    assert SOUND in edited[2]
