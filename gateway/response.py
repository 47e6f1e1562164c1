"""The only writer to the client. It knows how far an answer has got, and never starts a second one."""

from __future__ import annotations

from collections.abc import Callable

from hostler.adapters.base import Encoder, WireResponse
from hostler.adapters.errors import GatewayError
from hostler.adapters.types import Chunk, Progress, ResponseHead
from hostler.gateway.asgi import Line

Facts = Callable[[], list[bytes]]


class ResponseWriter:
    """Writes one answer.

    `started`: the status is out. `committed`: the model's words are out, so no other backend may answer any more.
    `ended`: nothing more will be written. `status` is the one that was sent, 0 before. `patient`: this client can be
    shown progress, since it asked for a stream. There is an `encoder` only for what a model, or the librarian, answers.
    `facts` gives the header lines, names in lower case, that tell how the request was served, as far as that is known
    when it is called.
    """

    __slots__ = ("_facts", "_late", "_line", "committed", "encoder", "ended", "patient", "started", "status")

    def __init__(self, line: Line, facts: Facts) -> None:
        self._line = line
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

    def put(self, chunk: Chunk) -> bool:
        """Write a chunk; the first one that reaches the client commits the answer. False if the client lags behind: then
        `writable` is to be waited for before the next one."""
        encoder = self.encoder
        data = encoder.encode(chunk)
        if data:
            self.committed = True
            if not self.started:
                self._start(200, encoder.media_type, encoder.length, stream=encoder.streaming)
            self._line.put(data, True)
        return not self._line.paused

    async def writable(self) -> None:
        """Until the client has taken most of what was written, or has left."""
        await self._line.writable()

    async def write(self, chunk: Chunk) -> None:
        """Send a chunk, see `put`, and wait for the client if it lags behind."""
        if not self.put(chunk):
            await self._line.writable()

    async def heartbeat(self, progress: Progress) -> None:
        """Show the client that it still waits, and for what. Commits nothing but the status."""
        data = self.encoder.heartbeat(progress)
        if data:
            self._late = True
            self._put(data)
            if self._line.paused:
                await self._line.writable()

    async def end(self) -> None:
        """The answer is complete."""
        encoder = self.encoder
        data = encoder.finish()
        self.committed = True
        if self._late and encoder.streaming:
            data += _comment(self._facts())
        if not self.started:
            self._start(200, encoder.media_type, encoder.length or len(data), stream=False)
        self.ended = True
        self._line.put(data, False)

    async def respond(self, response: WireResponse) -> None:
        """Send a complete answer. Only before anything else."""
        self._start(response.status, response.media_type, len(response.body), extra=response.headers, stream=False)
        self.ended = True
        self._line.put(response.body, False)

    async def tell(self, data: bytes, *, last: bool = False) -> None:
        """Send the next piece of an event stream that is no model's answer. The first one, empty or not, begins it."""
        if not self.started:
            self._start(200, "text/event-stream", None, stream=True)
        self.ended = last
        self._line.put(data, not last)
        if self._line.paused:
            await self._line.writable()

    async def fail(self, error: GatewayError, response: WireResponse) -> None:
        """Tell the client of an error: with a status of its own if there still is time, else inside the stream.

        A whole answer that has begun can only be broken off: it is left without its end, and the server closes
        the connection, so that nobody takes the part for the whole.
        """
        if self.ended:
            return
        if not self.started:
            await self.respond(response)
            return
        self.ended = True
        if self.patient:
            self._line.put(self.encoder.error(error), False)

    def _put(self, data: bytes) -> None:
        if not self.started:
            encoder = self.encoder
            self._start(200, encoder.media_type, encoder.length, stream=encoder.streaming)
        self._line.put(data, True)

    def _start(
        self, status: int, media_type: str, length: int | None, *, extra: tuple[tuple[str, str], ...] = (), stream: bool
    ) -> None:
        lines = self._facts()
        closes = False
        if status == 204:  # which has no body, and so neither a type nor a length
            length = None
        elif media_type:
            lines.append(b"content-type: " + media_type.encode("latin-1"))
        if stream:
            lines += _STREAM_LINES
        for name, value in extra:
            if name.lower() == "connection":
                closes = value.lower() == "close"
            else:
                lines.append(f"{name.lower()}: {value}".encode("latin-1", "replace"))
        self._line.begin(status, lines, length=length, closes=closes)
        self.started = True
        self.status = status


_STREAM_LINES = (b"cache-control: no-cache", b"x-accel-buffering: no")


def _comment(facts: list[bytes]) -> bytes:
    """The facts that came too late for the headers, as a comment that every reader of event streams skips."""
    return b": %b\n\n" % b" ".join(fact.replace(b": ", b"=", 1) for fact in facts)
