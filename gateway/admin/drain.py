"""`POST /admin/drain`: takes a host out of service for maintenance, or back into it, and says what that leaves waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from hostler.adapters.errors import NotFound
from hostler.gateway.admin.http import decode_body, json_endpoint, json_response
from hostler.gateway.asgi import RouteMatch
from hostler.gateway.backends.chain import Chain
from hostler.gateway.context import RequestContext
from hostler.gateway.events import printable
from hostler.gateway.in_flight import OtherRequests
from hostler.gateway.model_catalog import Catalog
from hostler.gateway.placements import Placement
from hostler.gateway.routing import gateway_route
from hostler.supervisor.contract import ModelLease
from hostler.supervisor.scheduling.host import Host


class DrainBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Takes the host out of service, or back into it."""

    host: str
    draining: bool = True


class DrainView(msgspec.Struct, frozen=True, kw_only=True):
    """What a drain leaves. `remembered`: it survives a restart of the host's supervisor. `serving` answers end first, then the
    `loaded` models are unloaded, but those of `leases` when these end. `only_here` are the models that nothing else serves
    now, each with the requests that wait for it until the host is back in service."""

    host: str
    draining: bool
    remembered: bool
    serving: int
    loaded: tuple[str, ...]
    leases: tuple[ModelLease, ...]
    only_here: dict[str, int]


class DrainRoutes:
    """`contexts` returns the requests in flight in this process, `elsewhere` are those of others."""

    def __init__(
        self,
        catalog: Catalog,
        hosts: Mapping[str, Host],
        chain: Chain,
        contexts: Callable[[], Iterable[RequestContext]],
        elsewhere: Sequence[OtherRequests] = (),
    ) -> None:
        self._catalog = catalog
        self._hosts = hosts
        self._chain = chain
        self._contexts = contexts
        self._elsewhere = elsewhere

    def routes(self) -> list[RouteMatch]:
        return [
            gateway_route(
                "drain", "/admin/drain", json_endpoint(self._drain), scope="operate", methods=("POST",), writes=True
            )
        ]

    async def _drain(self, request: Request) -> Response:
        body = await decode_body(request, DrainBody)
        host = self._hosts.get(body.host)
        if host is None:
            names = ", ".join(self._hosts) or "none"
            raise NotFound(f"{printable(body.host, 100)} is no host; hosts are: {names}")
        remembered = await host.drain(body.draining)
        return json_response(
            DrainView(
                host=host.name,
                draining=body.draining,
                remembered=remembered,
                serving=host.serving,
                loaded=tuple(each.model for each in host.models() if each.phase != "cold"),
                leases=tuple(host.model_leases),
                only_here=await self._only_here(host.name) if body.draining else {},
            )
        )

    async def _only_here(self, name: str) -> dict[str, int]:
        waiting = Counter(
            context.model
            for context in self._contexts()
            if context.model is not None and (context.attempt is None or context.attempt.address is None)
        )
        for each in self._elsewhere:
            await each.refresh()
            waiting.update(view.model for view in each.views() if view.model is not None and view.phase == "waiting")
        placements = (self._catalog.find(card.name) for card in self._catalog.listing.cards)
        return {each.model: waiting[each.model] for each in placements if self._is_only_at(name, each)}

    def _is_only_at(self, name: str, placement: Placement) -> bool:
        others = [place for place in placement.places if place.backend != name]
        return len(others) < len(placement.places) and all(
            self._chain.availability(
                place.backend, place.name_there, place.context, local_only=placement.local_only
            ).reason
            is not None
            for place in others
        )
