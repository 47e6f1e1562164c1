"""The base class of middleware."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.requests import make_context

from hostler.gateway.asgi import CONTEXT_KEY
from hostler.gateway.context import RequestContext
from hostler.gateway.middleware.base import CallNext, RequestMiddleware

pytestmark = pytest.mark.anyio


async def test_dispatch_gets_the_context_of_the_scope_and_the_next_app() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    class Middleware(RequestMiddleware):
        async def dispatch(self, context: RequestContext, call_next: CallNext) -> None:
            seen.append(context)
            await call_next()

    context = make_context()
    scope: Any = {CONTEXT_KEY: context}
    await Middleware(app)(scope, "receive", "send")  # type: ignore[arg-type]  # passed on as they are
    assert seen == [context, (scope, "receive", "send")]
