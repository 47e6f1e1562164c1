"""Bodies, parameters and errors of the gateway's own routes."""

from __future__ import annotations

import json
from typing import Any

import anyio
import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response

from hostler.adapters.errors import BadRequest, ClientDisconnected, NotFound, RequestTooLarge, ShuttingDown
from hostler.gateway.admin.http import (
    decode_body,
    error_response,
    int_param,
    json_endpoint,
    json_response,
    run_while_connected,
)
from hostler.gateway.request_body import read_body

pytestmark = pytest.mark.anyio


class Body(msgspec.Struct, forbid_unknown_fields=True):
    model: str


def request(*messages: dict[str, Any], query: str = "") -> Request:
    """A request that receives these messages, and then nothing."""
    pending = list(messages)

    async def receive() -> Any:
        if not pending:
            await anyio.sleep_forever()
        return pending.pop(0)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": query.encode()}
    return Request(scope, receive)


def chunk(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_is_read_in_full() -> None:
    assert await read_body(request(chunk(b"ab", more=True), chunk(b"c")), limit=3) == b"abc"


async def test_a_body_beyond_the_limit_is_refused_before_its_end() -> None:
    with pytest.raises(RequestTooLarge, match="limit of 3 bytes"):
        await read_body(request(chunk(b"abcd", more=True)), limit=3)


async def test_a_client_may_disconnect_within_its_body() -> None:
    with pytest.raises(ClientDisconnected):
        await read_body(request(chunk(b"a", more=True), {"type": "http.disconnect"}), limit=3)


async def test_a_body_is_decoded() -> None:
    assert (await decode_body(request(chunk(b'{"model":"a"}')), Body)).model == "a"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"model":1}', b'{"model":"a","x":1}', b'{"model":"\xff"}', b"[" * 9999]
)
async def test_a_body_of_another_form_is_refused_with_the_fields(body: bytes) -> None:
    with pytest.raises(BadRequest, match="expected a JSON object with model"):
        await decode_body(request(chunk(body)), Body)


@pytest.mark.parametrize(("query", "value"), [("", 7), ("n=", 7), ("n=5", 5), ("n=0", 1), ("n=99", 9)])
def test_a_number_is_clamped_to_its_limits(query: str, value: int) -> None:
    assert int_param(request(query=query), "n", 7, minimum=1, maximum=9) == value


def test_a_parameter_that_is_no_number_is_refused() -> None:
    with pytest.raises(BadRequest, match="n must be an integer from 1 to 9"):
        int_param(request(query="n=many"), "n", 7, minimum=1, maximum=9)


async def test_work_ends_with_its_client() -> None:
    with pytest.raises(ClientDisconnected), anyio.fail_after(20):
        await run_while_connected(request({"type": "http.disconnect"}), anyio.sleep_forever)


async def test_finished_work_does_not_wait_for_its_client() -> None:
    done = anyio.Event()

    async def work() -> None:
        done.set()

    with anyio.fail_after(20):
        await run_while_connected(request(), work)
    assert done.is_set()


async def answer_of(handler: Any) -> tuple[int, dict[str, str], Any]:
    """What a handler behind `json_endpoint` sends: status, headers and JSON."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Any = request().scope
    await json_endpoint(handler)(scope, request(chunk(b"")).receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, json.loads(sent[1]["body"])


async def test_an_answer_is_json_that_must_not_be_cached() -> None:
    async def handler(_: Request) -> Response:
        return json_response({"a": 1})

    status, headers, body = await answer_of(handler)
    assert (status, headers["cache-control"], body) == (200, "no-store", {"a": 1})


async def test_an_error_is_answered_as_json() -> None:
    async def handler(_: Request) -> Response:
        raise NotFound("no such thing")

    status, _, body = await answer_of(handler)
    assert (status, body) == (404, {"error": {"message": "no such thing", "code": "not_found"}})


def test_errors_say_whether_a_retry_can_help() -> None:
    assert int(error_response(ShuttingDown("x")).headers["retry-after"]) >= 1
    assert error_response(NotFound("x")).headers["x-should-retry"] == "false"
