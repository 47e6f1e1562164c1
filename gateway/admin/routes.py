"""The gateway's own routes that only look: health, status, events, history, and the description of all routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import request_response

from hostler.adapters.errors import GatewayError, ModelNotFound, NotFound
from hostler.gateway.admin.http import body, json_response, plain, while_there, whole_number
from hostler.gateway.admin.status import Status, StatusView, without_facts
from hostler.gateway.asgi import RouteMatch
from hostler.gateway.backends.chain import Chain, RouteHop
from hostler.gateway.catalog import Catalog, Placement
from hostler.gateway.events import Event, HostChanged, printable
from hostler.gateway.middleware.request_context import InFlightRequests
from hostler.gateway.routing import gateway_route
from hostler.gateway.scheduling.estimates import SwitchEstimate
from hostler.gateway.scheduling.orchestrator import Orchestrator
from hostler.gateway.telemetry.event_stream import EventStream, frame
from hostler.gateway.telemetry.history import KINDS, History
from hostler.gateway.telemetry.transcripts import Transcripts


class TranscriptRoutes:
    """Answers the route. `contents` is `None` while nothing is recorded."""

    def __init__(self, contents: Transcripts | None) -> None:
        self._contents = contents

    def claims(self) -> list[RouteMatch]:
        """The route, for operators only: whoever may look at figures may not read what others say."""
        return [gateway_route("contents", "/admin/contents", plain(self._tell), scope="operate")]

    async def _tell(self, request: Request) -> Response:
        if self._contents is None:
            raise NotFound("prompts and answers are not recorded; gateway.recording.contents switches it on")
        found = await self._contents.find(request.query_params.get("id", ""))
        if not found:
            raise NotFound("nothing is recorded under this id, or not any more")
        return json_response(found)


#: How often it is looked whether something moved that tells no event of its own, while somebody watches, in seconds.
UPDATE_INTERVAL_S = 0.5

#: Proxies and browsers give up on streams that are silent for much longer than this, in seconds.
_PING_S = 15


class Dashboard:
    """Answers what people and their tools ask about the gateway. `run` keeps the streams going."""

    def __init__(
        self,
        status: Status,
        hosts: Mapping[str, Orchestrator],
        history: History,
        *,
        metrics: Callable[[], Awaitable[bytes]],
        version: str,
    ) -> None:
        self._status = status
        self._hosts = hosts
        self._history = history
        self._metrics = metrics
        self._version = version
        self._description = b"{}"
        self._frames = EventStream()

    def claims(self) -> list[RouteMatch]:
        """The routes. Only `/healthz` needs no key, and it tells nothing."""
        return [
            gateway_route("health", "/healthz", plain(self._healthz), scope="open"),
            gateway_route("ready", "/readyz", plain(self._readyz), scope="read"),
            gateway_route("metrics", "/metrics", plain(self._tell_metrics), scope="read"),
            gateway_route("root", "/", plain(self._root), scope="read"),
            gateway_route("status", "/admin/status", plain(self._tell_status), scope="read"),
            gateway_route("history", "/admin/history", plain(self._tell_history), scope="read"),
            gateway_route("figures", "/admin/figures", plain(self._tell_figures), scope="read"),
            gateway_route("events", "/events", plain(self._events), scope="read"),
            gateway_route("description", "/openapi.json", plain(self._openapi), scope="read"),
        ]

    def hear(self, event: Event) -> None:
        """A listener for the bus: an event is encoded once for everybody who watches, and not at all if nobody does."""
        if not self._frames.watched:
            return
        if isinstance(event, HostChanged) and event.host is not None:
            event = msgspec.structs.replace(event, host=without_facts(event.host))
        self._frames.add(frame(str(event.__struct_config__.tag), event))

    def close(self) -> None:
        """End every stream."""
        self._frames.close()

    async def run(self) -> None:
        """Tell what moves without an event, while somebody watches, until cancelled."""
        told = b""
        while True:
            await self._frames.until_watched()
            pulse = frame("update", self._status.update())
            if pulse != told:
                told = pulse
                self._frames.add(pulse)
            await anyio.sleep(UPDATE_INTERVAL_S)

    def status(self) -> StatusView:
        """The whole gateway, now."""
        return self._status.view()

    def describe(self, claims: Iterable[RouteMatch]) -> None:
        """Build `/openapi.json` from every route there is; a path that also takes a trailing slash is told once."""
        paths: dict[str, dict[str, object]] = {}
        claims = list(claims)
        known = {claim.operation.path for claim in claims}
        for claim in claims:
            operation = claim.operation
            if operation.path != "/" and operation.path.endswith("/") and operation.path.rstrip("/") in known:
                continue
            if operation.scope == "open" and operation.name != "health":
                continue  # the page's door, for browsers
            if operation.scope == "open" and claim.adapter is not None:
                continue  # another server's sign of life, kept for its clients: nothing to be described as ours
            owner = claim.adapter.name if claim.adapter else "hostler"
            path = operation.path.replace(":path}", "}")
            for method in operation.methods:
                entry: dict[str, object] = {
                    "operationId": f"{owner}.{operation.name}.{method.lower()}.{path.strip('/').replace('/', '.')}",
                    "tags": [owner],
                    "responses": {"default": {"description": f"as {owner} answers"}},
                }
                if operation.scope != "open":
                    entry["security"] = [{"key": [operation.scope]}]
                paths.setdefault(path, {})[method.lower()] = entry
        self._description = msgspec.json.encode(
            {
                "openapi": "3.1.0",
                "info": {"title": "Hostler", "version": self._version},
                "paths": paths,
                "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
            }
        )

    async def _healthz(self, request: Request) -> Response:
        return json_response({"status": "ok"})

    async def _readyz(self, request: Request) -> Response:
        """Ready as soon as every host has been heard of: until then, models may be missing from lists."""
        silent = [name for name, host in self._hosts.items() if not host.reachable]
        return json_response({"ready": not silent, "unreachable": silent}, status=503 if silent else 200)

    async def _tell_metrics(self, request: Request) -> Response:
        return Response(await self._metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _root(self, request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("/ui/", status_code=307)
        return Response("Ollama is running", media_type="text/plain")

    async def _openapi(self, request: Request) -> Response:
        return Response(self._description, media_type="application/json")

    async def _tell_status(self, request: Request) -> Response:
        return json_response(self.status())

    async def _tell_history(self, request: Request) -> Response:
        """The last things of a kind, the newest first; `before` is the `n` of the last one of the page before."""
        kind = request.query_params.get("kind", "requests")
        for known in KINDS:
            if kind == known:
                limit = whole_number(request, "limit", 200, least=1, most=1000)
                before = whole_number(request, "before", 2**62, least=1, most=2**62)
                return json_response(await self._history.past(known, limit=limit, before=before))
        raise NotFound(f"there is no history of that kind; there are: {', '.join(KINDS)}")

    async def _tell_figures(self, request: Request) -> Response:
        """The last minutes in stretches of equal length."""
        minutes = whole_number(request, "minutes", 60, least=1, most=31 * 24 * 60)
        buckets = whole_number(request, "buckets", 60, least=1, most=500)
        return json_response(await self._history.figures(seconds=minutes * 60.0, buckets=buckets))

    async def _events(self, request: Request) -> Response:
        """A snapshot first, then changes; a reader that was too slow gets a new snapshot instead of what it missed."""
        from sse_starlette.sse import EventSourceResponse

        async def stream() -> AsyncIterator[bytes]:
            with self._frames.reader() as pieces:
                yield frame("snapshot", self.status())
                async for piece in pieces:
                    yield frame("snapshot", self.status()) if piece is None else piece

        return EventSourceResponse(stream(), ping=_PING_S, headers={"Cache-Control": "no-store"})


class RouteView(msgspec.Struct, frozen=True, kw_only=True):
    """The way of a request for `model`: its hops in order, and the one that would be asked first, if any."""

    model: str
    local_only: bool
    first: str | None
    hops: tuple[RouteHop, ...]
    cost_today: float


class Route:
    """Answers the one question. `find` is the catalogue's."""

    def __init__(self, find: Callable[[str | None], Placement], chain: Chain) -> None:
        self._find = find
        self._chain = chain

    def claim(self) -> RouteMatch:
        """The route, for keys that may read."""
        return gateway_route("route", "/admin/route", request_response(self._answer), scope="read")

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
            first=next((hop.backend for hop in hops if hop.reason is None), None),
            hops=hops,
            cost_today=round(self._chain.spending.today, 6),
        )
        return Response(msgspec.json.encode(view), media_type="application/json")


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
    hosts: dict[str, SwitchEstimate]


class Operating:
    """Answers the routes below `/admin/` that change something. It asks the owners to; it owns nothing."""

    def __init__(self, catalog: Catalog, hosts: Mapping[str, Orchestrator], in_progress: InFlightRequests) -> None:
        self._catalog = catalog
        self._hosts = hosts
        self._in_progress = in_progress

    def claims(self) -> list[RouteMatch]:
        """The routes."""
        return [
            gateway_route("load", "/admin/load", plain(self._load), scope="operate", methods=("POST",), writes=True),
            gateway_route(
                "unload", "/admin/unload", plain(self._unload), scope="operate", methods=("POST",), writes=True
            ),
            gateway_route("pin", "/admin/pin", plain(self._pin), scope="operate", methods=("POST",), writes=True),
            gateway_route(
                "cancel", "/admin/cancel", plain(self._cancel), scope="operate", methods=("POST",), writes=True
            ),
            gateway_route("forecast", "/admin/forecast", plain(self._forecast), scope="read"),
        ]

    async def _load(self, request: Request) -> Response:
        model, hosts = self._hosts_of((await body(request, Order)).model)
        lease = min(hosts, key=lambda host: host.distance(model)).lease(model, client="operator")

        async def come() -> None:
            while not await lease.wait(60.0):
                lease.take_notification()

        try:
            await while_there(request, come)
            lease.address()
        finally:
            lease.release()
        return json_response({"model": model, "state": "loaded"})

    async def _unload(self, request: Request) -> Response:
        order = await body(request, UnloadOrder)
        model, hosts = self._hosts_of(order.model)
        for host in hosts:
            await host.unload(model, force=order.force)
        state = "draining" if any(host.is_serving(model) for host in hosts) and not order.force else "unloaded"
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
        nearest = sorted(hosts, key=lambda host: host.distance(model))
        told = {host.name: view for host in nearest if (view := host.estimate_switch(model)) is not None}
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
