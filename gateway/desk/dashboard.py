"""The gateway's own routes that only look: health, status, events, history, and the description of all routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from hostler.adapters.errors import NotFound
from hostler.gateway.asgi import Claim
from hostler.gateway.desk.answers import json_response, plain, whole_number
from hostler.gateway.desk.status import Status, StatusView, without_facts
from hostler.gateway.events import Event, HostChanged
from hostler.gateway.records.broadcast import Broadcast, frame
from hostler.gateway.records.history import KINDS, History
from hostler.gateway.routes import own_claim
from hostler.gateway.switching.orchestrator import Orchestrator

#: How often it is looked whether something moved that tells no event of its own, while somebody watches, in seconds.
PULSE_S = 0.5

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
        self._frames = Broadcast()

    def claims(self) -> list[Claim]:
        """The routes. Only `/healthz` needs no key, and it tells nothing."""
        return [
            own_claim("health", "/healthz", plain(self._healthz), scope="open"),
            own_claim("ready", "/readyz", plain(self._readyz), scope="read"),
            own_claim("metrics", "/metrics", plain(self._tell_metrics), scope="read"),
            own_claim("root", "/", plain(self._root), scope="read"),
            own_claim("status", "/admin/status", plain(self._tell_status), scope="read"),
            own_claim("history", "/admin/history", plain(self._tell_history), scope="read"),
            own_claim("figures", "/admin/figures", plain(self._tell_figures), scope="read"),
            own_claim("events", "/events", plain(self._events), scope="read"),
            own_claim("description", "/openapi.json", plain(self._openapi), scope="read"),
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
            pulse = frame("pulse", self._status.pulse())
            if pulse != told:
                told = pulse
                self._frames.add(pulse)
            await anyio.sleep(PULSE_S)

    def status(self) -> StatusView:
        """The whole gateway, now."""
        return self._status.view()

    def describe(self, claims: Iterable[Claim]) -> None:
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
        return json_response({"ready": not silent, "silent": silent}, status=503 if silent else 200)

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
