"""How the gateway's own routes read bodies and answer: JSON in, JSON out, errors as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import request_response

from hostler.adapters.errors import BadRequest, ClientDisconnected, GatewayError, RequestTooLarge, ShuttingDown
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.context import CUT_OFF

Endpoint = Callable[[Request], Awaitable[Response]]

#: An order names a model or a request: it has no more bytes than this.
_LONGEST_ORDER = 64 * 1024

_Body = TypeVar("_Body", bound=msgspec.Struct)


async def sent(request: Request, *, most: int) -> bytes:
    """The whole body. Raises `RequestTooLarge` as soon as it has more than `most` bytes, and `ClientDisconnected`."""
    content = bytearray()
    try:
        async for part in request.stream():
            content += part
            if len(content) > most:
                raise RequestTooLarge(f"a body has at most {most} bytes here")
    except ClientDisconnect as error:
        raise ClientDisconnected("the client left before its request was complete") from error
    return bytes(content)


async def body(request: Request, kind: type[_Body]) -> _Body:
    """What to do. Raises `BadRequest` with the fields that can be given, `RequestTooLarge` and `ClientDisconnected`."""
    content = await sent(request, most=_LONGEST_ORDER)
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        fields = ", ".join(kind.__struct_fields__)
        raise BadRequest(f"send a JSON object with {fields}: {error}") from error


async def while_there(request: Request, wait: Callable[[], Awaitable[None]]) -> None:
    """`wait`, which raises nothing; `ClientDisconnected` if the client leaves first. Only once the body has been read."""
    done = False

    async def waiting() -> None:
        nonlocal done
        await wait()
        done = True
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waiting)
        while (await request.receive())["type"] != "http.disconnect":
            pass
        tasks.cancel_scope.cancel()
    if not done:
        raise ClientDisconnected("the client left before its answer")


def whole_number(request: Request, name: str, default: int, *, least: int, most: int) -> int:
    """A number in the query, kept within its limits. Raises `BadRequest` for what is none."""
    text = request.query_params.get(name, "")
    if not text:
        return default
    try:
        return max(least, min(most, int(text)))
    except ValueError as error:
        raise BadRequest(f"{name} takes a whole number from {least} to {most}") from error


def plain(endpoint: Endpoint) -> ASGIApp:
    """The endpoint as an ASGI application; errors become JSON, also the one that the gateway stops before the answer."""

    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except GatewayError as error:
            return told(error)
        except asyncio.CancelledError:
            # Nobody cancels these but a server that has waited for them as long as it may.
            task = asyncio.current_task()
            if task is None or task.uncancel() > 0:
                raise
            answer = told(ShuttingDown(CUT_OFF))
            answer.headers["Connection"] = "close"
            return answer

    app: Any = request_response(guarded)
    typed: ASGIApp = app
    return typed


def told(error: GatewayError) -> Response:
    """An error as an answer."""
    return json_response({"error": {"message": error.message, "code": error.code}}, status=error.status)


def json_response(value: object, *, status: int = 200) -> Response:
    """A value as JSON that nobody keeps."""
    return Response(
        msgspec.json.encode(value),
        status_code=status,
        media_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
