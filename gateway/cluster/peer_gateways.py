"""Passes requests on to the gateway of the cluster that has what they name."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

import anyio
import httpx
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from hostler.adapters.errors import BadRequest
from hostler.gateway.batches.http import FORWARDED_FROM, ElsewhereUnavailable
from hostler.gateway.cluster.membership import Member
from hostler.supervisor.tls import certificate_context

_TIMEOUT: Final = httpx.Timeout(60.0, connect=2.0)

#: What is said of a connection, or was checked where the request has arrived.
_NOT_SENT: Final = frozenset(
    {
        "host", "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "content-length", "expect",
        "proxy-authorization", "proxy-connection", "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto",
        "x-forwarded-prefix", "x-real-ip", "origin", "referer",
    }
)  # fmt: skip
_NOT_RETURNED: Final = frozenset(
    {"connection", "keep-alive", "trailer", "transfer-encoding", "upgrade", "date", "server"}
)


class PeerGateways:
    """`members` are the gateways of the cluster by their ids. A request is sent as its client's, with its key.

    `is_trusted`: the records of members are signed, so that keys are sent to no stranger.
    """

    def __init__(self, own: str, members: Callable[[], Mapping[str, Member]], *, is_trusted: bool) -> None:
        self.own = own
        self._members = members
        self._is_trusted = is_trusted

    async def forward(self, gateway: str, request: Request, body: bytes | None) -> Response:
        """The other gateway's answer. Raises `ElsewhereUnavailable`, and `BadRequest` for what no address may have."""
        member = self._members().get(gateway)
        if member is None:
            raise ElsewhereUnavailable(
                f"the gateway that has it ({gateway}) is not in the cluster now; ask again when it is back", final=False
            )
        if not self._is_trusted or member.url is None:
            missing = "cluster.gateway_url in its file" if self._is_trusted else "cluster.token"
            raise ElsewhereUnavailable(
                f"gateway {member.name} has it, which this one cannot ask; ask it there, or set {missing}", final=True
            )
        try:
            address = httpx.URL(member.url)
        except httpx.InvalidURL as error:
            raise ElsewhereUnavailable(
                f"gateway {member.name} has it, at an address that cannot be used ({error}); ask it there, or correct "
                "cluster.gateway_url in its file",
                final=True,
            ) from error
        client = _client(member)
        try:
            url = address.copy_with(raw_path=_path(request))
            # Not `build_request`, which adds headers that the client has not sent.
            sent = httpx.Request(
                request.method, url, headers=_headers(request, read=body is not None), content=body,
                extensions={"timeout": _TIMEOUT.as_dict()},
            )  # fmt: skip
            answer = await client.send(sent, stream=True)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await client.aclose()
            if isinstance(error, httpx.HTTPError):
                reason = str(error) or type(error).__name__
                raise ElsewhereUnavailable(
                    f"gateway {member.name} has it, and does not answer ({reason}); try again", final=False
                ) from error
            if isinstance(error, httpx.InvalidURL | UnicodeError):
                raise BadRequest("the address of the request cannot be passed on to another gateway") from error
            raise
        return _Relayed(client, answer)


class _Relayed(StreamingResponse):
    """The answer of another gateway, byte for byte."""

    def __init__(self, client: httpx.AsyncClient, answer: httpx.Response) -> None:
        super().__init__(_content(answer), answer.status_code)
        self.raw_headers = [
            (name.lower(), value)
            for name, value in answer.headers.raw
            if name.lower().decode("latin-1") not in _NOT_RETURNED
        ]
        self._client = client
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._answer.aclose()
                await self._client.aclose()


async def _content(answer: httpx.Response) -> AsyncIterator[bytes]:
    async for chunk in answer.aiter_raw():
        yield chunk


def _client(member: Member) -> httpx.AsyncClient:
    """A client for this gateway alone. Certificates are read only where some are needed: that takes a while."""
    verify: ssl.SSLContext | bool = member.url is not None and not member.url.startswith("http://")
    if member.certificate is not None:
        verify = certificate_context(member.certificate)
    return httpx.AsyncClient(verify=verify, trust_env=False, follow_redirects=False)


def _path(request: Request) -> bytes:
    path: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    query: bytes = request.scope.get("query_string", b"")
    return path + (b"?" + query if query else b"")


def _headers(request: Request, *, read: bool) -> list[tuple[bytes, bytes]]:
    """The headers to pass on; with a body that was `read`, and so decompressed."""
    found = [
        (name, value)
        for name, value in request.headers.raw
        if name.decode("latin-1") not in _NOT_SENT
        and not name.startswith(b"sec-")
        and not (read and name == b"content-encoding")
    ]
    base = str(request.url.replace(path=request.scope.get("root_path", ""), query="", fragment="")).rstrip("/")
    return [*found, (FORWARDED_FROM.encode(), base.encode())]
