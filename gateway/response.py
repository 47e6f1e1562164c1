"""The only writer to the client. It knows how far an answer has got, and never starts a second one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from hostler.adapters.base import Encoder, WireResponse
from hostler.adapters.errors import GatewayError
from hostler.adapters.types import Chunk, Progress, ResponseHead
from hostler.gateway.asgi import Send

Headers = list[tuple[bytes, bytes]]


class ResponseWriter:
    """Writes one answer through ASGI's `send`, which waits while the client lags behind.

    `started`: the status is out. `committed`: the model's words are out, so no other backend may answer any more.
    `ended`: nothing more will be written. `status` is the one that was sent, 0 before. `patient`: this client can be
    shown progress, since it asked for a stream. There is an `encoder` only for what a model or model admin answers.
    `facts` gives the headers, names in lower case, that state how the request was served, as far as that is known
    when it is called.
    """

    __slots__ = ("_facts", "_late", "_send", "committed", "encoder", "ended", "patient", "started", "status")

    def __init__(self, send: Send, facts: Callable[[], Headers]) -> None:
        self._send = send
        self._facts = facts
        self.encoder: Encoder
        self.patient = False
        self._late = False
        self.started = False
        self.committed = False
        self.ended = False
        self.status = 0

    def use(self, encoder: Encoder) -> None:
        """From now on chunks are written through `encoder`."""
        self.encoder = encoder
        self.patient = encoder.streaming

    def begin(self, head: ResponseHead) -> None:
        """A backend has begun to answer."""
        self.encoder.start(head)

    def write(self, chunk: Chunk) -> Awaitable[None]:
        """Send a chunk; the first one that reaches the client commits the answer."""
        return self.put(self.encoder.encode(chunk))

    def put(self, data: bytes) -> Awaitable[None]:
        """Send what the encoder made of some chunks, see `write`. Not a coroutine, since streams pass here most often."""
        if data:
            self.committed = True
            if self.started:
                return self._send({"type": "http.response.body", "body": data, "more_body": True})
        return self._put(data)

    async def heartbeat(self, progress: Progress) -> None:
        """Show the client that it still waits, and for what. Commits nothing but the status."""
        data = self.encoder.heartbeat(progress)
        self._late = self._late or bool(data)
        await self._put(data)

    async def end(self, last: bytes = b"") -> None:
        """The answer is complete, with the `last` that the encoder made of its chunks."""
        encoder = self.encoder
        data = last + encoder.finish()
        self.committed = True
        if self._late and encoder.streaming:
            data += _comment(self._facts())
        if not self.started:
            await self._start(200, encoder.media_type, encoder.length or len(data), stream=False)
        await self._end(data)

    async def respond(self, response: WireResponse) -> None:
        """Send a complete answer. Only before anything else."""
        await self._start(
            response.status, response.media_type, len(response.body), extra=response.headers, stream=False
        )
        await self._end(response.body)

    async def tell(self, data: bytes, *, last: bool = False) -> None:
        """Send the next piece of an event stream that is no model's answer. The first one, empty or not, begins it."""
        if not self.started:
            await self._start(200, "text/event-stream", None, stream=True)
        if last:
            await self._end(data)
        else:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def fail(self, error: GatewayError, response: WireResponse) -> None:
        """Send an error: with a status of its own if there still is time, else inside the stream.

        A whole answer that has begun can only be broken off: it is left without its end, and the server closes
        the connection, so that nobody takes the part for the whole.
        """
        if self.ended:
            return
        if not self.started:
            await self.respond(response)
        elif self.patient:
            await self._end(self.encoder.error(error))
        self.ended = True

    async def _put(self, data: bytes) -> None:
        if data:
            if not self.started:
                encoder = self.encoder
                await self._start(200, encoder.media_type, encoder.length, stream=encoder.streaming)
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _end(self, data: bytes) -> None:
        self.ended = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def _start(
        self, status: int, media_type: str, length: int | None, *, extra: tuple[tuple[str, str], ...] = (), stream: bool
    ) -> None:
        headers = self._facts()
        if status != 204:  # which has no body, and so neither a type nor a length
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


def _comment(facts: Headers) -> bytes:
    """The facts that came too late for the headers, as a comment that every reader of event streams skips."""
    return b": %b\n\n" % b" ".join(b"%b=%b" % fact for fact in facts)
