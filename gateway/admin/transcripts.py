"""`GET /admin/contents`: the recorded prompt and answer of a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from hostler.adapters.errors import NotFound
from hostler.gateway.admin.http import json_endpoint, json_response
from hostler.gateway.asgi import RouteMatch
from hostler.gateway.routing import gateway_route
from hostler.gateway.telemetry.transcripts import Transcripts


class TranscriptRoutes:
    """`transcripts` is `None` while recording is off. `refresh` waits for those of other processes."""

    def __init__(self, transcripts: Transcripts | None, refresh: Callable[[], Awaitable[None]]) -> None:
        self._transcripts = transcripts
        self._refresh = refresh

    def routes(self) -> list[RouteMatch]:
        """For the scope operate: keys that may read figures must not read what others write."""
        return [gateway_route("contents", "/admin/contents", json_endpoint(self._find), scope="operate")]

    async def _find(self, request: Request) -> Response:
        if self._transcripts is None:
            raise NotFound("recording of prompts and answers is off; gateway.recording.contents turns it on")
        await self._refresh()
        found = await self._transcripts.find(request.query_params.get("id", ""))
        if not found:
            raise NotFound("no transcript with this id; it may have expired")
        return json_response(found)
