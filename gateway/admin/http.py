"""HTTP for the gateway's own routes: JSON in, JSON out, errors as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import request_response

from hostler.adapters.errors import (
    BadRequest,
    ClientDisconnected,
    GatewayError,
    ShuttingDown,
    error_headers,
)
from hostler.adapters.json_body import check_surrogates
from hostler.gateway.asgi import ASGIApp, Message, Receive, Scope, Send
from hostler.gateway.context import DRAIN_EXPIRED
from hostler.gateway.request_body import read_body, without_mark

Handler = Callable[[Request], Awaitable[Response]]

#: The body of an action names a model or a request, in bytes.
_MAX_ACTION_BODY = 64 * 1024

#: The time for sending a last error, in seconds.
_LAST_ERROR_S = 1.0

_Body = TypeVar("_Body", bound=msgspec.Struct)


async def decode_body(request: Request, kind: type[_Body]) -> _Body:
    """The JSON body as `kind`. Raises `BadRequest` with the accepted fields, `RequestTooLarge`, `ClientDisconnected`."""
    content = without_mark(await read_body(request, _MAX_ACTION_BODY))
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        check_surrogates(content)
        fields = ", ".join(kind.__struct_fields__)
        raise BadRequest(f"expected a JSON object with {fields}: {error}") from error


async def run_while_connected(request: Request, run: Callable[[], Awaitable[None]]) -> None:
    """Await `run`, which must not raise; `ClientDisconnected` if the client leaves first. Call it after reading the body."""
    done = False

    async def running() -> None:
        nonlocal done
        await run()
        done = True
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(running)
        while (await request.receive())["type"] != "http.disconnect":
            pass
        tasks.cancel_scope.cancel()
    if not done:
        raise ClientDisconnected("the client disconnected before the answer")


def int_param(request: Request, name: str, default: int, *, minimum: int, maximum: int) -> int:
    """An integer of the query, clamped to its limits. Raises `BadRequest` if it is not a number."""
    text = request.query_params.get(name, "")
    if not text:
        return default
    try:
        return max(minimum, min(maximum, int(text)))
    except ValueError as error:
        raise BadRequest(f"{name} must be an integer from {minimum} to {maximum}") from error


def json_endpoint(handler: Handler) -> ASGIApp:
    """The handler as an ASGI application. A `GatewayError` becomes a JSON answer, as does the end of the drain time."""

    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except GatewayError as error:
            return error_response(error)

    app: Any = request_response(guarded)

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await app(scope, receive, noting)
        except asyncio.CancelledError:
            # The drain time is over, or the caller of the application gave up.
            if not started:
                answer: Any = error_response(ShuttingDown(DRAIN_EXPIRED))
                answer.headers["Connection"] = "close"
                with anyio.move_on_after(_LAST_ERROR_S, shield=True):
                    await answer(scope, receive, send)
            raise

    return answered


def page_url(request: Request) -> str:
    """The path of the dashboard, below the path that the application is mounted at."""
    return f"{request.scope.get('root_path', '')}/ui/"


def error_response(error: GatewayError) -> Response:
    response = json_response({"error": {"message": error.message, "code": error.code}}, status=error.status)
    response.headers.update(dict(error_headers(error)))
    return response


def json_response(value: object, *, status: int = 200) -> Response:
    return Response(
        msgspec.json.encode(value),
        status_code=status,
        media_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
