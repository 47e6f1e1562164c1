"""The innermost application: sends the request to its target, and passes the answer to the response writer in chunks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import msgspec

from hostler.adapters.base import Parser, Timing
from hostler.adapters.canonical import (
    Chunk,
    LoadRequest,
    Passthrough,
    Progress,
    Request,
    ResponseHead,
    WebSocketRequest,
    output_of,
)
from hostler.adapters.errors import (
    AnswerTooLarge,
    BackendBroken,
    BackendRejected,
    BackendTimeout,
    ClientDisconnected,
    GatewayError,
    ShuttingDown,
)
from hostler.adapters.passthrough import forwarding_parser, target_path
from hostler.adapters.sniffing import JSON, ResponseStart
from hostler.gateway.asgi import CONTEXT_KEY, Receive, Scope, Send
from hostler.gateway.backends.addressing import backend_of, endpoint_of, name_there
from hostler.gateway.backends.known_forms import KnownForms
from hostler.gateway.backends.prompt_reading import SHORTEST_S, PromptSpeeds, reading_progress
from hostler.gateway.backends.rejection import ERROR_BODY_LIMIT, as_rejection, is_request_fault, rejection
from hostler.gateway.backends.token_limit import TokenLimit
from hostler.gateway.backends.transport import Backend, BackendResponse, Timeouts
from hostler.gateway.backends.websocket_tunnel import open_socket
from hostler.gateway.context import SHUTTING_DOWN, Attempt, RequestContext
from hostler.gateway.forwarded_headers import forwarded_headers
from hostler.gateway.parsing_turns import TURN, turns
from hostler.gateway.response import ResponseWriter
from hostler.gateway.target_request import build_request

logger = logging.getLogger(__name__)

#: A whole answer up to this size, in bytes, is read to its end before it is passed on, since it may end with an error.
HELD_BACK = 256 * 1024

#: Bodies from this size on, in bytes, are translated in a thread.
LARGE = 256 * 1024

#: Chunks of an answer's end that are encoded in one go.
TURN_CHUNKS = 64

#: Bytes of an answer that are folded into a whole one, at most.
MAX_FOLDED = 64 * 1024 * 1024

#: How often a rejected request is amended and sent again, at most.
AMENDMENTS = 8


class Proxy:
    """The innermost ASGI application of the pipeline. `speeds` is how fast backends read prompts, which it learns."""

    def __init__(self, backends: Mapping[str, Backend], *, speeds: PromptSpeeds, clock: Callable[[], float]) -> None:
        self._backends = backends
        self._speeds = speeds
        self._clock = clock
        self._forms = KnownForms(clock)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return self.dispatch(scope[CONTEXT_KEY])

    async def dispatch(self, context: RequestContext) -> None:
        request, last = context.request, b""
        if isinstance(request, LoadRequest):
            # The middleware have loaded the model; nothing is sent to a backend.
            context.writer.begin(ResponseHead())
        elif isinstance(request, WebSocketRequest):
            await self._relay(context, request)
            return
        else:
            request = self._forms.apply(context, request)
            for left in range(AMENDMENTS, -1, -1):
                try:
                    last = await self._ask(context, request)
                    break
                except (BackendRejected, BackendBroken) as error:
                    backend = backend_of(self._backends, context)
                    rejected = as_rejection(error, backend, begun=context.current.first_token_at is not None)
                    if rejected is None:
                        raise
                    amended = _amended(context, request, rejected) if left else None
                    if amended is None:
                        # While its lease is held, so that the engine is not stopped for another model meanwhile.
                        rejected.request_fault = await is_request_fault(
                            rejected, backend, endpoint_of(backend, context)
                        )
                        try:
                            raise rejected from error.__cause__
                        finally:
                            # A frame that keeps its own error keeps the request's body, too.
                            del rejected
                    self._forms.learn(context, request, amended, rejected)
                    request = amended
        total_s, (queue_s, switch_s) = self._clock() - context.started_at, context.waits
        timing = Timing(queue_s=queue_s, switch_s=switch_s, total_s=total_s)
        context.writer.encoder.set_timing(timing)
        await context.writer.end(last)
        if context.writer.streaming:
            self._learn(context)

    async def _relay(self, context: RequestContext, request: WebSocketRequest) -> None:
        """Connect the client with the target by WebSocket, until one of them closes the connection."""
        accept = context.accept_upgrade
        assert accept is not None, "only a client that asks for WebSocket makes such a request"
        backend, attempt = backend_of(self._backends, context), context.current
        path = backend.upstream.forward_path(request.origin.path)
        target = target_path(request.origin, model=name_there(context), path=path)
        own = _with_clients(backend, context, (*backend.upstream.headers, *backend.headers))
        attempt.sent = True
        async with open_socket(endpoint_of(backend, context), target, context.headers, own, backend.timeouts) as there:
            try:
                client = accept((*context.writer.serving_headers(), *there.headers))
            except ConnectionAbortedError:
                raise ShuttingDown(SHUTTING_DOWN) from None
            except ConnectionError as error:
                raise ClientDisconnected(str(error)) from None
            context.writer.switched_protocols()
            await there.relay(client)

    async def _ask(self, context: RequestContext, request: Request) -> bytes:
        """Send the request to the target and write its answer, except for the last bytes, which are returned."""
        attempt = context.attempt
        assert attempt is not None
        backend = backend_of(self._backends, context)
        same_wire = backend.upstream.speaks(request.origin.wire)
        build = partial(build_request, context, backend, request, same_wire=same_wire)
        # Translating a large body takes a while, and other requests are served meanwhile.
        large = len(request.origin.body) >= LARGE
        request, wire_request = await asyncio.to_thread(build) if large else build()
        if backend.headers or backend.forward_headers:
            headers = _with_clients(backend, context, (*wire_request.headers, *backend.headers))
            wire_request = msgspec.structs.replace(wire_request, headers=headers)
        is_forwarded = isinstance(request, Passthrough) and (not same_wire or request.any_backend)
        if isinstance(request, Passthrough) and not same_wire:
            parser: Parser = forwarding_parser(request, foreign=True)
        else:
            parser = backend.upstream.parser(request, fields=not same_wire)
        limits = attempt.target.limits
        timeouts = backend.timeouts if limits is None else backend.timeouts.limited(limits)
        attempt.sent = True
        if context.writer.streaming:
            attempt.sent_at = self._clock()
            context.waits_for = self._reading
        try:
            async with backend.transport.send(wire_request, endpoint_of(backend, context), timeouts) as answer:
                head = answer.head
                if not 200 <= head.status < 300:
                    body = await answer.read(ERROR_BODY_LIMIT)
                    wire = request.origin.wire if is_forwarded else backend.upstream.wire
                    raise rejection(backend, head, answer.headers, body, wire, is_forwarded=is_forwarded)
                attempt.segments += 1
                try:
                    streams = context.writer.streaming and not answer.complete
                    forward = self._forward(context, request, answer, parser, timeouts)
                    # In a separate task, so that a piece of a stream does not resume the frames of a dozen middleware,
                    # which takes 1 µs per piece.
                    return await (asyncio.create_task(forward) if streams else forward)
                except (BackendBroken, BackendTimeout) as broken:
                    # Some servers drop the connection, or let it hang, after the end of the answer.
                    if not _is_complete(context, parser):
                        broken.backend = broken.backend or backend.name
                        raise
                except GatewayError:
                    raise
                except Exception as error:
                    # A parser's bug counts as a failure of this backend, so that the request can use another one.
                    logger.exception("%s: cannot parse the response of %s", context.id, backend.name)
                    words = "The backend sent a response that its protocol does not allow."
                    raise BackendBroken(words, backend=backend.name) from error
        except asyncio.CancelledError:
            if not _client_has_all(context, parser):
                raise
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
        return b""

    async def _forward(
        self, context: RequestContext, request: Request, answer: BackendResponse, parser: Parser, timeouts: Timeouts
    ) -> bytes:
        """Write the answer's chunks as they arrive; returns the last ones, encoded.

        Pieces of a whole answer are held back until its end shows that it contains no error. Keep-alives do not count as
        tokens: there are limits on how long there may be nothing else.
        """
        attempt, writer = context.current, context.writer
        held, size, received, turn = list[Chunk](), 0, 0, TURN
        encode = writer.encoder.encode
        began_at, limit = self._clock(), None
        start = ResponseStart(answer.head) if _is_sniffed(request) else None
        if start is None:
            _begin(answer.head, parser, writer)
        ready: list[bytes] = []
        async for segment in answer.segments():
            attempt.segments += 1
            received += len(segment)
            if start is not None:
                head, segment = start.feed(segment)
                if head is not None:
                    _begin(head, parser, writer)
                    # A body is only collected here: there is nothing to parse in small pieces.
                    turn = MAX_FOLDED if head.media_type.startswith(JSON) else TURN
                if start.is_known:
                    start = None
            for piece in turns(segment, turn):
                ready = []
                try:
                    for chunk in parser.feed(piece):
                        if chunk.is_body and parser.holds_back and size <= HELD_BACK:
                            held.append(chunk)
                            size += len(chunk.raw)
                            continue
                        if attempt.first_token_at is None or chunk.finish is not None or chunk.usage is not None:
                            self._notice(attempt, chunk)
                        if held:
                            ready += map(encode, held)
                            held.clear()
                        ready.append(encode(chunk))
                finally:
                    # Chunks before an error in the same segment are sent all the same.
                    if ready:
                        await writer.put(b"".join(ready))
                if piece is not segment:
                    await asyncio.sleep(0)
            if received > MAX_FOLDED and not writer.committed:
                if output_of(request).stream:
                    raise BackendBroken(f"The backend has sent {MAX_FOLDED // 2**20} MiB without a token.")
                raise AnswerTooLarge(MAX_FOLDED)
            is_silent = not ready or parser.is_silent
            if is_silent and (not held or (attempt.segments > 2 and segment.isspace())):
                limit = limit or TokenLimit(timeouts, began_at)
                await self._on_sign(context, answer, parser, limit)
        if start is not None:
            head, last = start.finish()
            if head is not None:
                _begin(head, parser, writer)
            if last:
                held += parser.feed(last)
        # Chunks that were held back are sent only if the end contains no error.
        rest: list[bytes] = []
        for chunk in [*held, *list(parser.finish())] if held else parser.finish():
            self._notice(attempt, chunk)
            rest.append(encode(chunk))
            if len(rest) % TURN_CHUNKS == 0:
                await asyncio.sleep(0)
        return b"".join(rest)

    async def _on_sign(
        self, context: RequestContext, answer: BackendResponse, parser: Parser, limit: TokenLimit
    ) -> None:
        """A piece without a token shows that the backend lives: keep it from timing out, within limits, and notify the
        client."""
        attempt, writer, now = context.current, context.writer, self._clock()
        if attempt.first_token_at is None:
            if parser.prompt is not attempt.prompt:
                attempt.prompt, attempt.prompt_at = parser.prompt, now
            limit.before_token(parser.prompt, now)
            answer.expect_first_byte()
        else:
            limit.after_token(attempt.segments, now)
        # A backend that has begun to read will hardly refuse the request any more.
        early = now < context.signs_from and parser.prompt is None
        if not writer.streaming or (early and not writer.committed) or not self._forwards(context):
            return
        signs = parser.take_signs()
        if writer.committed:
            await writer.put(signs)
        elif signs:
            await writer.sign(signs)

    def _forwards(self, context: RequestContext) -> bool:
        """Whether the client gets the backend's own bytes."""
        return backend_of(self._backends, context).upstream.speaks(context.request.origin.wire)

    def _learn(self, context: RequestContext) -> None:
        """Learn from a stream how fast the backend reads prompts."""
        attempt = context.current
        if attempt.usage is None or attempt.first_token_at is None or not attempt.sent_at:
            return
        first_token_s = attempt.first_token_at - attempt.sent_at
        if first_token_s >= SHORTEST_S:
            self._speeds.learn(attempt.target, attempt.usage, len(context.request.origin.body), first_token_s)

    def _reading(self, context: RequestContext) -> Progress:
        """What a client waits for while the backend reads the prompt, or generates what its protocol sends in one piece."""
        attempt = context.current
        if attempt.first_token_at is not None:
            elapsed_s = self._clock() - attempt.first_token_at
            return Progress(phase="ready", model=attempt.target.model, elapsed_s=elapsed_s)
        usual_s = self._speeds.estimate_s(attempt.target, len(context.request.origin.body), attempt.prompt)
        return reading_progress(attempt, attempt.target.model, usual_s, self._clock())

    def _notice(self, attempt: Attempt, chunk: Chunk) -> None:
        if attempt.first_token_at is None:
            attempt.first_token_at = self._clock()
            if attempt.on_first_token is not None:
                attempt.on_first_token()
        if chunk.usage is not None:
            attempt.usage = chunk.usage
        if chunk.finish is not None:
            attempt.finish = chunk.finish


def _is_sniffed(request: Request) -> bool:
    """Whether the first bytes of a response count more than its label. What only the backend understands may be anything."""
    return not isinstance(request, Passthrough) or request.has_json


def _begin(head: ResponseHead, parser: Parser, writer: ResponseWriter) -> None:
    """Hand parser and encoder the head of the response."""
    parser.start(head)
    writer.begin(head)


def _with_clients(
    backend: Backend, context: RequestContext, own: tuple[tuple[str, str], ...]
) -> tuple[tuple[str, str], ...]:
    """The headers for the backend, with those of the client that go on to it."""
    return (*own, *forwarded_headers(backend.forward_headers, context.headers, own))


def _amended(context: RequestContext, request: Request, rejected: BackendRejected) -> Request | None:
    """The amended request, if the protocol has one for this rejection and no token was sent yet."""
    return None if context.writer.committed else context.adapter.amend(request, rejected)


def _client_has_all(context: RequestContext, parser: Parser) -> bool:
    """Whether the client disconnected after it received the whole stream. Many close as soon as they have read the last
    event, a moment before the backend ends its answer."""
    writer = context.writer
    left = isinstance(context.cancel_reason, ClientDisconnected) and writer.streaming and writer.committed
    return left and bool(context.current.finish) and _final_chunks(parser) is not None


def _is_complete(context: RequestContext, parser: Parser) -> bool:
    """Whether the answer was complete, by its protocol's end mark, when the connection broke."""
    parser.take_signs()  # comments may follow the end
    return bool(context.current.finish) and _final_chunks(parser) == []


def _final_chunks(parser: Parser) -> list[Chunk] | None:
    """The chunks that the end of the answer adds; `None` if it is incomplete."""
    try:
        return list(parser.finish())
    except BackendBroken:
        return None
