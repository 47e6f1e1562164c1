"""What operators may order: load, unload, pin, cancel; and what they may ask first."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from hostler.adapters.errors import ModelNotFound, NotFound
from hostler.gateway.asgi import Claim
from hostler.gateway.catalog import Catalog
from hostler.gateway.desk.answers import body, json_response, plain, while_there
from hostler.gateway.edge import InProgress
from hostler.gateway.events import printable
from hostler.gateway.routes import own_claim
from hostler.gateway.switching.forecast import Forecast
from hostler.gateway.switching.orchestrator import Orchestrator


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of an operator call."""

    model: str


class UnloadOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of an unload. With `force` (the default) answers in progress are cut off, else they end first."""

    model: str
    force: bool = True


class PinOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a pin: on the host `backend`, else on every one that has the model."""

    model: str
    pinned: bool = True
    backend: str | None = None


class CancelOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a cancellation: the request's id, as `X-Request-ID`, the log and `/events` tell it."""

    id: str


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """What would happen if the model were asked for now, on each host that has it; the first one would be asked."""

    model: str
    hosts: dict[str, Forecast]


class Operating:
    """Answers the routes below `/admin/` that change something. It asks the owners to; it owns nothing."""

    def __init__(self, catalog: Catalog, hosts: Mapping[str, Orchestrator], in_progress: InProgress) -> None:
        self._catalog = catalog
        self._hosts = hosts
        self._in_progress = in_progress

    def claims(self) -> list[Claim]:
        """The routes."""
        return [
            own_claim("load", "/admin/load", plain(self._load), scope="operate", methods=("POST",), writes=True),
            own_claim("unload", "/admin/unload", plain(self._unload), scope="operate", methods=("POST",), writes=True),
            own_claim("pin", "/admin/pin", plain(self._pin), scope="operate", methods=("POST",), writes=True),
            own_claim("cancel", "/admin/cancel", plain(self._cancel), scope="operate", methods=("POST",), writes=True),
            own_claim("forecast", "/admin/forecast", plain(self._forecast), scope="read"),
        ]

    async def _load(self, request: Request) -> Response:
        model, hosts = self._hosts_of((await body(request, Order)).model)
        turn = min(hosts, key=lambda host: host.nearness(model)).ask(model, client="operator")

        async def come() -> None:
            while not await turn.wait(60.0):
                turn.news()

        try:
            await while_there(request, come)
            turn.address()
        finally:
            turn.give_back()
        return json_response({"model": model, "state": "loaded"})

    async def _unload(self, request: Request) -> Response:
        order = await body(request, UnloadOrder)
        model, hosts = self._hosts_of(order.model)
        for host in hosts:
            await host.unload(model, force=order.force)
        state = "draining" if any(host.serves(model) for host in hosts) and not order.force else "unloaded"
        return json_response({"model": model, "state": state})

    async def _pin(self, request: Request) -> Response:
        """A pinned model stays loaded: it makes room for nobody, and no idle time ends it. Nothing is loaded by this."""
        order = await body(request, PinOrder)
        model, hosts = self._hosts_of(order.model)
        if order.backend is not None:
            names = ", ".join(host.name for host in hosts)
            hosts = [host for host in hosts if host.name == order.backend]
            if not hosts:
                raise NotFound(f"no host of that name has {model}; these have it: {names}")
        remembered = [await host.pin(model, order.pinned) for host in hosts]
        told = {"model": model, "pinned": order.pinned, "backends": [host.name for host in hosts]}
        return json_response({**told, "remembered": all(remembered)})

    async def _cancel(self, request: Request) -> Response:
        order = await body(request, CancelOrder)
        cancelled = self._in_progress.cancel(order.id)
        if not cancelled:
            raise NotFound("no request with this id is in progress; GET /events tells the ids of those that wait")
        return json_response({"id": order.id, "cancelled": cancelled})

    async def _forecast(self, request: Request) -> Response:
        """What an operator wants to know before a switch: who goes, who waits, for how long."""
        model, hosts = self._hosts_of(request.query_params.get("model", ""))
        nearest = sorted(hosts, key=lambda host: host.nearness(model))
        told = {host.name: view for host in nearest if (view := host.forecast(model)) is not None}
        return json_response(Outlook(model=model, hosts=told))

    def _hosts_of(self, name: str) -> tuple[str, list[Orchestrator]]:
        """The model's own name, and every host with a supervisor that has it, in the order of the chain."""
        placement = self._catalog.find(name)
        hosts = [self._hosts[place.backend] for place in placement.places if place.backend in self._hosts]
        if not hosts:
            raise ModelNotFound(
                f"no host with a supervisor has {printable(name, 100)}: where other servers answer for it, nothing has to be "
                "loaded, stopped or pinned",
                model=name,
                param="model",
            )
        return placement.model, hosts
