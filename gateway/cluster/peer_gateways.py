"""Passes requests on to the gateway of the cluster that has what they name, or asks all of them."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Final, TypeVar

import anyio
import anyio.to_thread
import httpx
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from hostler.adapters.errors import BadRequest, GatewayError, printable
from hostler.gateway.backends.connection_headers import OF_CONNECTIONS
from hostler.gateway.batches.http import FORWARDED_FROM, ElsewhereUnavailable, GatewayAnswer
from hostler.gateway.cluster.gateway_names import GatewayNames
from hostler.gateway.cluster.membership import Member
from hostler.gateway.cluster.peer_connections import PeerConnections

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_TIMEOUT: Final = httpx.Timeout(60.0, connect=2.0)
#: How long all gateways together have for their part of a list, in seconds, and the bytes of a part, at most.
_PART_S: Final = 2.0
_MAX_PART: Final = 32 * 1024 * 1024
#: What is read of an answer before it is begun, in bytes: until then a failure becomes an error.
_BEGINNING: Final = 64 * 1024

#: What is said of a connection, or was checked where the request has arrived.
_NOT_SENT: Final = OF_CONNECTIONS | {
    "host", "content-length", "expect", "proxy-authorization", "forwarded", "x-forwarded-for", "x-forwarded-host",
    "x-forwarded-proto", "x-forwarded-prefix", "x-real-ip", "origin", "referer",
}  # fmt: skip
_NOT_RETURNED: Final = OF_CONNECTIONS | {"date", "server"}


class PeerGateways:
    """`members` are the gateways of the cluster by their ids. A request is sent as its client's, with its key. `run` until
    cancelled.

    `is_trusted`: the records of members are signed, so that keys are sent to no stranger. `names` are those of gateways that
    are away.
    """

    def __init__(
        self, own: str, members: Callable[[], Mapping[str, Member]], *, is_trusted: bool, names: GatewayNames
    ) -> None:
        self.own = own
        self._members = members
        self._is_trusted = is_trusted
        self._names = names
        self._connections = PeerConnections(members)
        self._changed = anyio.Event()
        self._missing: dict[str, str] = {}

    def on_members(self) -> None:
        """The members have changed."""
        self._changed.set()

    async def run(self) -> None:
        """Close connections to gateways that have left, and keep the names of all."""
        try:
            while True:
                await anyio.to_thread.run_sync(self._names.add, list(self._members().values()))
                await self._connections.close_stale()
                await self._changed.wait()
                self._changed = anyio.Event()
        finally:
            await self._connections.aclose()

    async def forward(self, gateway: str, request: Request, body: bytes | None) -> Response:
        """The other gateway's answer. Raises `ElsewhereUnavailable`, and `BadRequest` for what no address may have."""
        member = self._members().get(gateway)
        if member is None:
            name = self._names.find(gateway)
            raise ElsewhereUnavailable(
                f"the gateway that has it ({gateway if name is None else f'{printable(name, 80)}, {gateway}'}) is not in the "
                "cluster now; ask again when it is back",
                final=False,
            )
        if (reason := self._unreachable(member)) is not None:
            raise ElsewhereUnavailable(f"gateway {member.name} has it, {reason}", final=True)
        stack = AsyncExitStack()
        try:
            answer = await self._send(stack, member, request, body)
            chunks = answer.aiter_raw()
            return _Relayed(stack, member.name, answer, await _beginning(chunks), chunks)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await stack.aclose()
            if isinstance(error, httpx.HTTPError):
                raise _unavailable(member, request, error) from error
            raise

    async def ask_all(
        self, request: Request, header: tuple[str, str], read: Callable[[bytes], _T]
    ) -> list[GatewayAnswer[_T]]:
        """What each other gateway answers in time to a request without a body, with a header more, which a client cannot set.
        `read` makes it of the body, or raises `ValueError`."""
        others = [member for member in self._members().values() if member.id != self.own]
        found: dict[str, _T] = {}
        reasons = dict.fromkeys((each.id for each in others), f"no answer within {_PART_S:g} s")

        async def ask(member: Member) -> None:
            try:
                async with AsyncExitStack() as stack:
                    answer = await self._send(stack, member, request, None, header)
                    if answer.status_code == 200:
                        found[member.id] = read(await _whole(answer))
                    else:
                        reasons[member.id] = f"it answers with HTTP status {answer.status_code}"
            except (httpx.HTTPError, GatewayError, ValueError) as error:
                reasons[member.id] = str(error) or type(error).__name__

        with anyio.move_on_after(_PART_S):
            async with anyio.create_task_group() as tasks:
                for member in others:
                    if (reason := self._unreachable(member)) is None:
                        tasks.start_soon(ask, member)
                    else:
                        reasons[member.id] = reason
        self._report({each.name: reasons[each.id] for each in others if each.id not in found})
        return [GatewayAnswer(each.name, found.get(each.id)) for each in others]

    def _report(self, missing: dict[str, str]) -> None:
        for name, reason in missing.items():
            if self._missing.get(name) != reason:
                logger.warning("gateway %s is left out of lists of files and batches: %s", name, reason)
        self._missing = missing

    def _unreachable(self, member: Member) -> str | None:
        """Why requests for this gateway cannot be passed on at all, and the way out."""
        if not self._is_trusted or member.url is None:
            missing = "cluster.gateway_url in its file" if self._is_trusted else "cluster.token"
            return f"which this one cannot ask; ask it there, or set {missing}"
        try:
            httpx.URL(member.url)
        except httpx.InvalidURL as error:
            return (
                f"at an address that cannot be used ({error}); ask it there, or correct cluster.gateway_url in its file"
            )
        return None

    async def _send(
        self, stack: AsyncExitStack, member: Member, request: Request, body: bytes | None, *more: tuple[str, str]
    ) -> httpx.Response:
        """The answer's head; the rest can be read until `stack` is closed. Raises `httpx.HTTPError`, and `BadRequest`."""
        assert member.url is not None, "see `_unreachable`"
        client = await stack.enter_async_context(self._connections.client(member))
        try:
            own = {name.encode(): value.encode() for name, value in more}
            passed = (each for each in _headers(request, read=body is not None) if each[0] not in own)
            headers = [*passed, *own.items()]
            url = httpx.URL(member.url).copy_with(raw_path=_path(request))
            # Not `build_request`, which adds headers that the client has not sent.
            sent = httpx.Request(
                request.method, url, headers=headers, content=body, extensions={"timeout": _TIMEOUT.as_dict()}
            )
            answer = await client.send(sent, stream=True)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise BadRequest("the address of the request cannot be passed on to another gateway") from error
        stack.push_async_callback(answer.aclose)
        return answer


def _unavailable(member: Member, request: Request, error: httpx.HTTPError) -> ElsewhereUnavailable:
    reason = str(error) or type(error).__name__
    is_sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    if is_sent and request.method == "POST" and not request.scope["path"].endswith("/cancel"):
        return ElsewhereUnavailable(
            f"gateway {member.name} has it, and its answer did not arrive ({reason}); look whether it was carried out before "
            "you try again",
            final=True,
        )
    return ElsewhereUnavailable(f"gateway {member.name} has it, and does not answer ({reason}); try again", final=False)


class _Relayed(StreamingResponse):
    """The answer of another gateway, byte for byte: the `beginning` of its body, and the rest."""

    def __init__(
        self,
        stack: AsyncExitStack,
        gateway: str,
        answer: httpx.Response,
        beginning: bytes,
        rest: AsyncIterator[bytes],
    ) -> None:
        super().__init__(_joined(beginning, rest), answer.status_code)
        self.raw_headers = [
            (name.lower(), value)
            for name, value in answer.headers.raw
            if name.lower().decode("latin-1") not in _NOT_RETURNED
        ]
        self._stack = stack
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._stack.aclose()

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except httpx.HTTPError as error:
            # Without its end, so that the server breaks the connection off and it is not taken for complete.
            reason = str(error) or type(error).__name__
            logger.warning("gateway %s: its answer broke off (%s), and so does the client's", self._gateway, reason)


async def _beginning(chunks: AsyncIterator[bytes]) -> bytes:
    found = b""
    while len(found) < _BEGINNING and (chunk := await anext(chunks, None)) is not None:
        found += chunk
    return found


async def _joined(beginning: bytes, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    if beginning:
        yield beginning
    async for chunk in rest:
        yield chunk


async def _whole(answer: httpx.Response) -> bytes:
    """The body, decoded. Raises `ValueError` if it is too long."""
    found = bytearray()
    async for chunk in answer.aiter_bytes():
        found += chunk
        if len(found) > _MAX_PART:
            raise ValueError(f"its answer has more than {_MAX_PART:,} bytes")
    return bytes(found)


def _path(request: Request) -> bytes:
    path: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    query: bytes = request.scope.get("query_string", b"")
    return path + (b"?" + query if query else b"")


def _headers(request: Request, *, read: bool) -> list[tuple[bytes, bytes]]:
    """The headers to pass on; with a body that was `read`, and so decompressed."""
    named = {each.strip().lower() for value in request.headers.getlist("connection") for each in value.split(",")}
    found = [
        (name, value)
        for name, value in request.headers.raw
        if name.decode("latin-1") not in _NOT_SENT | named
        and not name.startswith(b"sec-")
        and not (read and name == b"content-encoding")
    ]
    base = str(request.url.replace(path=request.scope.get("root_path", ""), query="", fragment="")).rstrip("/")
    return [*found, (FORWARDED_FROM.encode(), base.encode())]
