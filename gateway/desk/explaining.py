"""Tells how a model would be served now, without asking anybody: `GET /admin/route?model=NAME`."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import request_response

from hostler.adapters.errors import GatewayError
from hostler.gateway.asgi import Claim
from hostler.gateway.backends.chain import Chain, HopView
from hostler.gateway.catalog import Placement
from hostler.gateway.routes import own_claim


class RouteView(msgspec.Struct, frozen=True, kw_only=True):
    """The way of a request for `model`: its hops in order, and the one that would be asked first, if any."""

    model: str
    local_only: bool
    first: str | None
    hops: tuple[HopView, ...]
    spent_today: float


class Route:
    """Answers the one question. `find` is the catalogue's."""

    def __init__(self, find: Callable[[str | None], Placement], chain: Chain) -> None:
        self._find = find
        self._chain = chain

    def claim(self) -> Claim:
        """The route, for keys that may read."""
        return own_claim("route", "/admin/route", request_response(self._answer), scope="read")

    async def _answer(self, request: Request) -> Response:
        try:
            placement = self._find(request.query_params.get("model"))
        except GatewayError as error:
            body = {"error": {"message": error.message, "code": error.code}}
            return Response(msgspec.json.encode(body), error.status, media_type="application/json")
        local_only = placement.local_only or request.query_params.get("local_only", "").lower() in ("true", "1")
        hops = tuple(
            self._chain.view(place.backend, place.name_there, place.context, local_only=local_only)
            for place in placement.places
        )
        view = RouteView(
            model=placement.model,
            local_only=local_only,
            first=next((hop.backend for hop in hops if hop.why_not is None), None),
            hops=hops,
            spent_today=round(self._chain.spending.today, 6),
        )
        return Response(msgspec.json.encode(view), media_type="application/json")
