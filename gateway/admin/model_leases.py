"""Leases of models over HTTP: list, take, extend and end them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from hostler.adapters.errors import BadRequest, GatewayError, ModelNotFound, NotFound, printable
from hostler.gateway.admin.awake_host import run_awake
from hostler.gateway.admin.http import decode_body, json_endpoint, json_response, run_while_connected
from hostler.gateway.asgi import CLIENT_KEY, RouteMatch
from hostler.gateway.backends.hop import Hop
from hostler.gateway.context import Client
from hostler.gateway.host_choice import HostChoice
from hostler.gateway.model_catalog import Catalog
from hostler.gateway.routing import gateway_route
from hostler.supervisor.contract import LEASE_TOO_LONG, LONGEST_LEASE_S, ModelLease
from hostler.supervisor.scheduling.host import Host

_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")

_Duration = float | str


class LeaseBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Lease `model` on the host `backend`, or the one nearest to serving it. The duration is in seconds, or text such as
    `2h`. `holder` is the client's name if it gives none."""

    model: str
    duration: _Duration = msgspec.field(name="for", default="")
    for_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    holder: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] | None = None
    backend: str | None = None


class ExtendBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From now on the lease lasts so long."""

    duration: _Duration = msgspec.field(name="for", default="")
    for_s: Annotated[float, msgspec.Meta(gt=0)] | None = None


class LeaseView(msgspec.Struct, frozen=True, kw_only=True):
    """A lease of a model on the host `backend`; moments in seconds since the epoch."""

    id: str
    model: str
    backend: str
    holder: str
    created_at: float
    expires_at: float


class ModelLeaseRoutes:
    """`/admin/leases`. Delegates to the hosts; holds no state."""

    def __init__(
        self, catalog: Catalog, hosts: Mapping[str, Host], choice: HostChoice, hops: Mapping[str, Hop]
    ) -> None:
        self._catalog = catalog
        self._hosts = hosts
        self._choice = choice
        self._hops = hops

    def routes(self) -> list[RouteMatch]:
        one = "/admin/leases/{id}"
        return [
            gateway_route("leases", "/admin/leases", json_endpoint(self._list), scope="read"),
            gateway_route(
                "lease", "/admin/leases", json_endpoint(self._take), scope="operate", methods=("POST",), writes=True
            ),
            gateway_route("lease_state", one, json_endpoint(self._get), scope="read"),
            gateway_route(
                "extend_lease",
                one,
                json_endpoint(self._extend),
                scope="operate",
                methods=("POST",),
                writes=True,
            ),
            gateway_route("end_lease", one, json_endpoint(self._end), scope="operate", methods=("DELETE",)),
        ]

    async def _list(self, request: Request) -> Response:
        views = [view_of(name, lease) for name, host in self._hosts.items() for lease in host.model_leases]
        return json_response({"leases": sorted(views, key=lambda view: view.expires_at)})

    async def _get(self, request: Request) -> Response:
        host, lease = self._find(request)
        return json_response(view_of(host.name, lease))

    async def _take(self, request: Request) -> Response:
        """Load the model and lease it; the answer comes when it is loaded. Another lease by the same holder extends it."""
        body = await decode_body(request, LeaseBody)
        client: Client = request.scope[CLIENT_KEY]
        host, model = self._host(body)
        holder, seconds = body.holder or client.name or "operator", _seconds(body)
        lease = await self._while_connected(request, host, model, holder, seconds)
        return json_response(view_of(host.name, lease))

    async def _extend(self, request: Request) -> Response:
        host, lease = self._find(request)
        seconds = _seconds(await decode_body(request, ExtendBody))
        extended = await self._while_connected(request, host, lease.model, lease.holder, seconds)
        return json_response(view_of(host.name, extended))

    async def _end(self, request: Request) -> Response:
        host, lease = self._find(request)
        if await host.end_lease(lease.id) is None:
            raise _unknown(lease.id)
        return json_response({"id": lease.id, "model": lease.model, "ended": True})

    async def _while_connected(
        self, request: Request, host: Host, model: str, holder: str, seconds: float
    ) -> ModelLease:
        """Take the lease unless the client leaves before the model is loaded. Its machine is woken if it is asleep."""
        hop, leases, errors = self._hops[host.name], list[ModelLease](), list[GatewayError]()

        async def take() -> None:
            leases.append(await host.lease_model(model, holder=holder, seconds=seconds))

        async def take_awake() -> None:
            try:
                await run_awake(hop, take)
            except GatewayError as error:
                errors.append(error)

        await run_while_connected(request, take_awake)
        if errors:
            raise errors[0]
        return leases[0]

    def _find(self, request: Request) -> tuple[Host, ModelLease]:
        wanted = request.path_params["id"]
        for host in self._hosts.values():
            for lease in host.model_leases:
                if lease.id == wanted:
                    return host, lease
        raise _unknown(wanted)

    def _host(self, body: LeaseBody) -> tuple[Host, str]:
        placement = self._catalog.find(body.model)
        hosts = [self._hosts[place.backend] for place in placement.places if place.backend in self._hosts]
        if not hosts:
            raise ModelNotFound(
                f"no supervised host has {printable(body.model, 100)}; models of other servers cannot be leased",
                model=body.model,
                param="model",
            )
        names = ", ".join(host.name for host in hosts)
        if body.backend is not None:
            hosts = [host for host in hosts if host.name == body.backend]
            if not hosts:
                raise NotFound(f"no host of that name has {placement.model}; hosts that have it: {names}")
        (nearest, *_) = self._choice.hosts([host.name for host in hosts], placement.model)
        return nearest, placement.model


def view_of(backend: str, lease: ModelLease) -> LeaseView:
    """The lease as clients see it."""
    return LeaseView(
        id=lease.id, model=lease.model, backend=backend, holder=lease.holder, created_at=lease.created_at,
        expires_at=lease.expires_at,
    )  # fmt: skip


def duration_s(text: str) -> float:
    """Seconds, 30 days at most: a number of them, or numbers with units as in `90m`, `2h` or `1d 12h`. Raises `ValueError`."""
    compact = text.strip().lower()
    parts = _PART.findall(compact)
    if not parts or _PART.sub("", compact).strip():
        raise ValueError(f"{text[:40]!r} is no duration; use for example 90m, 2h or 1d")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return _checked(seconds)


def _checked(seconds: float) -> float:
    if seconds <= 0:
        raise ValueError("the duration must be longer than 0")
    if seconds > LONGEST_LEASE_S:
        raise ValueError(LEASE_TOO_LONG)
    return seconds


def _seconds(body: LeaseBody | ExtendBody) -> float:
    name = "for" if body.for_s is None else "for_s"
    if body.for_s is None and body.duration == "":
        raise BadRequest('set how long: "for", in seconds or as in "2h"', param=name)
    try:
        return duration_s(str(body.duration)) if body.for_s is None else _checked(body.for_s)
    except ValueError as error:
        raise BadRequest(f"{name}: {error}", param=name) from None


def _unknown(lease_id: str) -> NotFound:
    return NotFound(f"there is no lease {printable(lease_id, 60)}; GET /admin/leases lists them")
