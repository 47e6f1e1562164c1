"""The shortest reverse proxy of Starlette and httpx, a yardstick for what the two cost. `BACKEND` is the URL."""

from __future__ import annotations

import os

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

_HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}
_client = httpx.AsyncClient(base_url=os.environ.get("BACKEND", ""), timeout=None, limits=httpx.Limits())


async def forward(request: Request) -> StreamingResponse:
    headers = [(name, value) for name, value in request.headers.items() if name not in _HOP_BY_HOP]
    outgoing = _client.build_request(
        request.method, request.url.path, params=request.query_params, headers=headers, content=await request.body()
    )
    answer = await _client.send(outgoing, stream=True)
    passed = {name: value for name, value in answer.headers.items() if name not in _HOP_BY_HOP - {"content-length"}}
    return StreamingResponse(answer.aiter_raw(), answer.status_code, passed, background=BackgroundTask(answer.aclose))


app = Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])])
