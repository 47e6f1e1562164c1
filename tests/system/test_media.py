"""Sound, pictures and their streams: passed on as they come, and never folded or taken for text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fakes.raw_backend import Peer, backend
from system.fallback_chain import RunningChain, start_chain

pytestmark = pytest.mark.anyio

SOUND = b"\xff\xfb" + b"a" * 2000
EVENTS = b'data: {"type":"speech.audio.delta","audio":"AA"}\n\ndata: {"type":"speech.audio.done"}\n\n'
FILE = {"file": ("a.wav", b"RIFF0000WAVE", "audio/wav")}


class MediaServer:
    """A server that answers with one body in two parts, the second when it may: `go_on`. `received` are the requests."""

    def __init__(self, media_type: str, first: bytes, rest: bytes = b"") -> None:
        self._head = f"HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        self._first, self._rest = first, rest
        self.go_on = anyio.Event()
        self.received: list[bytes] = []

    async def serve(self, peer: Peer) -> None:
        while request := await peer.request():
            if request.startswith(b"GET"):
                await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
                continue
            self.received.append(request)
            first = b"%x\r\n%b\r\n" % (len(self._first), self._first) if self._first else b""
            await peer.send(self._head + first)
            if self._rest:
                await self.go_on.wait()
                await peer.send(b"%x\r\n%b\r\n" % (len(self._rest), self._rest))
            await peer.send(b"0\r\n\r\n")


@asynccontextmanager
async def gateway_before(server: MediaServer, tmp_path: Path) -> AsyncIterator[RunningChain]:
    async with backend(server.serve) as endpoint:
        backends = {
            "up": {"kind": "openai", "url": f"http://{endpoint.host}:{endpoint.port}", "models": {"m": "there"}}
        }
        async with start_chain(tmp_path, backends) as chain:
            yield chain


def speech(http: httpx.AsyncClient, **more: Any) -> Any:
    return http.stream("POST", "/v1/audio/speech", json={"model": "m", "input": "Hi", "voice": "a", **more})


@pytest.mark.parametrize("more", [{}, {"stream": True}, {"stream_format": "audio"}, {"stream_format": "sse"}])
async def test_sound_is_passed_on_while_it_is_made(tmp_path: Path, more: dict[str, Any]) -> None:
    server = MediaServer("audio/mpeg", SOUND, b"b" * 2000)
    async with gateway_before(server, tmp_path) as chain, speech(chain.http, **more) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/mpeg")
        pieces = answer.aiter_raw()
        received = b""
        with anyio.fail_after(10):
            while len(received) < len(SOUND):
                received += await anext(pieces)
            server.go_on.set()
            async for piece in pieces:
                received += piece
    assert received == SOUND + b"b" * 2000


async def test_speech_in_events_is_forwarded_byte_for_byte(tmp_path: Path) -> None:
    server = MediaServer("text/event-stream", EVENTS)
    async with gateway_before(server, tmp_path) as chain:
        for more in ({"stream_format": "sse"}, {}):
            async with speech(chain.http, **more) as answer:
                assert answer.headers["content-type"] == "text/event-stream"
                assert await answer.aread() == EVENTS


async def test_speech_without_a_sound_is_none(tmp_path: Path) -> None:
    async with gateway_before(MediaServer("audio/mpeg", b""), tmp_path) as chain, speech(chain.http) as answer:
        assert answer.status_code == 503


@pytest.mark.parametrize("stream", ["true", "True", None])
async def test_a_transcription_in_events_is_forwarded(tmp_path: Path, stream: str | None) -> None:
    events = (
        b'data: {"type":"transcript.text.delta","delta":"Hi"}\n\ndata: {"type":"transcript.text.done","text":"Hi"}\n\n'
    )
    form = {"model": "m"} if stream is None else {"model": "m", "stream": stream}
    async with gateway_before(MediaServer("text/event-stream", events), tmp_path) as chain:
        answer = await chain.http.post("/v1/audio/transcriptions", data=form, files=FILE)
    assert (answer.headers["content-type"], answer.content) == ("text/event-stream", events)


@pytest.mark.parametrize("body", [{"model": "m"}, {"model": "m", "stream": True}])
@pytest.mark.parametrize("path", ["/tts", "/v1/audio/new"])
@pytest.mark.parametrize(("media_type", "content"), [("audio/wav", SOUND), ("text/event-stream", EVENTS)])
async def test_unknown_paths_may_answer_with_sound_and_with_events(
    tmp_path: Path, path: str, body: dict[str, Any], media_type: str, content: bytes
) -> None:
    async with gateway_before(MediaServer(media_type, content), tmp_path) as chain:
        answer = await chain.http.post(path, json=body)
    assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, media_type, content)


async def test_an_edit_of_an_image_may_be_json(tmp_path: Path) -> None:
    server = MediaServer("application/json", b'{"created":1,"data":[{"b64_json":"AA"}]}')
    images = [{"image_url": "https://pictures.example/a.png"}]
    async with gateway_before(server, tmp_path) as chain:
        answer = await chain.http.post("/v1/images/edits", json={"model": "m", "prompt": "x", "images": images})
    assert (answer.status_code, answer.json()["data"]) == (200, [{"b64_json": "AA"}])
    assert b'"model":"there"' in server.received[0].replace(b'": "', b'":"')


async def test_sound_that_breaks_off_does_not_look_complete(tmp_path: Path) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nTransfer-Encoding: chunked\r\n\r\n")
        await peer.send(b"%x\r\n%b\r\n" % (len(SOUND), SOUND))

    async with backend(serve) as endpoint:
        backends = {
            "up": {"kind": "openai", "url": f"http://{endpoint.host}:{endpoint.port}", "models": {"m": "there"}}
        }
        async with start_chain(tmp_path, backends) as chain:
            with pytest.raises(httpx.RemoteProtocolError):
                async with speech(chain.http) as answer:
                    await answer.aread()
