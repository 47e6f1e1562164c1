"""Calls of the gateway's own routes within its process, with the rights of the client that caused them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import msgspec

from hostler.adapters.errors import Forbidden, GatewayError
from hostler.gateway.auth.scopes import allows
from hostler.gateway.context import Client
from hostler.gateway.internal_request import internal_scope, send_internally
from hostler.gateway.routing import Router


class CallRefused(GatewayError):
    """The route answered with an error; the message is its own."""

    status, code = 400, "call_refused"


class InternalCalls:
    """Requests of one client, which pass everything that its requests over HTTP pass but the checks of the connection."""

    def __init__(self, router: Router, client: Client) -> None:
        self._router = router
        self.client = client

    async def get(self, path: str, **query: object) -> Any:
        """The JSON answer of a GET. Raises `GatewayError`."""
        given = {name: value for name, value in query.items() if value is not None}
        return await self._call("GET", path, urlencode(given), b"")

    async def post(self, path: str, **body: object) -> Any:
        """The JSON answer of a POST. Raises `GatewayError`."""
        given = {name: value for name, value in body.items() if value is not None}
        return await self._call("POST", path, "", msgspec.json.encode(given))

    async def _call(self, method: str, path: str, query: str, body: bytes) -> Any:
        scope = internal_scope(method, path, query=query)
        route, _ = self._router.find(scope)
        if not allows(self.client, route):
            raise Forbidden(f"this key lacks the scope {route.operation.scope!r}")
        answer = await send_internally(self._router, scope, self.client, body)
        status = answer.status
        try:
            value = msgspec.json.decode(answer.body)
        except msgspec.DecodeError:
            raise CallRefused(f"status {status}") from None
        if status >= 400:
            error = value.get("error") if isinstance(value, dict) else None
            raise CallRefused(
                str(error.get("message")) if isinstance(error, dict) else str(error or f"status {status}")
            )
        return value
