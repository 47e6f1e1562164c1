"""Cancelling requests, wherever they are in progress."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import httpx
import pytest
from starlette.applications import Starlette

from hostler.gateway.admin.actions import ActionRoutes
from hostler.gateway.in_flight import RequestView
from hostler.gateway.middleware.request_context import InFlightRequests
from hostler.gateway.routing import Router

pytestmark = pytest.mark.anyio


class OtherGateway:
    """Has one request, and may be too busy to cancel it."""

    def __init__(self, *, answers: bool) -> None:
        self.answers = answers

    def views(self) -> Sequence[RequestView]:
        fields = {"protocol": "openai", "operation": "chat", "client": "bob", "phase": "generating"}
        return [RequestView(id="r", at=1.0, gateway="attic", **cast(Any, fields))]

    async def refresh(self) -> None:
        pass

    async def cancel(self, request_id: str) -> int:
        return int(self.answers and request_id == "r")


async def cancel(request_id: str, *, answers: bool) -> tuple[int, dict[str, Any]]:
    nothing = cast(Any, None)
    routes = ActionRoutes(nothing, nothing, nothing, nothing, InFlightRequests(), [OtherGateway(answers=answers)])
    app = Starlette(routes=[Router(routes.routes())])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        answer = await http.post("/admin/cancel", json={"id": request_id})
    return answer.status_code, answer.json()


async def test_a_request_of_another_gateway_is_cancelled_there() -> None:
    assert await cancel("r", answers=True) == (200, {"id": "r", "cancelled": 1})


async def test_the_error_names_the_gateway_that_does_not_answer() -> None:
    status, body = await cancel("r", answers=False)
    assert status == 404
    assert "in progress at gateway attic, which does not answer" in str(body)


async def test_an_unknown_request_is_not_in_progress() -> None:
    status, body = await cancel("unknown", answers=True)
    assert status == 404
    assert "no request with this id is in progress" in str(body)
