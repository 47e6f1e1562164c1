"""Requests that the gateway sends to its own routes, within its process and with the rights of a client."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import anyio
import msgspec

from hostler.gateway.asgi import BACKGROUND_KEY, CLIENT_KEY, ROUTE_KEY, Message, Scope
from hostler.gateway.context import Client
from hostler.gateway.routing import Router


class InternalAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer. `complete`: it was sent to its end. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool


def internal_scope(
    method: str, path: str, *, query: str = "", headers: Iterable[tuple[bytes, bytes]] = (), background: bool = False
) -> Scope:
    """The scope of a request with a JSON body, before its route is found."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "server": None,
        "client": None,
        "method": method,
        "root_path": "",
        "path": path,
        "raw_path": quote(path).encode(),
        "query_string": query.encode(),
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), *headers],
        "state": {},
        "extensions": {},
        BACKGROUND_KEY: background,
    }


async def send_internally(router: Router, scope: Scope, client: Client, body: bytes) -> InternalAnswer:
    """Send the request to its route as this client. Passes everything but the checks of connection and key; the caller
    checks the key's scopes. Raises `NotFound` and `MethodNotAllowed`. Cancelling it cancels the request."""
    route, scope["path_params"] = router.find(scope)
    scope[ROUTE_KEY], scope[CLIENT_KEY] = route, client
    unread, answer = [body], bytearray()
    status, complete = 0, False
    headers: dict[str, str] = {}

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await anyio.sleep_forever()  # the client does not leave; its own request cancels this one
        raise AssertionError("unreachable")

    async def send(message: Message) -> None:
        nonlocal status, complete
        if message["type"] == "http.response.start":
            status = message["status"]
            pairs: list[tuple[Any, Any]] = list(message.get("headers", ()))
            headers.update({name.decode("latin-1").lower(): value.decode("latin-1") for name, value in pairs})
        else:
            answer.extend(message.get("body", b""))
            complete = not message.get("more_body", False)

    await route.app(scope, receive, send)
    return InternalAnswer(status=status, headers=headers, body=bytes(answer), complete=complete)
