"""The only writer to the client, which never starts a second answer."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

import anyio

from hostler.adapters import sse
from hostler.adapters.base import Encoder, WireResponse
from hostler.adapters.canonical import Chunk, Progress, ResponseHead
from hostler.adapters.errors import GatewayError
from hostler.gateway.asgi import Send

Headers = list[tuple[bytes, bytes]]


class Facts(Protocol):
    """Returns the headers that describe how the request was served, names in lower case; `early`: only what is certain
    before a backend answers."""

    def __call__(self, *, early: bool = False) -> Headers: ...


class ResponseWriter:
    """Writes one answer through ASGI's `send`, which waits while the client lags behind.

    Signs of life may come from another task than the answer: whichever comes second waits until the first is sent, and
    there are none any more once the answer or its end has begun.

    `started`: the status was sent. `committed`: a token was sent, so no other backend may serve the request any more.
    `ended`: nothing more will be written. `status` is the one that was sent, 0 before. `streaming`: the client requested a
    stream, so it can receive progress. There is an `encoder` only for answers of models and of model admin. Headers
    that leave before the answer has begun contain none of the `facts` that may still change: event streams name them in
    a comment before the first token, and in another one at the end.
    """

    __slots__ = (
        "_facts", "_failing", "_late", "_send", "_sign_sent", "committed", "encoder", "ended", "started", "status",
        "streaming",
    )  # fmt: skip

    def __init__(self, send: Send, facts: Facts) -> None:
        self._send = send
        self._facts = facts
        self.encoder: Encoder
        self.streaming = False
        self._late = False
        self._failing = False
        self._sign_sent: anyio.Event | None = None
        self.started = False
        self.committed = False
        self.ended = False
        self.status = 0

    def use(self, encoder: Encoder) -> None:
        """Write chunks through `encoder` from now on."""
        self.encoder = encoder
        self.streaming = encoder.streaming

    def send_through(self, send: Send) -> None:
        """Send everything through `send` from now on. Only before anything is sent."""
        self._send = send

    def begin(self, head: ResponseHead) -> None:
        """A backend has started its answer."""
        self.encoder.start(head)
        # What is asked for as a stream may be a file, which has no place for an error.
        self.streaming = self.encoder.streaming or self.started

    def write(self, chunk: Chunk) -> Awaitable[None]:
        """Send a chunk; the first one that reaches the client commits the answer."""
        return self.put(self.encoder.encode(chunk))

    def put(self, data: bytes) -> Awaitable[None]:
        """Send encoded chunks, see `write`. Not a coroutine: streams pass here most often."""
        if data:
            if self.committed and self.started:
                return self._send({"type": "http.response.body", "body": data, "more_body": True})
            self.committed = True
            return self._put_first(data)
        return self._put(data)

    async def heartbeat(self, progress: Progress) -> None:
        """Send progress to a waiting client. Commits nothing but the status, and does nothing once that is decided."""
        if self.committed or self._failing or self._sign_sent is not None:
            return
        data = self.encoder.heartbeat(progress)
        if data:
            self._late = self._late or not self.started
            await self._put_sign(data)

    async def sign(self, data: bytes) -> None:
        """Send a backend's own sign of life, such as a comment. Commits nothing but the status."""
        await self._signs_sent()
        await self._put_sign(data)

    async def end(self, last: bytes = b"") -> None:
        """End the answer, after the last encoded chunks."""
        encoder = self.encoder
        data = last + encoder.finish()
        first, self.committed = not self.committed, True
        if self._sign_sent is not None:
            await self._signs_sent()
        if self._late:
            data = (self._late_facts() if first else b"") + data + self._late_facts()
        if not self.started:
            await self._start(encoder.status, encoder.media_type, encoder.length or len(data), stream=False)
        await self._end(data)

    async def respond(self, response: WireResponse) -> None:
        """Send a complete answer. Only before anything else."""
        await self._start(
            response.status, response.media_type, len(response.body), extra=response.headers, stream=False
        )
        await self._end(response.body)

    async def write_event(self, data: bytes, *, media_type: str = sse.MEDIA_TYPE, last: bool = False) -> None:
        """Send the next part of an event stream that is no model's answer. The first one starts it, even if it is empty."""
        if not self.started:
            await self._start(200, media_type, None, stream=True)
        if last:
            await self._end(data)
        else:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def serving_headers(self) -> Headers:
        """The headers that describe how the request was served."""
        return self._facts()

    def switched_protocols(self) -> None:
        """The client has got the answer 101, which does not pass here."""
        self.started = self.committed = self.ended = True
        self.status = 101

    async def fail(self, error: GatewayError, response: WireResponse) -> None:
        """Send an error: with its own status if nothing was sent yet, else inside the stream.

        A whole answer that has started is left without its end, and the server closes the connection, so that it is not
        taken for complete.
        """
        if self.ended:
            return
        self._failing = True
        await self._signs_sent()
        if not self.started:
            await self.respond(response)
        elif self.streaming:
            await self._end(self.encoder.error(error))
        self.ended = True

    def _late_facts(self) -> bytes:
        """The facts that came too late for the headers, where the stream has comments."""
        if not self.encoder.media_type.startswith(sse.MEDIA_TYPE):
            return b""
        return b": %b\n\n" % b" ".join(b"%b=%b" % fact for fact in self._facts())

    async def _signs_sent(self) -> None:
        """Wait for the sign of life that another task is sending."""
        while self._sign_sent is not None:
            await self._sign_sent.wait()

    async def _put_sign(self, data: bytes) -> None:
        self._sign_sent = sent = anyio.Event()
        try:
            await self._put(data)
        finally:
            self._sign_sent = None
            sent.set()

    async def _put_first(self, data: bytes) -> None:
        await self._signs_sent()
        await self._put(self._late_facts() + data if self._late else data)

    async def _put(self, data: bytes) -> None:
        if data:
            if not self.started:
                encoder = self.encoder
                await self._start(encoder.status, encoder.media_type, encoder.length, stream=encoder.streaming)
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _end(self, data: bytes) -> None:
        self.ended = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def _start(
        self, status: int, media_type: str, length: int | None, *, extra: tuple[tuple[str, str], ...] = (), stream: bool
    ) -> None:
        headers = self._facts(early=self._late and not self.committed)
        if status != 204:  # has no body, so neither a type nor a length
            if media_type:
                headers.append((b"content-type", media_type.encode("latin-1")))
            if length is not None:
                headers.append((b"content-length", b"%d" % length))
        if stream:
            headers += _STREAM_HEADERS
        for name, value in extra:
            headers.append((name.lower().encode("latin-1"), value.encode("latin-1", "replace")))
        self.started = True
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


_STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
