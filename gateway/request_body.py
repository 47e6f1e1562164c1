"""A request's body as its client meant it: decompressed within a limit, and without a byte order mark."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from hostler.adapters.errors import (
    BadRequest,
    ClientDisconnected,
    GatewayError,
    RequestTooLarge,
    UnsupportedMediaType,
)
from hostler.gateway.backends.content_coding import CODINGS, Decompressor, UnknownCoding

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

#: Codings that may be applied one after the other.
_MAX_CODINGS = 2


def codings(header: str) -> tuple[str, ...]:
    """The codings that a `Content-Encoding` header names, in the order in which they were applied.

    Raises `UnsupportedMediaType` for one that cannot be decoded.
    """
    names = tuple(name for each in header.split(",") if (name := each.strip().lower()) not in ("", "identity"))
    known = (*CODINGS, "x-gzip")
    if len(names) > _MAX_CODINGS or any(name not in known for name in names):
        raise UnsupportedMediaType(f"Content-Encoding must be one of {', '.join(CODINGS)}")
    return names


async def read_body(request: Request, limit: int, setting: str = "") -> bytes:
    """The whole body, decompressed. Raises `RequestTooLarge` with the `setting` of the limit as soon as it exceeds `limit`
    bytes, and `ClientDisconnected`."""
    compressed = codings(",".join(request.headers.getlist("content-encoding")))
    refusal = RequestTooLarge(f"the body exceeds the limit of {limit} bytes{setting and f' ({setting})'}")
    content = bytearray()
    try:
        async for part in request.stream():
            content += part
            if len(content) > limit:
                raise refusal
    except ClientDisconnect as error:
        raise ClientDisconnected("the client disconnected before its request was complete") from error
    body = bytes(content)
    return await decompress(body, compressed, limit, refusal) if compressed else body


async def decompress(body: bytes, names: tuple[str, ...], limit: int, refusal: GatewayError | None = None) -> bytes:
    """The body before it was compressed. Raises `refusal` beyond `limit` bytes, `BadRequest` if it is damaged. Without a
    `refusal`, the limit is `gateway.max_body`."""
    return await asyncio.to_thread(_decompress, body, names, limit, refusal or too_large(limit))


def _decompress(body: bytes, names: tuple[str, ...], limit: int, refusal: GatewayError) -> bytes:
    for name in reversed(names):
        body = _decompress_one(body, name, limit, refusal)
    return body


def _decompress_one(body: bytes, name: str, limit: int, refusal: GatewayError) -> bytes:
    decompressor, content = Decompressor(name), bytearray()
    try:
        for step in decompressor.steps(body):
            content += step
            if len(content) > limit:
                raise refusal
    except UnknownCoding:
        raise BadRequest(f"the body is not valid {name}, which its Content-Encoding names") from None
    if not decompressor.complete:
        raise BadRequest(f"the body ends within its {name} data")
    return bytes(content)


def too_large(limit: int) -> GatewayError:
    """The error for a body beyond `limit` bytes, whether compressed or not."""
    return RequestTooLarge(f"the request exceeds {round(limit / 1024**2, 2):g} MiB, the limit in gateway.max_body")


def without_mark(body: bytes) -> bytes:
    """The body without a byte order mark, which some programs put before JSON."""
    return body[len(_BYTE_ORDER_MARK) :] if body.startswith(_BYTE_ORDER_MARK) else body
