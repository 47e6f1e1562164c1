"""`GET /admin/backends`: where each backend is, and which models it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from hostler.adapters.model_list import ModelKind
from hostler.gateway.admin.http import json_endpoint, json_response
from hostler.gateway.admin.status import BackendView, ChainView
from hostler.gateway.asgi import RouteMatch
from hostler.gateway.backends.discovery import DiscoveryView
from hostler.gateway.model_catalog import Catalog
from hostler.gateway.routing import gateway_route


class BackendModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model of a backend under our name. `context` in tokens and `quantization` are zero and empty if unknown."""

    name: str
    name_there: str
    kind: ModelKind
    context: int = 0
    capabilities: tuple[str, ...] = ()
    quantization: str = ""


class BackendModelsView(msgspec.Struct, frozen=True, kw_only=True):
    """A backend and its models. `url` is its address without secrets, `None` in this process.

    `prefix` is the path of OpenAI's routes where the configured URL has none and it was found out. `found` is the number of
    models that the backend reported, `asked_at` when it did, in seconds since the epoch; `problem` is why it reports none.
    """

    backend: str
    kind: str
    local: bool
    reachable: bool
    url: str | None = None
    prefix: str | None = None
    found: int | None = None
    asked_at: float | None = None
    problem: str | None = None
    models: tuple[BackendModel, ...] = ()


class BackendModels(msgspec.Struct, frozen=True, kw_only=True):
    """All backends in the order of the chain."""

    backends: tuple[BackendModelsView, ...]


class BackendRoutes:
    """`views` returns the backends and their models."""

    def __init__(self, views: Callable[[], BackendModels]) -> None:
        self._views = views

    def routes(self) -> list[RouteMatch]:
        return [gateway_route("backends", "/admin/backends", json_endpoint(self._backends), scope="read")]

    async def _backends(self, request: Request) -> Response:
        return json_response(self._views())


def backend_models(
    catalog: Catalog, chain: ChainView, urls: Mapping[str, str], discoveries: Mapping[str, DiscoveryView]
) -> BackendModels:
    """The backends of the chain with their models, as listed. `urls` are the addresses of those that are not local."""
    models: dict[str, list[BackendModel]] = {}
    for card in catalog.listing.cards:
        for place in catalog.find(card.name).places:
            models.setdefault(place.backend, []).append(
                BackendModel(
                    name=card.name,
                    name_there=place.name_there,
                    kind=card.kind,
                    context=place.context or card.context,
                    capabilities=card.capabilities,
                    quantization=card.facts.quantization if card.facts is not None else "",
                )
            )
    return BackendModels(
        backends=tuple(
            _view(hop, urls.get(hop.backend), discoveries.get(hop.backend), tuple(models.get(hop.backend, ())))
            for hop in chain.hops
        )
    )


def _view(
    hop: BackendView, url: str | None, discovery: DiscoveryView | None, models: tuple[BackendModel, ...]
) -> BackendModelsView:
    view = BackendModelsView(
        backend=hop.backend, kind=hop.kind, local=hop.local, reachable=hop.reachable, url=url, models=models
    )
    if discovery is None:
        return view
    return msgspec.structs.replace(
        view,
        prefix=discovery.prefix,
        found=len(discovery.models),
        asked_at=discovery.at,
        problem=discovery.problem,
    )
