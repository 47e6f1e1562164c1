"""The gateway as an ASGI application: under any server, between foreign middleware, and mounted in another application."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fakes.asgi_hosts import HOSTS, SERVERS, in_process
from fakes.flag_file import FlagFile
from fakes.ports import free_port
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount
from system.running_gateway import FAKE_ENGINE, EngineLog, data_events, first_token

from hostler.gateway import supervisor_app
from hostler.gateway.app import create_app
from hostler.gateway.asgi import ASGIApp, Message, Receive, Scope, Send

pytestmark = pytest.mark.anyio

QUESTION = [{"role": "user", "content": "Hello"}]
WORDS = "word0 word1 word2 word3 word4"
#: For each protocol: the path and the body of a question, and the path of a list of models.
PROTOCOLS: dict[str, tuple[str, dict[str, Any], str]] = {
    "openai": ("/v1/chat/completions", {"messages": QUESTION}, "/v1/models"),
    "anthropic": ("/v1/messages", {"messages": QUESTION, "max_tokens": 99}, "/v1/models?limit=9"),
    "ollama": ("/api/chat", {"messages": QUESTION}, "/api/tags"),
    "llamacpp": ("/completion", {"prompt": "Hello"}, "/models"),
    "lmstudio": ("/api/v1/chat", {"input": "Hello"}, "/api/v1/models"),
}
SLOW = {"chunks": 50_000, "chunk_delay": 0.02}

Make = Callable[..., Starlette]


class Configured(EngineLog):
    """Makes applications from a configuration file in its usual place; knows what their engines noted."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "engines.log")
        self._folder = folder
        self._path = folder / "hostler.yaml"

    def environ(self) -> dict[str, str]:
        names = ("HOSTLER_CACHE", "XDG_STATE_HOME", "XDG_CONFIG_HOME")
        return {"HOSTLER_CONFIG": str(self._path), **{name: str(self._folder / name) for name in names}}

    def app(self, profiles: dict[str, dict[str, Any]], **gateway: Any) -> Starlette:
        """`create_app()`, as a server's command line calls it."""
        model = self._folder / "model.gguf"
        model.write_bytes(b"not read by the scripted engine")
        entries = {
            name: {
                "model": str(model),
                **{key: value for key, value in profile.items() if key != "script"},
                "env": {"FAKE_ENGINE": json.dumps({"log": str(self.log), **profile.get("script", {})})},
            }
            for name, profile in profiles.items()
        }
        engine = {"engine": f"{sys.executable} -I -S {FAKE_ENGINE}", "stop_grace_s": 1.0, "backoff_s": 0.05}
        document = {
            "gateway": {"listen": ["127.0.0.1:0"], **gateway},
            "supervisor": engine,
            "profiles": entries,
        }
        self._path.write_text(json.dumps(document))
        return create_app()


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configured:
    made = Configured(tmp_path)
    for name, value in made.environ().items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Any:
    return HOSTS[request.param]


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Any:
    return SERVERS[request.param]


def asked(protocol: str, *, model: str = "a", stream: bool = False) -> dict[str, Any]:
    """The arguments of a question to `httpx.AsyncClient.stream` or `request`."""
    path, body, _ = PROTOCOLS[protocol]
    return {"method": "POST", "url": path, "json": {"model": model, "stream": stream, **body}}


def words(text: str) -> str:
    """The words of an answer, whole or streamed, in the order of their first coming."""
    return " ".join(word for word in WORDS.split() if word in text)


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait until the condition is true."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for is told to others
            await anyio.sleep(0.002)


async def test_each_protocol_answers_lists_and_refuses(configured: Configured, host: Any) -> None:
    async with host(configured.app({"a": {}})) as http:
        for protocol, (_, _, models) in PROTOCOLS.items():
            answer = await http.request(**asked(protocol))
            assert (answer.status_code, words(answer.text)) == (200, WORDS), protocol
            assert answer.headers["x-hostler-backend"] == "local"
            listed = await http.get(models)
            assert (listed.status_code, '"a"' in listed.text or '"a:latest"' in listed.text) == (200, True), protocol
            refused = await http.request(**asked(protocol, model="missing"))
            assert (refused.status_code, "missing" in refused.text) == (404, True), protocol
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        assert (await http.get("/readyz")).status_code == 200
        assert (await http.get("/nowhere")).status_code == 404
        assert (await http.request("HEAD", "/v1/models")).content == b""
        assert (await http.get("/healthz", headers={"Host": "evil.example"})).status_code == 421


async def test_websocket_is_refused_with_the_status_for_plain_http(configured: Configured, host: Any) -> None:
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    async with host(configured.app({"a": {}})) as http:
        assert (await http.get("/upstream/a/ws", headers=handshake)).status_code == 426
        assert (await http.request(**asked("openai"))).status_code == 200


@pytest.mark.parametrize(
    ("extensions", "sent"),
    [({}, ["websocket.close"]), ({"websocket.http.response": {}}, [("websocket.http.response.start", 426)])],
)
async def test_websocket_scopes_are_refused(
    configured: Configured, extensions: dict[str, Any], sent: list[Any]
) -> None:
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing is read of it")

    scope = {"type": "websocket", "path": "/upstream/a/ws", "headers": [], "extensions": extensions}
    await configured.app({"a": {}})(scope, receive, send)
    found = [(each["type"], each["status"]) if "status" in each else each["type"] for each in messages]
    assert found[:1] == sent


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_each_protocol_streams(configured: Configured, server: Any, protocol: str) -> None:
    async with server(configured.app({"a": {}})) as http, http.stream(**asked(protocol, stream=True)) as answer:
        assert answer.status_code == 200
        pieces = [piece async for piece in answer.aiter_raw()]
    assert words(b"".join(pieces).decode()) == WORDS


async def test_a_client_that_leaves_in_mid_stream_stops_the_engine(configured: Configured, server: Any) -> None:
    async with server(configured.app({"a": {"script": SLOW}})) as http:
        async with http.stream(**asked("openai", stream=True)) as answer:
            await first_token(answer)
        await until(lambda: configured.events("gone"))


async def test_a_client_that_leaves_before_a_whole_answer_stops_the_engine(configured: Configured, server: Any) -> None:
    async with server(configured.app({"a": {"script": SLOW}})) as http:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(http.request, **asked("openai")))
            await until(configured.requests)
            tasks.cancel_scope.cancel()
        await until(lambda: configured.events("gone"))


async def test_a_full_queue_is_refused(configured: Configured, server: Any, flags: Callable[[str], FlagFile]) -> None:
    last = flags("last")
    app = configured.app({"a": {"script": {"last_when": last.path}}}, queue={"max_waiting": 1})
    async with server(app) as http, anyio.create_task_group() as tasks:
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await http.request(**asked("openai")))

        async with http.stream(**asked("openai", stream=True)) as first:
            lines = await first_token(first)
            for _ in range(2):
                tasks.start_soon(ask)
            await until(lambda: answers)
            assert answers[0].status_code == 429
            assert answers[0].json()["error"]["code"] == "queue_full"
            assert answers[0].headers["retry-after"]
            last.set()
            assert words("".join([line async for line in lines])).endswith("word4")
        await until(lambda: len(answers) == 2)
        assert answers[1].status_code == 200


async def test_a_switch_shows_its_progress(configured: Configured, server: Any) -> None:
    profiles = {"a": {}, "b": {"script": {"ready_after": 0.6}}}
    app = configured.app(profiles, switching={"progress_after_s": 0, "progress_every_s": 0.1, "min_residency_s": 0})
    async with server(app) as http:
        assert (await http.request(**asked("openai"))).status_code == 200
        async with http.stream(**asked("openai", model="b", stream=True)) as answer:
            text = (await answer.aread()).decode()
    assert "[hostler] " in text.partition("word0")[0]
    assert words(text) == WORDS
    assert configured.starts() == ["a", "b"]


async def test_an_answer_that_breaks_is_not_taken_for_a_whole_one(configured: Configured, server: Any) -> None:
    async with server(configured.app({"a": {"script": {"chunks": 10, "break_at_chunk": 3}}})) as http:
        async with http.stream(**asked("openai", stream=True)) as answer:
            text = (await answer.aread()).decode()
        assert "word0" in text
        assert "error" in data_events(text)[-1]
        assert (await http.request(**asked("openai"))).status_code == 502


async def test_uvicorns_command_line_runs_it(configured: Configured) -> None:
    configured.app({"a": {}})
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "hostler.gateway.app:create_app", "--port", str(port)]
    async with (
        await anyio.open_process(command, env={**os.environ, **configured.environ()}, stderr=None) as process,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as http,
    ):
        with anyio.fail_after(30):
            while True:
                with contextlib.suppress(httpx.ConnectError):
                    if (await http.get("/readyz")).status_code == 200:
                        break
                await anyio.sleep(0.05)
        assert words((await http.request(**asked("openai"))).text) == WORDS
        process.terminate()
        with anyio.fail_after(30):
            await process.wait()
    assert [note["event"] for note in configured.events("stop")]


async def test_the_supervisor_alone_is_an_application_too(configured: Configured, server: Any) -> None:
    configured.app({"a": {}})
    async with server(supervisor_app.create_app()) as http:
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        assert (await http.post("/models/switch", json={"model": "a"})).status_code == 200
    assert configured.starts() == ["a"]
    assert configured.events("stop")


class Passing:
    """Foreign middleware: notes each answer's path, and the bytes that pass."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.passed: list[tuple[str, int]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def counting(message: Message) -> None:
            nonlocal size
            size += len(message.get("body", b""))
            await send(message)

        await self.app(scope, receive, counting)
        if scope["type"] == "http":
            self.passed.append((scope["path"], size))


@pytest.mark.parametrize("stream", [False, True])
async def test_foreign_middleware_sees_every_byte(configured: Configured, server: Any, stream: bool) -> None:
    passing = Passing(configured.app({"a": {"script": {"chunk_bytes": 400}}}))
    async with server(GZipMiddleware(passing, minimum_size=100)) as http:
        answers: list[httpx.Response] = []
        for protocol in PROTOCOLS:
            answer = await http.request(**asked(protocol, stream=stream), headers={"Accept-Encoding": "gzip"})
            answers.append(answer)
            await until(lambda: len(passing.passed) == len(answers))
            assert answer.status_code == 200
            # Starlette's middleware leaves event streams alone.
            compressed = "text/event-stream" not in answer.headers["content-type"]
            assert ("content-encoding" in answer.headers) is compressed
            assert passing.passed[-1] == (PROTOCOLS[protocol][0], len(answer.content))


class Changing:
    """Foreign middleware: changes the next requests, however alike they are."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.changes: list[dict[str, Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            change = self.changes.pop(0)
            headers = [*scope["headers"], *change.pop("headers", [])]
            scope = {**scope, **change, "headers": headers}
        await self.app(scope, receive, send)


async def test_a_request_changed_by_foreign_middleware_is_checked_anew(configured: Configured, server: Any) -> None:
    changing = Changing(configured.app({"a": {}}))
    changes: list[tuple[dict[str, Any], int]] = [
        ({}, 200),
        ({}, 200),
        ({}, 200),
        ({"headers": [(b"x-hostler-only", b"missing")]}, 503),
        ({"path": "/nowhere", "raw_path": b"/nowhere"}, 404),
        ({"method": "PUT"}, 405),
        ({"headers": [(b"origin", b"https://evil.example")]}, 403),
        ({"headers": [(b"host", b"evil.example")]}, 400),
        ({}, 200),
        ({"raw_path": b"/v1/unknown"}, 200),
        ({}, 200),
    ]
    changing.changes = [change for change, _ in changes]
    async with server(changing) as http:
        for change, status in changes:
            answer = await http.request(**asked("openai"))
            assert answer.status_code == status, (change, answer.text)


async def test_nothing_is_kept_of_a_request_whose_checks_are_not(configured: Configured, server: Any) -> None:
    changing = Changing(configured.app({"a": {}}, cors_origins=["https://page.example"]))
    page = {"headers": [(b"origin", b"https://page.example"), (b"x-hostler-only", b"missing")]}
    changing.changes = [{}, page, {}]
    async with server(changing) as http:
        assert [(await http.request(**asked("openai"))).status_code for _ in range(3)] == [200, 503, 200]


async def test_mounted_in_another_application_everything_works(configured: Configured, server: Any) -> None:
    app = configured.app({"a": {}})
    outer = Starlette(routes=[Mount("/llm", app)], lifespan=lambda _: app.router.lifespan_context(app))
    async with server(outer) as http:
        for protocol, (_, _, models) in PROTOCOLS.items():
            for stream in (False, True):
                question = asked(protocol, stream=stream)
                answer = await http.request(**{**question, "url": f"/llm{question['url']}"})
                assert (answer.status_code, words(answer.text)) == (200, WORDS), protocol
            assert (await http.get(f"/llm{models}")).status_code == 200
            refused = await http.request(**{**asked(protocol, model="missing"), "url": f"/llm{PROTOCOLS[protocol][0]}"})
            assert refused.status_code == 404
        page = await http.get("/llm/", headers={"Accept": "text/html"}, follow_redirects=True)
        assert (page.status_code, page.url.path) == (200, "/llm/ui/")
        assert (await http.get(page.url.join("app.js"))).status_code == 200
        described = await http.get("/llm/openapi.json")
        assert described.url.join(described.json()["servers"][0]["url"]).path == "/llm/"
        assert (await http.get("/v1/models")).status_code == 404


async def test_a_caller_that_cancels_its_call_gets_its_cancellation(configured: Configured) -> None:
    app = configured.app({"a": {"script": SLOW}})
    async with in_process(app) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await client.request(**asked("openai"))
        assert (await client.get("/healthz")).status_code == 200


async def test_an_application_whose_lifespan_has_ended_is_not_ready(configured: Configured) -> None:
    app = configured.app({"a": {}})
    async with in_process(app) as client:
        assert (await client.get("/readyz")).status_code == 200
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        assert (await client.get("/readyz")).json()["ready"] is False
