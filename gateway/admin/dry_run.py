"""`GET /admin/route`: the backends a request for a model would try, without sending anything."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from hostler.adapters.model_list import ModelKind
from hostler.gateway.admin.http import json_endpoint, json_response
from hostler.gateway.asgi import RouteMatch
from hostler.gateway.backends.chain import Chain
from hostler.gateway.backends.hop import RouteHop
from hostler.gateway.host_choice import HostChoice
from hostler.gateway.placements import Placement, rules_of
from hostler.gateway.plain_models import CatalogBackend
from hostler.gateway.routing import gateway_route
from hostler.profiles.request_rules import RequestRules

#: A backend with its rules, the name of the client's key or its address, and what the model is for.
Preview = Callable[[CatalogBackend, tuple[RequestRules, ...], str, ModelKind], tuple[str, ...]]


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """The hops of a request for `model` in order; `first` is the one that would serve it now. Cost in US dollars."""

    model: str
    local_only: bool
    first: str | None
    hops: tuple[RouteHop, ...]
    cost_today: float


class DryRunRoutes:
    """`find` is the catalog's; `preview` returns what is changed in a client's request, as the lines of a diff."""

    def __init__(
        self, find: Callable[[str | None], Placement], chain: Chain, choice: HostChoice, preview: Preview
    ) -> None:
        self._find = find
        self._chain = chain
        self._choice = choice
        self._preview = preview

    def routes(self) -> list[RouteMatch]:
        return [gateway_route("route", "/admin/route", json_endpoint(self._dry_run), scope="read")]

    async def _dry_run(self, request: Request) -> Response:
        placement = self._find(request.query_params.get("model"))
        local_only = placement.local_only or request.query_params.get("local_only", "").lower() in ("true", "1")
        client = request.query_params.get("client", "")
        places = {place.backend: place for place in placement.places}
        reasons = {each.backend: each.reasons for each in self._choice.ranked(places, placement.model)}
        hops = tuple(
            msgspec.structs.replace(
                self._chain.availability(place.backend, place.name_there, place.context, local_only=local_only),
                changes=self._preview(place, rules_of(placement, place), client, placement.card.kind),
                reasons=reasons.get(place.backend, ()),
            )
            for place in (places[name] for name in self._choice.names(places, placement.model))
        )
        return json_response(
            DryRun(
                model=placement.model,
                local_only=local_only,
                first=next((hop.backend for hop in hops if hop.reason is None), None),
                hops=hops,
                cost_today=round(self._chain.spending.today, 6),
            )
        )
