"""The supervisor's HTTP API, called by gateways and by strangers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

import anyio
import httpx
import msgspec
import pytest

from hostler.supervisor.contract import Failure, HostStatus, ModelChanged, ModelStatus
from hostler.supervisor.events import LOG_BUFFER
from hostler.supervisor.schemas import SupervisorErrorResponse, SwitchResponse
from hostler.supervisor.switch_stream import LAST_EVENT_S

pytestmark = pytest.mark.anyio

TOKEN = "a-long-token"
ServeAPI = Callable[..., AbstractAsyncContextManager[str]]


async def _metrics() -> bytes:
    return b"hostler_up 1\n"


async def _two_lines(model: str, follow: bool) -> AsyncIterator[str]:
    yield f"{model} one"
    yield f"{model} two"
    if follow:
        await anyio.sleep_forever()


@pytest.fixture
async def http(fake_supervisor: Any, serve_api: ServeAPI) -> AsyncIterator[httpx.AsyncClient]:
    options = {"logs": _two_lines, "metrics": _metrics, "allowed_hosts": ["gpu.lan"]}
    async with (
        serve_api(fake_supervisor, token=TOKEN, **options) as url,
        httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30) as http,
    ):
        yield http


async def _events(response: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    name = ""
    async for line in response.aiter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


ROUTES = [
    ("GET", "/models/available"),
    ("GET", "/models/status"),
    ("GET", "/models/forecast?model=alpha"),
    ("POST", "/leases"),
    ("POST", "/models/switch"),
    ("POST", "/models/load"),
    ("POST", "/models/unload"),
    ("GET", "/events"),
    ("GET", "/logs/alpha"),
    ("GET", "/metrics"),
    ("GET", "/nothing-here"),
]
ORDERS = ["/models/switch", "/models/load", "/models/unload"]


async def test_rejects_requests_without_the_token(http: httpx.AsyncClient) -> None:
    del http.headers["Authorization"]
    for method, path in ROUTES:
        for authorization in (None, "Bearer wrong", "Basic a-long-token", "a-long-token", "Bearer"):
            headers = {} if authorization is None else {"Authorization": authorization}
            body = {"model": "alpha"} if method == "POST" else None
            answer = await http.request(method, path, headers=headers, json=body)
            assert answer.status_code == 401, (path, authorization)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert msgspec.json.decode(answer.content, type=SupervisorErrorResponse).error.type == "unauthenticated"


async def test_takes_no_token_from_the_query(http: httpx.AsyncClient) -> None:
    del http.headers["Authorization"]
    assert (await http.get("/models/status", params={"token": TOKEN, "api_key": TOKEN})).status_code == 401


async def test_health_needs_no_token_and_reveals_nothing(http: httpx.AsyncClient) -> None:
    del http.headers["Authorization"]
    answer = await http.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert "server" not in answer.headers


async def test_without_a_token_every_client_on_loopback_is_accepted(fake_supervisor: Any, serve_api: ServeAPI) -> None:
    async with serve_api(fake_supervisor) as url, httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/models/status")).status_code == 200


async def test_rejects_a_foreign_host_name(http: httpx.AsyncClient) -> None:
    for _method, path in [("GET", "/healthz"), *ROUTES]:
        assert (await http.get(path, headers={"Host": "evil.example"})).status_code == 421, path


async def test_accepts_its_own_host_names(http: httpx.AsyncClient) -> None:
    for host in ("gpu.lan", "GPU.LAN:8080", "localhost:1", "127.0.0.1", "[::1]:8080"):
        assert (await http.get("/models/status", headers={"Host": host})).status_code == 200, host


@pytest.mark.parametrize("hosts", [b"", b"Host: localhost\r\nHost: localhost\r\n"])
async def test_requires_exactly_one_host_header(http: httpx.AsyncClient, hosts: bytes) -> None:
    async with await anyio.connect_tcp("127.0.0.1", http.base_url.port or 0) as stream:
        await stream.send(b"GET /healthz HTTP/1.1\r\n" + hosts + b"\r\n")
        assert (await stream.receive()).split()[1] == b"400"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "chrome-extension://x"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
async def test_rejects_pages_of_other_sites(
    http: httpx.AsyncClient, fake_supervisor: Any, headers: dict[str, str]
) -> None:
    for method, path in ROUTES:
        answer = await http.request(method, path, headers=headers, json={"model": "alpha"})
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Private-Network": "true"}
    assert (await http.options("/models/switch", headers=headers | preflight)).status_code == 403
    assert fake_supervisor.starts == 0


async def test_accepts_json_bodies_only(http: httpx.AsyncClient, fake_supervisor: Any) -> None:
    for path in ORDERS:
        for kind in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
            answer = await http.post(path, content=b'{"model": "alpha"}', headers=kind)
            assert answer.status_code == 415, (path, kind)
    assert fake_supervisor.starts == 0


async def test_changes_state_on_post_only(http: httpx.AsyncClient, fake_supervisor: Any) -> None:
    for path in ORDERS:
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            answer = await http.request(method, path, params={"model": "alpha"})
            assert answer.status_code == 405, (path, method)
    assert fake_supervisor.starts == 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b'{"model": 1}', 400),
        (b'{"model": ""}', 400),
        (b'{"model": "alpha", "args": ["--rm"]}', 400),
        (b'{"model": "\\u0000"}', 400),
        (b'{"model": "' + b"x" * 300 + b'"}', 400),
        (b'{"model": ' + b"[" * 60_000, 400),
        (b'{"model": "\xff"}', 400),
        (b'{"model": "../../etc/passwd"}', 404),
        (b'{"model": "alpha", "evict": ["../x"]}', 400),
        (b'{"model": "' + b"x" * 70_000 + b'"}', 413),
    ],
)
async def test_rejects_invalid_bodies(http: httpx.AsyncClient, fake_supervisor: Any, body: bytes, status: int) -> None:
    answer = await http.post("/models/switch", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert fake_supervisor.starts == 0


async def test_refuses_a_lease_of_more_than_30_days(http: httpx.AsyncClient, fake_supervisor: Any) -> None:
    answer = await http.post("/models/lease", json={"model": "alpha", "holder": "ann", "seconds": 31 * 86400})
    assert (answer.status_code, "30 days at most" in answer.json()["error"]["message"]) == (400, True)
    assert fake_supervisor.starts == 0


async def test_limits_a_body_without_a_length(http: httpx.AsyncClient) -> None:
    head = f"POST /models/switch HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with anyio.fail_after(20):
        async with await anyio.connect_tcp("127.0.0.1", http.base_url.port or 0) as stream:
            await stream.send(head.encode() + b"11000\r\n" + b" " * 0x11000)
            answer = await stream.receive()
            assert answer.split()[1] == b"413"
            assert b"connection: close" in answer.lower()


async def test_an_unknown_model_is_an_error_that_lists_the_known_ones(http: httpx.AsyncClient) -> None:
    answer = await http.post("/models/switch", json={"model": "gamma"})
    error = msgspec.json.decode(answer.content, type=SupervisorErrorResponse).error
    assert (answer.status_code, error.type, error.models) == (404, "unknown_profile", ("alpha", "beta"))
    assert "gamma" in error.message


async def test_status_is_the_contract_s_own_value(http: httpx.AsyncClient, fake_supervisor: Any) -> None:
    answer = await http.get("/models/status")
    assert msgspec.json.decode(answer.content, type=HostStatus) == fake_supervisor.host()
    assert answer.headers["x-request-id"]
    assert [model["name"] for model in (await http.get("/models/available")).json()["models"]] == ["alpha", "beta"]


async def test_a_switch_answers_with_the_address_and_what_took_how_long(http: httpx.AsyncClient) -> None:
    answer = await http.post("/models/switch", json={"model": "first"})
    switched = msgspec.json.decode(answer.content, type=SwitchResponse)
    assert (switched.address.model, switched.address.key) == ("alpha", "engine-secret")
    assert switched.phase_seconds == {"starting": 0.1, "loading": 0.4}
    took: list[float] = []
    while not took or (min(took) >= LAST_EVENT_S and len(took) < 4):  # it waits for no event that never comes
        answer = await http.post("/models/load", json={"model": "alpha"})
        again = msgspec.json.decode(answer.content, type=SwitchResponse)
        assert (again.address, again.phase_seconds) == (switched.address, {})
        took.append(again.elapsed_s)
    assert min(took) < LAST_EVENT_S


async def test_unload_stops_the_model(http: httpx.AsyncClient, fake_supervisor: Any) -> None:
    await http.post("/models/switch", json={"model": "alpha"})
    assert (await http.post("/models/unload", json={"model": "alpha"})).json() == {"model": "alpha", "state": "stopped"}
    assert fake_supervisor.ready == {}


@pytest.mark.parametrize(
    ("kind", "status"), [("not_gguf", 422), ("does_not_fit", 422), ("port_taken", 409), ("out_of_memory", 503)]
)
async def test_a_failure_has_its_reason_in_the_response(
    http: httpx.AsyncClient, fake_supervisor: Any, kind: Any, status: int
) -> None:
    fake_supervisor.failure = Failure(kind=kind, message="it broke", lines=("last words",), retry_after_s=2.0)
    answer = await http.post("/models/switch", json={"model": "alpha"})
    assert (answer.status_code, answer.headers["retry-after"]) == (status, "2")
    assert msgspec.json.decode(answer.content, type=SupervisorErrorResponse).error.failure == fake_supervisor.failure


SSE = {"Accept": "text/event-stream"}


async def test_a_switch_streams_its_phases_and_then_the_address(http: httpx.AsyncClient) -> None:
    async with http.stream("POST", "/models/switch", json={"model": "alpha"}, headers=SSE) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        received = [event async for event in _events(answer)]
    assert [(name, data.get("phase")) for name, data in received] == [
        ("phase", "starting"),
        ("phase", "loading"),
        ("ready", None),
    ]
    assert (received[1][1]["percent"], received[1][1]["eta_s"]) == (50.0, 0.7)
    assert received[2][1]["address"]["key"] == "engine-secret"
    assert "engine-secret" not in json.dumps(received[:2])


async def test_a_failing_switch_ends_its_stream_with_the_failure(http: httpx.AsyncClient, fake_supervisor: Any) -> None:
    fake_supervisor.failure = Failure(kind="exited", message="it broke")
    async with http.stream("POST", "/models/switch", json={"model": "alpha"}, headers=SSE) as answer:
        received = [event async for event in _events(answer)]
    assert received[-1][0] == "failed"
    assert received[-1][1]["error"]["failure"]["kind"] == "exited"


async def test_a_switch_goes_on_when_its_client_disconnects(http: httpx.AsyncClient, fake_supervisor: Any) -> None:
    fake_supervisor.gate = anyio.Event()
    order = http.stream("POST", "/models/switch", json={"model": "alpha"}, headers=SSE)
    async with order as answer, aclosing(_events(answer)) as events:
        await anext(events)
    await fake_supervisor.listened_to_by(1)
    fake_supervisor.gate.set()
    joined = await http.post("/models/switch", json={"model": "alpha"})
    assert joined.status_code == 200
    assert (fake_supervisor.starts, fake_supervisor.finished) == (1, 1)


async def test_two_switches_to_one_model_join(http: httpx.AsyncClient, fake_supervisor: Any) -> None:
    fake_supervisor.gate = anyio.Event()
    answers: list[httpx.Response] = []

    async def order() -> None:
        answers.append(await http.post("/models/switch", json={"model": "alpha"}))

    first = http.stream("POST", "/models/switch", json={"model": "alpha"}, headers=SSE)
    async with anyio.create_task_group() as tasks, first as answer, aclosing(_events(answer)) as events:
        await anext(events)
        tasks.start_soon(order)
        await fake_supervisor.listened_to_by(3)
        fake_supervisor.gate.set()
        names = [name async for name, _data in events]
    assert names[-1] == "ready"
    assert answers[0].status_code == 200
    assert fake_supervisor.starts == 1


async def test_events_begin_with_a_snapshot_and_go_on_with_changes(
    http: httpx.AsyncClient, fake_supervisor: Any
) -> None:
    async with http.stream("GET", "/events") as answer, aclosing(_events(answer)) as events:
        name, first = await anext(events)
        assert (name, first["type"], len(first["host"]["profiles"])) == ("snapshot", "snapshot", 2)
        fake_supervisor.publish(ModelChanged(status=ModelStatus(model="alpha", state="starting", since=1.0)))
        name, second = await anext(events)
        assert (name, second["status"]["state"]) == ("model", "starting")
    with anyio.fail_after(20):
        await fake_supervisor.listened_to_by(1)


OLD_ORDERS = [
    ("/models/switch", {"model": "alpha", "evict": ["beta"], "epoch": 1796003421}),
    ("/models/unload", {"model": "alpha", "epoch": 1796003421}),
    ("/models/pin", {"model": "alpha", "pinned": True, "epoch": None}),
    ("/models/answered", {"model": "alpha", "generation": 1, "cached": 0, "prompt": 1}),
]


async def test_gateways_before_version_1_are_refused_wherever_they_call(
    http: httpx.AsyncClient, fake_supervisor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # With these headers they follow the events, and count the host as reachable if they get them.
    headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
    answers = [await http.post(path, json=body) for path, body in OLD_ORDERS]
    answers.append(await http.get("/models/locate", params={"model": "alpha"}))
    answers.append(await http.get("/events", headers=headers))
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["type"]) == (426, "protocol_mismatch"), answer.url
        assert answer.json()["error"]["message"].endswith("the gateway protocol 0; update the gateway")
    assert fake_supervisor.starts == 0
    assert caplog.text.count("the gateway at 127.0.0.1 is refused: ") == 1  # not for each attempt


async def test_keys_are_in_no_event_and_no_status(http: httpx.AsyncClient, fake_supervisor: Any) -> None:
    async with http.stream("GET", "/events") as answer, aclosing(_events(answer)) as events:
        seen = [await anext(events)]
        await http.post("/models/switch", json={"model": "alpha"})
        while seen[-1][1].get("phase") != "ready":
            seen.append(await anext(events))
    assert "engine-secret" not in json.dumps(seen)
    assert "engine-secret" not in (await http.get("/models/status")).text
    assert "engine-secret" not in (await http.get("/metrics")).text


async def test_streams_end_cleanly_when_the_supervisor_stops(fake_supervisor: Any, serve_api: ServeAPI) -> None:
    fake_supervisor.gate = anyio.Event()
    async with httpx.AsyncClient(timeout=30) as http:
        async with serve_api(fake_supervisor, logs=_two_lines) as url:
            events = await http.send(http.build_request("GET", f"{url}/events"), stream=True)
            logs = await http.send(http.build_request("GET", f"{url}/logs/alpha?follow=1"), stream=True)
            order = http.build_request("POST", f"{url}/models/switch", json={"model": "alpha"}, headers=SSE)
            switch = await http.send(order, stream=True)
        assert (await events.aread()).startswith(b"event: snapshot")
        assert await logs.aread() == b"alpha one\nalpha two\n"
        assert b"ready" not in await switch.aread()


async def test_logs_are_plain_lines(http: httpx.AsyncClient) -> None:
    answer = await http.get("/logs/alpha")
    assert (answer.text, answer.headers["content-type"]) == ("alpha one\nalpha two\n", "text/plain; charset=utf-8")
    assert (await http.get("/logs/gamma")).status_code == 404
    assert (await http.get("/logs/%2e%2e/%2e%2e/etc/passwd")).status_code == 404


async def test_a_slow_log_reader_loses_lines_and_delays_no_one_else(fake_supervisor: Any, serve_api: ServeAPI) -> None:
    lines = LOG_BUFFER * 40
    written = anyio.Event()

    async def flood(model: str, follow: bool) -> AsyncIterator[str]:
        for number in range(lines):
            yield f"{number} {'x' * 1000}"
            if number % 100 == 0:
                await anyio.lowlevel.checkpoint()
        written.set()

    async with (
        serve_api(fake_supervisor, logs=flood) as url,
        httpx.AsyncClient(timeout=30) as http,
        http.stream("GET", f"{url}/logs/alpha?follow=1") as answer,
    ):
        with anyio.fail_after(30):
            await written.wait()
        text = [line async for line in answer.aiter_lines()]
    lost = sum(int(line.split()[0][1:]) for line in text if line.startswith("["))
    assert lost > 0
    assert lost + len([line for line in text if not line.startswith("[")]) == lines
    assert text[-1].startswith(f"{lines - 1} ")


async def test_metrics_are_what_the_callable_returns(http: httpx.AsyncClient) -> None:
    answer = await http.get("/metrics")
    assert (answer.text, answer.headers["content-type"].split(";")[0]) == ("hostler_up 1\n", "text/plain")
