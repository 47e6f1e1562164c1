"""The innermost application: sends the request to its target, and passes the answer to the response writer in chunks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from hostler.adapters.base import Parser, Timing
from hostler.adapters.canonical import Chunk, LoadRequest, Request, ResponseHead
from hostler.adapters.errors import BackendBroken, BackendRejected, BackendTimeout, ClientDisconnected, GatewayError
from hostler.gateway.asgi import CONTEXT_KEY, Receive, Scope, Send
from hostler.gateway.backends.base import Backend, BackendResponse, Endpoint
from hostler.gateway.backends.failure_policy import retry_after
from hostler.gateway.context import Attempt, RequestContext
from hostler.gateway.response import ResponseWriter

logger = logging.getLogger(__name__)

#: A whole answer up to this size, in bytes, is read to its end before it is passed on, since it may end with an error.
HELD_BACK = 256 * 1024

#: Bytes of an error answer that are read and passed on, at most.
ERROR_BODY_LIMIT = 1024 * 1024

#: How often a rejected request is amended and sent again, at most.
AMENDMENTS = 8


class Proxy:
    """The innermost ASGI application of the pipeline."""

    def __init__(self, backends: Mapping[str, Backend], *, clock: Callable[[], float]) -> None:
        self._backends = backends
        self._clock = clock

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return self.dispatch(scope[CONTEXT_KEY])

    async def dispatch(self, context: RequestContext) -> None:
        request, last = context.request, b""
        if isinstance(request, LoadRequest):
            # The middleware have loaded the model; nothing is sent to a backend.
            context.writer.begin(ResponseHead())
        else:
            for _ in range(AMENDMENTS):
                try:
                    last = await self._ask(context, request)
                    break
                except BackendRejected as rejected:
                    amended = _amended(context, request, rejected)
                    if amended is None:
                        raise
                    request = amended
            else:
                last = await self._ask(context, request)
        total_s, (queue_s, switch_s) = self._clock() - context.started_at, context.waits
        timing = Timing(queue_s=queue_s, switch_s=switch_s, total_s=total_s)
        context.writer.encoder.set_timing(timing)
        await context.writer.end(last)

    async def _ask(self, context: RequestContext, request: Request) -> bytes:
        """Send the request to the target and write its answer, except for the last bytes, which are returned."""
        attempt = context.attempt
        assert attempt is not None
        target = attempt.target
        backend = self._backends[target.backend]
        same_wire = backend.upstream.speaks(request.origin.wire)
        if not same_wire:
            request = context.adapter.expand(request)
        stream = backend.folds or _streamed(request)
        wire_request = backend.upstream.build(request, model=target.name_there, stream=stream)
        if backend.headers:
            wire_request = msgspec.structs.replace(wire_request, headers=(*wire_request.headers, *backend.headers))
        parser = backend.upstream.parser(request, fields=not same_wire)
        try:
            async with backend.transport.send(wire_request, _endpoint(backend, context), backend.timeouts) as answer:
                head = answer.head
                if not 200 <= head.status < 300:
                    raise await _rejection(answer, backend)
                attempt.segments += 1
                parser.start(head)
                context.writer.begin(head)
                try:
                    streams = context.writer.streaming and not answer.complete
                    forward = self._forward(attempt, context.writer, answer, parser, backend.timeouts.first_byte_s)
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
        self, attempt: Attempt, writer: ResponseWriter, answer: BackendResponse, parser: Parser, first_token_s: float
    ) -> bytes:
        """Write the answer's chunks as they arrive; returns the last ones, encoded.

        Pieces of a whole answer are held back until its end shows that it contains no error. Keep-alives do not count as
        tokens: the first token must arrive within `first_token_s`.
        """
        held, size = list[Chunk](), 0
        encode = writer.encoder.encode
        latest = self._clock() + first_token_s
        async for segment in answer.segments():
            attempt.segments += 1
            ready: list[bytes] = []
            try:
                for chunk in parser.feed(segment):
                    if attempt.first_token_at is None or chunk.finish is not None or chunk.usage is not None:
                        self._notice(attempt, chunk)
                    if chunk.is_body and size <= HELD_BACK:
                        held.append(chunk)
                        size += len(chunk.raw)
                        continue
                    if held:
                        ready += map(encode, held)
                        held.clear()
                    ready.append(encode(chunk))
            finally:
                # Chunks before an error in the same segment are sent all the same.
                if ready:
                    await writer.put(b"".join(ready))
            if attempt.first_token_at is None and self._clock() >= latest:
                # The transport detects silence; this is for backends that send keep-alives only.
                raise BackendTimeout("only keep-alives arrived, but no token in time")
        # Chunks that were held back are sent only if the end contains no error.
        last = list(parser.finish()) if held else parser.finish()
        rest = [encode(chunk) for chunk in held]
        for chunk in last:
            self._notice(attempt, chunk)
            rest.append(encode(chunk))
        return b"".join(rest)

    def _notice(self, attempt: Attempt, chunk: Chunk) -> None:
        if attempt.first_token_at is None:
            attempt.first_token_at = self._clock()
            if attempt.on_first_token is not None:
                attempt.on_first_token()
        if chunk.usage is not None:
            attempt.usage = chunk.usage
        if chunk.finish is not None:
            attempt.finish = chunk.finish


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
    return bool(context.current.finish) and _final_chunks(parser) == []


def _final_chunks(parser: Parser) -> list[Chunk] | None:
    """The chunks that the end of the answer adds; `None` if it is incomplete."""
    try:
        return list(parser.finish())
    except BackendBroken:
        return None


def _streamed(request: Request) -> bool:
    output = getattr(request, "output", None)
    return output is not None and output.stream


def _endpoint(backend: Backend, context: RequestContext) -> Endpoint:
    if backend.endpoint is not None:
        return backend.endpoint
    address = context.current.address
    assert address is not None, "a supervised target needs a lease"
    return Endpoint(host=address.host, port=address.port, key=address.key, name=backend.name)


async def _rejection(answer: BackendResponse, backend: Backend) -> BackendRejected:
    body = await answer.read(ERROR_BODY_LIMIT)
    return BackendRejected(
        f"{backend.name} answered with status {answer.head.status}",
        backend=backend.name,
        wire=backend.upstream.wire,
        backend_status=answer.head.status,
        headers={**answer.headers, "content-type": answer.head.media_type},
        body=body,
        retry_after_s=retry_after(answer.headers, time.time(), body),
    )
