"""HTTP for the routes of files and batches: answers and errors in the form of their protocol."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from hostler.adapters.base import Adapter, Operation
from hostler.adapters.errors import BadRequest, ClientDisconnected, GatewayError, TooManyRequests
from hostler.adapters.requested_model import HEADERS, PARAMETER
from hostler.gateway.asgi import CLIENT_KEY, ROUTE_KEY, ASGIApp, Receive, RouteMatch, Scope, Send
from hostler.gateway.batches.ids import gateway_of
from hostler.gateway.context import Client

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

BatchHandler = Callable[[Request], Awaitable[Response]]

#: The setting that bounds uploads, for errors.
MAX_FILE: Final = "gateway.batches.max_file"

#: Uploads up to this size, in bytes, are not limited in number.
_SMALL_UPLOAD: Final = 1024 * 1024


class PassOn(Exception):
    """The request is not for this gateway: a backend may know what it names. `body` is set, decompressed, if it has been read."""

    def __init__(self, body: bytes | None = None) -> None:
        super().__init__()
        self.body = body


#: On requests from another gateway of the cluster: the URL that the client has asked there.
FORWARDED_FROM: Final = "x-hostler-forwarded-from"


class Elsewhere(Exception):
    """Another gateway of the cluster has what the request names. `body` is set, decompressed, if it has been read."""

    def __init__(self, gateway: str, body: bytes | None = None) -> None:
        super().__init__(gateway)
        self.gateway = gateway
        self.body = body


class ElsewhereUnavailable(GatewayError):
    """Another gateway of the cluster has what the request names, and does not answer."""

    status, code = 503, "gateway_not_available"

    def __init__(self, message: str, *, final: bool) -> None:
        super().__init__(message, retry_after_s=None if final else 5.0)
        self.final = final


class GatewayAnswer(NamedTuple, Generic[_T]):
    """What a gateway has answered; `value` is `None` if it did not answer in time, refused, or is of another release."""

    gateway: str
    value: _T | None


class OtherGateways(Protocol):
    """The gateways of a cluster; `own` is the id of this one."""

    own: str

    async def ask_all(
        self, request: Request, header: tuple[str, str], read: Callable[[bytes], _T]
    ) -> list[GatewayAnswer[_T]]:
        """The answer of each other one to the request, with a header more. `read` makes it of the body, or raises
        `ValueError`."""

    async def forward(self, gateway: str, request: Request, body: bytes | None) -> Response:
        """The answer of the gateway with this id. Raises `ElsewhereUnavailable`."""


def look_elsewhere(
    gateways: OtherGateways | None, identifier: str, request: Request, body: bytes | None = None
) -> None:
    """Raise `Elsewhere` if another gateway has what is not found here. What one has passed on is not passed on again."""
    gateway = gateway_of(identifier)
    if gateways is not None and gateway not in ("", gateways.own) and FORWARDED_FROM not in request.headers:
        raise Elsewhere(gateway, body)


class PassOnRoutes:
    """What requests are passed on by: the routes of paths that no protocol describes, by method. `expected`: a backend may
    have files and batches of its own."""

    def __init__(self, *, expected: bool) -> None:
        self.expected = expected
        self.by_method: dict[str, RouteMatch] = {}

    async def send(self, scope: Scope, receive: Receive, send: Send, body: bytes | None) -> bool:
        """Pass a request on, whose body may have been read; `False` if nothing is passed on."""
        route = self.by_method.get(scope["method"])
        if route is None:
            return False
        unread = [] if body is None else [body]

        async def replay() -> Any:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return await receive()

        if body is not None:
            scope["headers"] = [
                *(each for each in scope["headers"] if each[0] not in (b"content-encoding", b"content-length")),
                (b"content-length", str(len(body)).encode()),
            ]
        scope[ROUTE_KEY], scope["path_params"] = route, {"rest": scope["path"].lstrip("/")}
        await route.app(scope, replay, send)
        return True


def endpoint(
    adapter: Adapter,
    operation: Operation,
    handler: BatchHandler,
    pass_on: PassOnRoutes,
    gateways: OtherGateways | None = None,
) -> ASGIApp:
    """The handler as an ASGI application with the errors of this protocol."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Elsewhere as other:
            assert gateways is not None, "see `look_elsewhere`"
            return await gateways.forward(other.gateway, request, other.body)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            if _names_a_model(request):
                raise PassOn
            response = await answer(request)
        except ClientDisconnected:
            return
        except PassOn as other:
            if await pass_on.send(scope, receive, send, other.body):
                return
            response = _refusal(adapter, operation, BadRequest("this gateway has no such file or batch"))
        except GatewayError as error:
            response = _refusal(adapter, operation, error)
        except Exception:
            logger.exception("unhandled exception in %s", operation.path)
            response = _refusal(adapter, operation, GatewayError("internal error; see the gateway's log"))
        try:
            await response(scope, receive, send)
        except GatewayError as error:
            # Without its end, so that the server breaks the connection off and it is not taken for complete.
            logger.warning("an answer of %s broke off: %s", operation.path, error.log_message)

    return app


def _names_a_model(request: Request) -> bool:
    """Whether the request names a model, and so a backend that has files of its own."""
    return bool(request.query_params.get(PARAMETER)) or any(request.headers.get(name) for name in HEADERS)


def _refusal(adapter: Adapter, operation: Operation, error: GatewayError) -> Response:
    answer = adapter.error_response(error, operation)
    return Response(answer.body, answer.status, dict(answer.headers), answer.media_type)


def owner_of(request: Request) -> str:
    """Whose files and batches the client may see: a new key does not inherit those of an earlier one of its name."""
    client: Client = request.scope[CLIENT_KEY]
    return f"{client.name} {client.identity}" if client.identity else client.name


def reply(value: object) -> Response:
    """A JSON answer."""
    return Response(msgspec.json.encode(value), media_type="application/json")


class UploadLimit:
    """Bounds the memory of uploads: so many large ones at a time, each of which is read into memory."""

    def __init__(self, most: int = 4) -> None:
        self._most = most
        self._count = 0

    @contextmanager
    def entered(self, request: Request) -> Iterator[None]:
        """For as long as a body is read and stored. Raises `TooManyRequests` if it is large, as are others."""
        length = request.headers.get("content-length", "")
        is_compressed = "content-encoding" in request.headers
        if length.isdecimal() and int(length) <= _SMALL_UPLOAD and not is_compressed:
            yield
            return
        if self._count >= self._most:
            raise TooManyRequests(f"{self._count} uploads are in progress; try again in a moment", retry_after_s=2.0)
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
