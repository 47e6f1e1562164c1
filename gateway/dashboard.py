"""The gateway's own routes: health, status, events, operator calls, and a page for people."""

from __future__ import annotations

import html
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import request_response

from hostler.adapters.errors import BadRequest, GatewayError, ModelNotFound, NotFound
from hostler.adapters.listing import ModelCard
from hostler.gateway.asgi import ASGIApp, Claim
from hostler.gateway.catalog import Catalog
from hostler.gateway.edge import InProgress
from hostler.gateway.events import Bus, Waiting
from hostler.gateway.routes import Surface, own_claim
from hostler.gateway.switching.orchestrator import Orchestrator
from hostler.supervisor.contract import HostStatus

if TYPE_CHECKING:
    from sse_starlette.event import ServerSentEvent

Endpoint = Callable[[Request], Awaitable[Response]]

_Body = TypeVar("_Body", bound=msgspec.Struct)

#: The page needs nothing but its own style sheet, so nothing else is allowed to load, run or frame it.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """A host in the status. `reachable` is false while its supervisor does not answer; `host` is the last known.

    `queue` is who waits, in the order of service.
    """

    backend: str
    reachable: bool
    host: HostStatus | None
    waiting: int
    serving: int
    queue: tuple[Waiting, ...] = ()


class StatusView(msgspec.Struct, frozen=True, kw_only=True):
    """The whole gateway at one moment, as `GET /admin/status` tells it."""

    version: str
    active: str | None
    default: str | None
    models: tuple[ModelCard, ...]
    hosts: tuple[HostView, ...]


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of an operator call."""

    model: str


class UnloadOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of an unload. With `force` (the default) answers in progress are cut off, else they end first."""

    model: str
    force: bool = True


class CancelOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a cancellation: the request's id, as `X-Request-ID`, the log and `/events` tell it."""

    id: str


class Dashboard:
    """Answers the gateway's own routes. It reads the catalogue and asks hosts; it owns nothing."""

    def __init__(
        self,
        catalog: Catalog,
        hosts: Mapping[str, Orchestrator],
        bus: Bus,
        in_progress: InProgress,
        *,
        metrics: Callable[[], bytes],
        version: str,
    ) -> None:
        self._catalog = catalog
        self._hosts = hosts
        self._bus = bus
        self._in_progress = in_progress
        self._metrics = metrics
        self._version = version
        self._description = b"{}"

    def claims(self) -> list[Claim]:
        """The gateway's own routes. Only `/healthz` needs no key, and it tells nothing."""
        return [
            own_claim("health", "/healthz", _plain(self._healthz), scope="open"),
            own_claim("ready", "/readyz", _plain(self._readyz), scope="read"),
            own_claim("metrics", "/metrics", _plain(self._tell_metrics), scope="read"),
            own_claim("root", "/", _plain(self._root), scope="read"),
            own_claim("page", "/ui/", _plain(self._page), scope="read"),
            own_claim("style", "/ui/style.css", _plain(self._style), scope="read"),
            own_claim("status", "/admin/status", _plain(self._status), scope="read"),
            own_claim("events", "/events", _plain(self._events), scope="read"),
            own_claim("description", "/openapi.json", _plain(self._openapi), scope="read"),
            own_claim("load", "/admin/load", _plain(self._load), scope="operate", methods=("POST",), writes=True),
            own_claim("unload", "/admin/unload", _plain(self._unload), scope="operate", methods=("POST",), writes=True),
            own_claim("cancel", "/admin/cancel", _plain(self._cancel), scope="operate", methods=("POST",), writes=True),
        ]

    def describe(self, surface: Surface) -> None:
        """Build `/openapi.json` from every route there is."""
        paths: dict[str, dict[str, object]] = {}
        for claim in surface.claims():
            operation = claim.operation
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
        return _json({"status": "ok"})

    async def _readyz(self, request: Request) -> Response:
        """Ready as soon as every host has been heard of: until then, models may be missing from lists."""
        silent = [name for name, host in self._hosts.items() if not host.reachable]
        return _json({"ready": not silent, "silent": silent}, status=503 if silent else 200)

    async def _tell_metrics(self, request: Request) -> Response:
        return Response(self._metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _root(self, request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("/ui/", status_code=307)
        return Response("Ollama is running", media_type="text/plain")

    async def _openapi(self, request: Request) -> Response:
        return Response(self._description, media_type="application/json")

    async def _status(self, request: Request) -> Response:
        return _json(self.status())

    def status(self) -> StatusView:
        """The whole gateway, now."""
        listing = self._catalog.listing
        return StatusView(
            version=self._version,
            active=listing.active,
            default=listing.default,
            models=tuple(msgspec.structs.replace(card, facts=None) for card in listing.cards),
            hosts=tuple(
                HostView(
                    backend=name,
                    reachable=host.reachable,
                    host=host.status,
                    waiting=host.waiting,
                    serving=host.serving,
                    queue=host.queue(),
                )
                for name, host in self._hosts.items()
            ),
        )

    async def _events(self, request: Request) -> Response:
        """A snapshot first, then changes; a reader that is too slow loses the oldest ones and gets a new snapshot."""
        from sse_starlette.event import ServerSentEvent
        from sse_starlette.sse import EventSourceResponse

        subscription = self._bus.subscribe()

        def encoded(kind: str, value: object) -> ServerSentEvent:
            return ServerSentEvent(event=kind, data=msgspec.json.encode(value).decode())

        async def stream() -> AsyncIterator[ServerSentEvent]:
            lost = 0
            try:
                yield encoded("snapshot", self.status())
                async for event in subscription:
                    if subscription.lost != lost:
                        lost = subscription.lost
                        yield encoded("snapshot", self.status())
                    yield encoded(event.__struct_config__.tag or "event", event)  # type: ignore[arg-type]
            finally:
                self._bus.unsubscribe(subscription)

        return EventSourceResponse(stream(), ping=15, headers={"Cache-Control": "no-store"})

    async def _load(self, request: Request) -> Response:
        model, hosts = self._hosts_of((await _body(request, Order)).model)
        turn = min(hosts, key=lambda host: host.nearness(model)).ask(model, client="operator")
        try:
            while not await turn.wait(60.0):
                turn.news()
            turn.address()
        finally:
            turn.give_back()
        return _json({"model": model, "state": "loaded"})

    async def _unload(self, request: Request) -> Response:
        order = await _body(request, UnloadOrder)
        model, hosts = self._hosts_of(order.model)
        for host in hosts:
            await host.unload(model, force=order.force)
        state = "draining" if any(host.serves(model) for host in hosts) and not order.force else "unloaded"
        return _json({"model": model, "state": state})

    async def _cancel(self, request: Request) -> Response:
        order = await _body(request, CancelOrder)
        cancelled = self._in_progress.cancel(order.id)
        if not cancelled:
            raise NotFound("no request with this id is in progress; GET /events tells the ids of those that wait")
        return _json({"id": order.id, "cancelled": cancelled})

    def _hosts_of(self, name: str) -> tuple[str, list[Orchestrator]]:
        """The model's own name, and every host with a supervisor that has it, in the order of the chain."""
        placement = self._catalog.find(name)
        hosts = [self._hosts[place.backend] for place in placement.places if place.backend in self._hosts]
        if not hosts:
            raise ModelNotFound("no host with a supervisor has it", model=name, param="model")
        return placement.model, hosts

    async def _style(self, request: Request) -> Response:
        return Response(_STYLE, media_type="text/css", headers=_PAGE_HEADERS)

    async def _page(self, request: Request) -> Response:
        body = _page(self.status(), str(request.base_url).rstrip("/"))
        return Response(body, media_type="text/html", headers=_PAGE_HEADERS)


async def _body(request: Request, kind: type[_Body]) -> _Body:
    """What to do. Raises `BadRequest` with the fields that can be given."""
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except msgspec.MsgspecError as error:
        fields = ", ".join(kind.__struct_fields__)
        raise BadRequest(f"send a JSON object with {fields}: {error}") from error


def _plain(endpoint: Endpoint) -> ASGIApp:
    """The endpoint as an ASGI application; errors become JSON."""

    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except GatewayError as error:
            return _json({"error": {"message": error.message, "code": error.code}}, status=error.status)

    app: Any = request_response(guarded)
    typed: ASGIApp = app
    return typed


def _json(value: object, *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")


def _page(status: StatusView, address: str) -> str:
    """The page: what runs, what could, and what to paste into a client. Everything from outside is escaped."""
    rows = "".join(
        f"<tr><th scope='row'>{_text(card.name)}</th><td class='{card.state}'>{card.state}</td>"
        f"<td>{card.context:,}</td><td>{_text(', '.join(card.aliases)) or '–'}</td>"
        f"<td>{_text(card.failure or card.description) or '–'}</td></tr>"
        for card in status.models
    )
    hosts = "".join(
        f"<tr><th scope='row'>{_text(view.backend)}</th><td>{'reachable' if view.reachable else 'silent'}</td>"
        f"<td>{view.serving}</td><td>{view.waiting}</td></tr>"
        for view in status.hosts
    )
    where = _text(address)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="5"><title>Hostler</title><link rel="stylesheet" href="/ui/style.css"></head>
<body><main><h1>Hostler <small>{_text(status.version)}</small></h1>
<h2>Models</h2><div class="scroll"><table><thead><tr><th scope="col">model</th><th scope="col">state</th>
<th scope="col">context</th><th scope="col">aliases</th><th scope="col">note</th></tr></thead><tbody>{rows}</tbody></table></div>
<h2>Hosts</h2><div class="scroll"><table><thead><tr><th scope="col">host</th><th scope="col">supervisor</th>
<th scope="col">serving</th><th scope="col">waiting</th></tr></thead><tbody>{hosts}</tbody></table></div>
<h2>Connect</h2><pre>OPENAI_BASE_URL={where}/v1
OLLAMA_HOST={where}</pre></main></body></html>"""


def _text(value: str) -> str:
    return html.escape(value, quote=True)


_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 0; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 small { font-weight: normal; font-size: 0.5em; opacity: 0.7; }
h2 { margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 0.4rem 0.8rem 0.4rem 0; border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
thead th { font-weight: normal; opacity: 0.7; }
.loaded { font-weight: 600; color: #1a7f37; }
.loading { font-weight: 600; color: #9a6700; }
.failed { font-weight: 600; color: #cf222e; }
@media (prefers-color-scheme: dark) { .loaded { color: #3fb950; } .loading { color: #d29922; } .failed { color: #f85149; } }
pre { padding: 1rem; overflow-x: auto; border: 1px solid color-mix(in srgb, currentColor 20%, transparent); border-radius: 0.4rem; }
"""
