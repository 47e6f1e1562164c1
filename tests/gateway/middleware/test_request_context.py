"""The request context: from bytes to a context, from errors to answers, and the end of requests whose client is gone."""

from __future__ import annotations

import gzip
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import msgspec
import pytest
from fakes.requests import OPENAI, make_context, target

from hostler.adapters.base import WireResponse
from hostler.adapters.errors import ModelNotFound
from hostler.gateway.asgi import CLIENT_KEY, CONTEXT_KEY, ROUTE_KEY, RouteMatch
from hostler.gateway.context import Client, RequestContext
from hostler.gateway.gateway_settings import SwitchingSettings
from hostler.gateway.middleware.request_context import InFlightRequests, RequestContextMiddleware

pytestmark = pytest.mark.anyio

BODY = b'{"model": "m", "messages": [{"role": "user", "content": "Hello"}]}'

Handler = Callable[[RequestContext], Awaitable[None]]


async def answer(context: RequestContext) -> None:
    await context.writer.respond(WireResponse(status=200, body=b"{}", media_type="application/json"))


class Exchange:
    """A request to the middleware, and what was sent in response."""

    def __init__(self, handler: Handler = answer, *, body: bytes = BODY, client: Client | None = None, **headers: str):
        self.in_flight = InFlightRequests()
        self.contexts: list[RequestContext] = []
        self.sent: list[Any] = []
        self.disconnected = anyio.Event()
        self._handler = handler
        self._incoming: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]
        self._middleware = RequestContextMiddleware(
            self._app,
            max_body=1000,
            switching=SwitchingSettings(progress_after_s=0.0, progress_every_s=0.01),
            in_progress=self.in_flight,
            clock=lambda: 100.0,
            wall=lambda: 1e9,
        )
        operation = next(each for each in OPENAI.operations if each.name == "chat")
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "query_string": b"",
            "path_params": {},
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
            ROUTE_KEY: RouteMatch(operation=operation, app=self._app, adapter=OPENAI),
            CLIENT_KEY: client or Client(name="anna"),
        }

    async def run(self) -> Exchange:
        await self._middleware(self.scope, self._receive, self._send)
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def error(self) -> dict[str, Any]:
        body = b"".join(message.get("body", b"") for message in self.sent[1:])
        return dict(msgspec.json.decode(body)["error"])

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.contexts.append(scope[CONTEXT_KEY])
        await self._handler(scope[CONTEXT_KEY])

    async def _receive(self) -> Any:
        if self._incoming:
            return self._incoming.pop(0)
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


def raising(error: Exception) -> Handler:
    async def handler(_: RequestContext) -> None:
        raise error

    return handler


async def test_a_body_becomes_the_request_of_a_context() -> None:
    exchange = await Exchange().run()
    [context] = exchange.contexts
    assert (context.requested_model, context.client.name, context.started_at) == ("m", "anna", 100.0)
    assert context.request.origin.body == BODY
    assert (exchange.status, list(exchange.in_flight.contexts())) == (200, [])


async def test_a_request_id_is_taken_from_the_client_if_it_is_harmless() -> None:
    given = await Exchange(x_request_id="my-id.1").run()
    assert given.headers["x-request-id"] == given.contexts[0].id == "my-id.1"
    odd = await Exchange(x_request_id="two words").run()
    assert odd.headers["x-request-id"].startswith("req-")


async def test_ids_are_unique() -> None:
    exchange = Exchange()
    ids = {exchange._middleware._new_id() for _ in range(1000)}
    assert len(ids) == 1000


async def test_response_headers_state_the_backend_and_the_time_spent_waiting() -> None:
    async def wait_and_answer(context: RequestContext) -> None:
        attempt = context.begin_attempt(target("cloud"), hop=1, now=100.0)
        attempt.queue_s, attempt.switch_s = 1.5, 0.25
        context.reason = "pc: unreachable"
        await answer(context)

    headers = (await Exchange(wait_and_answer).run()).headers
    assert {name: value for name, value in headers.items() if name.startswith("x-hostler")} == {
        "x-hostler-backend": "cloud",
        "x-hostler-model": "m",
        "x-hostler-hop": "1",
        "x-hostler-queue-ms": "1500",
        "x-hostler-switch-ms": "250",
        "x-hostler-reason": "pc: unreachable",
    }


async def test_an_error_is_answered_in_the_clients_protocol() -> None:
    exchange = await Exchange(raising(ModelNotFound("there is no model x", model="x"))).run()
    assert (exchange.status, exchange.error["code"]) == (404, "model_not_found")
    assert exchange.error["message"] == "there is no model x"


async def test_an_unforeseen_exception_is_answered_without_its_details(caplog: pytest.LogCaptureFixture) -> None:
    exchange = await Exchange(raising(LookupError("a secret"))).run()
    assert exchange.status == 500
    assert "secret" not in exchange.error["message"]
    assert exchange.contexts[0].id in exchange.error["message"]
    assert "a secret" in caplog.text


@pytest.mark.parametrize(
    ("exchange", "status"),
    [
        (lambda: Exchange(content_length="1001"), 413),
        (lambda: Exchange(body=b"x" * 1001), 413),
        (lambda: Exchange(content_encoding="compress"), 415),
    ],
)
async def test_a_body_that_is_not_read_closes_the_connection(exchange: Callable[[], Exchange], status: int) -> None:
    refused = await exchange().run()
    assert (refused.status, refused.contexts) == (status, [])
    assert refused.headers["connection"] == "close"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("coding", ["identity", "gzip"])
async def test_a_body_is_read_as_its_client_meant_it(coding: str, mark: bytes) -> None:
    pack = gzip.compress if coding == "gzip" else bytes
    exchange = await Exchange(body=pack(mark + BODY), content_encoding=coding).run()
    assert (exchange.status, exchange.contexts[0].request.origin.body) == (200, BODY)


async def test_a_small_body_may_not_stand_for_a_large_one() -> None:
    bomb = gzip.compress(b" " * 1001)
    refused = await Exchange(body=bomb, content_encoding="gzip").run()
    assert (len(bomb) < 100, refused.status, refused.contexts) == (True, 413, [])


async def test_a_body_that_is_no_request_is_refused() -> None:
    refused = await Exchange(body=b"{").run()
    assert (refused.status, refused.contexts) == (400, [])


async def test_a_client_that_disconnects_ends_its_request_and_is_sent_nothing() -> None:
    started, ended = anyio.Event(), []

    async def hang(context: RequestContext) -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(context.cancel_reason)

    exchange = Exchange(hang)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exchange.run)
        await started.wait()
        exchange.disconnected.set()
    assert [reason.code for reason in ended if reason is not None] == ["client_closed_request"]
    assert exchange.sent == []


async def test_a_cancelled_request_is_answered_as_such() -> None:
    started = anyio.Event()

    async def hang(_: RequestContext) -> None:
        started.set()
        await anyio.sleep_forever()

    exchange = Exchange(hang, x_request_id="mine")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exchange.run)
        await started.wait()
        assert exchange.in_flight.cancel("other") == 0
        assert exchange.in_flight.cancel("mine") == 1
    assert (exchange.status, exchange.error["code"]) == (499, "request_cancelled")
    assert exchange.contexts[0].reason == "cancelled by an operator"


@pytest.mark.parametrize(
    ("value", "client", "local_only"),
    [("true", False, True), ("1", False, True), ("no", False, False), ("", True, True)],
)
async def test_a_header_or_a_key_makes_a_request_local_only(value: str, client: bool, local_only: bool) -> None:
    exchange = await Exchange(x_hostler_local_only=value, client=Client(name="anna", local_only=client)).run()
    assert exchange.contexts[0].local_only is local_only


@pytest.mark.parametrize(("values", "local_only"), [
    (("true", "false"), True), (("false", "true"), True), (("no", ""), False), (("false, true",), True), (("ON",), True),
])  # fmt: skip
async def test_of_several_headers_any_makes_a_request_local_only(values: tuple[str, ...], local_only: bool) -> None:
    exchange = Exchange()
    exchange.scope["headers"] += [(b"x-hostler-local-only", value.encode()) for value in values]
    await exchange.run()
    assert exchange.contexts[0].local_only is local_only


async def test_only_operators_may_name_the_backend() -> None:
    named = await Exchange(x_hostler_only="pc").run()
    assert named.contexts[0].only == "pc"
    refused = await Exchange(x_hostler_only="pc", client=Client(name="anna", scopes=frozenset({"infer"}))).run()
    assert (refused.status, refused.contexts) == (403, [])


def test_requests_with_the_same_id_are_cancelled_together() -> None:
    in_flight, ended = InFlightRequests(), []
    first, second = make_context(), make_context()
    in_flight.enter(first, lambda: ended.append("first"))
    in_flight.enter(second, lambda: ended.append("second"))
    assert list(in_flight.contexts()) == [first, second]
    assert in_flight.cancel("req-1") == 2
    assert ended == ["first", "second"]
    in_flight.leave(first)
    assert in_flight.cancel("req-1") == 1
    in_flight.leave(second)
    assert in_flight.cancel("req-1") == 0
