"""The gateway's read-only routes: health, readiness, metrics, status, history, events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from hostler.adapters.errors import NotFound
from hostler.gateway.admin.http import int_param, json_endpoint, json_response, page_url
from hostler.gateway.admin.openapi import openapi
from hostler.gateway.admin.status import StatusBuilder, without_facts
from hostler.gateway.asgi import RouteMatch
from hostler.gateway.events import Event, FinishedElsewhere, HostChanged, ModelsChanged
from hostler.gateway.routing import gateway_route
from hostler.gateway.telemetry.event_stream import EventStream, frame
from hostler.gateway.telemetry.history import KINDS, History
from hostler.supervisor.scheduling.host import Host

#: How often changes without an event of their own are looked for, while `/events` has readers, in seconds.
UPDATE_INTERVAL_S = 0.5

#: Proxies and browsers drop streams that are silent for much longer than this, in seconds.
_PING_S = 15


class StatusRoutes:
    """Pass every event of the bus to `on_event`; `run` sends updates to the readers of `/events` until cancelled."""

    def __init__(
        self,
        status: StatusBuilder,
        hosts: Mapping[str, Host],
        history: History,
        *,
        metrics: Callable[[], Awaitable[bytes]],
        version: str,
    ) -> None:
        self._status = status
        self._hosts = hosts
        self._history = history
        self._render_metrics = metrics
        self._version = version
        self._openapi_json = b"{}"
        self._closed = False
        self._stream = EventStream()

    def routes(self) -> list[RouteMatch]:
        """Only `/healthz` needs no key, and it reveals nothing."""
        return [
            gateway_route("health", "/healthz", json_endpoint(self._healthz), scope="open"),
            gateway_route("ready", "/readyz", json_endpoint(self._readyz), scope="read"),
            gateway_route("metrics", "/metrics", json_endpoint(self._metrics), scope="read"),
            gateway_route("root", "/", json_endpoint(self._root), scope="read"),
            gateway_route("status", "/admin/status", json_endpoint(self._get_status), scope="read"),
            gateway_route("history", "/admin/history", json_endpoint(self._get_history), scope="read"),
            gateway_route("figures", "/admin/figures", json_endpoint(self._figures), scope="read"),
            gateway_route("events", "/events", json_endpoint(self._events), scope="read"),
            gateway_route("description", "/openapi.json", json_endpoint(self._openapi), scope="read"),
        ]

    def on_event(self, event: Event) -> None:
        """Encode an event once for all readers of `/events`, and not at all without readers."""
        if not self._stream.readers:
            return
        if isinstance(event, ModelsChanged):
            self._stream.add(frame("snapshot", self._status.view()))  # updates contain no models
            return
        if isinstance(event, FinishedElsewhere):
            event = event.request
        if isinstance(event, HostChanged) and event.host is not None:
            event = msgspec.structs.replace(event, host=without_facts(event.host))
        self._stream.add(frame(str(event.__struct_config__.tag), event))

    def close(self) -> None:
        """End every stream, and report not ready."""
        self._closed = True
        self._stream.close()

    async def run(self) -> None:
        last = b""
        while True:
            await self._stream.wait_for_reader()
            await self._status.refresh()
            update = frame("update", self._status.update())
            if update != last:
                last = update
                self._stream.add(update)
            await anyio.sleep(UPDATE_INTERVAL_S)

    def describe(self, routes: Iterable[RouteMatch]) -> None:
        """Build `/openapi.json` from all routes."""
        self._openapi_json = openapi(routes, version=self._version)

    async def _healthz(self, request: Request) -> Response:
        return json_response({"status": "ok"})

    async def _readyz(self, request: Request) -> Response:
        """Ready once every supervisor has been reached, since models may be missing from lists before; not while stopping.

        `degraded` names what works with restrictions: `configuration` while the file has mistakes, `store` while the
        cluster's store is away, `workers` while one of them is started again.
        """
        unreachable = [name for name, host in self._hosts.items() if not host.reachable]
        ready = not (unreachable or self._closed)
        body: dict[str, object] = {"ready": ready, "unreachable": unreachable}
        cluster = self._status.cluster()
        degraded = {
            "configuration": self._status.config_errors() is not None,
            "store": cluster is not None and not cluster.connected,
            "workers": self._status.is_worker_missing,
        }
        if any(degraded.values()):
            body["degraded"] = [name for name, restricts in degraded.items() if restricts]
        return json_response(body, status=200 if ready else 503)

    async def _metrics(self, request: Request) -> Response:
        await self._status.refresh()
        return Response(await self._render_metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _root(self, request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(page_url(request), status_code=307)
        return Response("Ollama is running", media_type="text/plain")  # Ollama's clients check for this text

    async def _openapi(self, request: Request) -> Response:
        return Response(self._openapi_json, media_type="application/json")

    async def _get_status(self, request: Request) -> Response:
        await self._status.refresh()
        return json_response(self._status.view())

    async def _get_history(self, request: Request) -> Response:
        """The latest entries of a kind, newest first; `before` is the `n` of the last entry of the previous page."""
        kind = request.query_params.get("kind", "requests")
        for known in KINDS:
            if kind == known:
                limit = int_param(request, "limit", 200, minimum=1, maximum=1000)
                before = int_param(request, "before", 2**62, minimum=1, maximum=2**62)
                await self._status.refresh()
                return json_response(await self._history.entries(known, limit=limit, before=before))
        raise NotFound(f"unknown kind of history; known: {', '.join(KINDS)}")

    async def _figures(self, request: Request) -> Response:
        """The last minutes in buckets of equal length."""
        minutes = int_param(request, "minutes", 60, minimum=1, maximum=31 * 24 * 60)
        buckets = int_param(request, "buckets", 60, minimum=1, maximum=500)
        await self._status.refresh()
        return json_response(await self._history.figures(seconds=minutes * 60.0, buckets=buckets))

    async def _events(self, request: Request) -> Response:
        """A snapshot first, then changes; a reader that fell behind gets a new snapshot instead of what it missed."""
        from sse_starlette.sse import EventSourceResponse

        async def stream() -> AsyncIterator[bytes]:
            with self._stream.reader() as chunks:
                await self._status.refresh()
                yield frame("snapshot", self._status.view())
                async for chunk in chunks:
                    yield frame("snapshot", self._status.view()) if chunk is None else chunk

        return EventSourceResponse(stream(), ping=_PING_S, headers={"Cache-Control": "no-store"})
