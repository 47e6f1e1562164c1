"""Operators' actions over HTTP: load, unload, pin, cancel, and the forecast of a load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from hostler.adapters.errors import GatewayError, ModelNotFound, NotFound
from hostler.gateway.admin.awake_host import run_awake
from hostler.gateway.admin.http import decode_body, json_endpoint, json_response, run_while_connected
from hostler.gateway.asgi import RouteMatch
from hostler.gateway.backends.hop import Hop
from hostler.gateway.events import printable
from hostler.gateway.host_choice import HostChoice
from hostler.gateway.in_flight import OtherRequests
from hostler.gateway.middleware.request_context import InFlightRequests
from hostler.gateway.model_catalog import Catalog
from hostler.gateway.routing import gateway_route
from hostler.supervisor.scheduling.estimates import SwitchEstimate
from hostler.supervisor.scheduling.host import Host


class LoadBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str


class UnloadBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """With `force` (the default) answers in progress are cut off; without it the model is unloaded after them."""

    model: str
    force: bool = True


class PinBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Applies to the host `backend`, or to every host that has the model."""

    model: str
    pinned: bool = True
    backend: str | None = None


class CancelBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`id` is the one in `X-Request-ID`, the log and `/events`."""

    id: str


class ForecastView(msgspec.Struct, frozen=True, kw_only=True):
    """The forecast of a request for the model, by host; the first host would serve it."""

    model: str
    hosts: dict[str, SwitchEstimate]


class ActionRoutes:
    """Load, unload, pin and cancel, and the forecast of a load. Delegates to the hosts; holds no state."""

    def __init__(
        self,
        catalog: Catalog,
        hosts: Mapping[str, Host],
        choice: HostChoice,
        hops: Mapping[str, Hop],
        in_progress: InFlightRequests,
        elsewhere: Sequence[OtherRequests] = (),
    ) -> None:
        self._catalog = catalog
        self._hosts = hosts
        self._choice = choice
        self._hops = hops
        self._in_progress = in_progress
        self._elsewhere = elsewhere

    def routes(self) -> list[RouteMatch]:
        return [
            gateway_route(
                "load", "/admin/load", json_endpoint(self._load), scope="operate", methods=("POST",), writes=True
            ),
            gateway_route(
                "unload", "/admin/unload", json_endpoint(self._unload), scope="operate", methods=("POST",), writes=True
            ),
            gateway_route(
                "pin", "/admin/pin", json_endpoint(self._pin), scope="operate", methods=("POST",), writes=True
            ),
            gateway_route(
                "cancel", "/admin/cancel", json_endpoint(self._cancel), scope="operate", methods=("POST",), writes=True
            ),
            gateway_route("forecast", "/admin/forecast", json_endpoint(self._forecast), scope="read"),
        ]

    async def _load(self, request: Request) -> Response:
        model, hosts = self._hosts_of((await decode_body(request, LoadBody)).model)
        (nearest, *_) = self._choice.hosts([host.name for host in hosts], model)
        hop, errors = self._hops[nearest.name], list[GatewayError]()

        async def loaded() -> None:
            lease = nearest.lease(model, client="operator")
            try:
                while not await lease.wait(60.0):
                    lease.take_notification()
                lease.address()
            finally:
                lease.release()

        async def load() -> None:
            try:
                await run_awake(hop, loaded)
            except GatewayError as error:
                errors.append(error)

        await run_while_connected(request, load)
        if errors:
            raise errors[0]
        return json_response({"model": model, "state": "loaded"})

    async def _unload(self, request: Request) -> Response:
        unload = await decode_body(request, UnloadBody)
        model, hosts = self._hosts_of(unload.model)
        for host in hosts:
            await host.unload(model, force=unload.force)
        state = "draining" if any(host.is_serving(model) for host in hosts) and not unload.force else "unloaded"
        return json_response({"model": model, "state": state})

    async def _pin(self, request: Request) -> Response:
        """A pinned model is never evicted or unloaded for idleness. Pinning does not load it."""
        pin = await decode_body(request, PinBody)
        model, hosts = self._hosts_of(pin.model)
        if pin.backend is not None:
            names = ", ".join(host.name for host in hosts)
            hosts = [host for host in hosts if host.name == pin.backend]
            if not hosts:
                raise NotFound(f"no host of that name has {model}; hosts that have it: {names}")
        remembered = [await host.pin(model, pin.pinned) for host in hosts]
        return json_response(
            {
                "model": model,
                "pinned": pin.pinned,
                "backends": [host.name for host in hosts],
                "remembered": all(remembered),
            }
        )

    async def _cancel(self, request: Request) -> Response:
        cancel = await decode_body(request, CancelBody)
        cancelled = self._in_progress.cancel(cancel.id)
        for others in self._elsewhere:
            cancelled += await others.cancel(cancel.id)
        if not cancelled:
            if (gateway := self._gateway_of(cancel.id)) is not None:
                raise NotFound(
                    f"the request is in progress at gateway {gateway}, which does not answer this one; try again, or cancel "
                    "it there"
                )
            raise NotFound("no request with this id is in progress; GET /admin/status lists those that are")
        return json_response({"id": cancel.id, "cancelled": cancelled})

    def _gateway_of(self, request_id: str) -> str | None:
        """The other gateway of the cluster at which a request is in progress, as far as is known."""
        views = (view for others in self._elsewhere for view in others.views())
        return next((view.gateway for view in views if view.id == request_id), None)

    async def _forecast(self, request: Request) -> Response:
        """The effects of a load: which models are unloaded, which requests wait, and for how long."""
        model, hosts = self._hosts_of(request.query_params.get("model", ""))
        nearest = self._choice.hosts([host.name for host in hosts], model)
        forecasts = {host.name: view for host in nearest if (view := await host.estimate_switch(model)) is not None}
        return json_response(ForecastView(model=model, hosts=forecasts))

    def _hosts_of(self, name: str) -> tuple[str, list[Host]]:
        """The canonical name, and every supervised host that has the model, in the order of the chain."""
        placement = self._catalog.find(name)
        hosts = [self._hosts[place.backend] for place in placement.places if place.backend in self._hosts]
        if not hosts:
            raise ModelNotFound(
                f"no supervised host has {printable(name, 100)}; models of other servers cannot be loaded, unloaded or pinned",
                model=name,
                param="model",
            )
        return placement.model, hosts
