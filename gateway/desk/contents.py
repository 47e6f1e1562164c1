"""Lets an operator read what was recorded of a request: `GET /admin/contents?id=`. There is nothing unless recording is on."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from hostler.adapters.errors import NotFound
from hostler.gateway.asgi import Claim
from hostler.gateway.desk.answers import json_response, plain
from hostler.gateway.records.contents import Contents
from hostler.gateway.routes import own_claim


class Transcripts:
    """Answers the route. `contents` is `None` while nothing is recorded."""

    def __init__(self, contents: Contents | None) -> None:
        self._contents = contents

    def claims(self) -> list[Claim]:
        """The route, for operators only: whoever may look at figures may not read what others say."""
        return [own_claim("contents", "/admin/contents", plain(self._tell), scope="operate")]

    async def _tell(self, request: Request) -> Response:
        if self._contents is None:
            raise NotFound("prompts and answers are not recorded; gateway.recording.contents switches it on")
        found = await self._contents.find(request.query_params.get("id", ""))
        if not found:
            raise NotFound("nothing is recorded under this id, or not any more")
        return json_response(found)
