"""WebSocket connections through the gateway, to engines and to servers without a supervisor."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from fakes.websocket_engine import engine
from system.running_gateway import EngineLog, RunningGateway, StartGateway, write_keys

pytestmark = pytest.mark.anyio

ENGINE = Path(__file__).parent.parent / "fakes" / "websocket_engine.py"


@pytest.fixture
def engines(tmp_path: Path) -> dict[str, Any]:
    """The section of the configuration with an engine `ws`."""
    command = [sys.executable, str(ENGINE), "--port", "${port}", "--key", "${key}"]
    return {"ws": {"command": [*command, "--log", str(tmp_path / "engines.log")], "ready": "/ok"}}


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@asynccontextmanager
async def connected(
    client: aiohttp.ClientSession, gateway: RunningGateway, path: str = "/upstream/a/ws", **options: Any
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    with anyio.fail_after(30):
        async with client.ws_connect(gateway.url + path, max_msg_size=0, **options) as socket:
            yield socket


async def status_of(client: aiohttp.ClientSession, gateway: RunningGateway, path: str, **options: Any) -> int:
    """The status of a handshake that fails."""
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with connected(client, gateway, path, **options):
            pass
    return refused.value.status


@pytest.mark.parametrize(
    ("path", "headers", "there"),
    [
        ("/upstream/a/ws?clientId=7", {}, "/ws?clientId=7"),
        ("/v1/realtime?model=a", {}, "/v1/realtime?model=a"),
        ("/v1/realtime", {"X-Hostler-Model": "a"}, "/v1/realtime"),
        ("/v1/responses?model=a", {}, "/v1/responses?model=a"),
    ],
    ids=["path", "query", "header", "path-of-http"],
)
async def test_messages_pass_in_both_directions(
    start_gateway: StartGateway, client: aiohttp.ClientSession, engines: Any, path: str, headers: Any, there: str
) -> None:
    private = {"Authorization": "Bearer mine", "Cookie": "a=b", "OpenAI-Beta": "realtime=v1", **headers}
    async with start_gateway({"a": {"engine": "ws"}}, engines=engines) as gateway:
        async with connected(client, gateway, path, headers=private, protocols=("realtime",), compress=15) as socket:
            assert socket.protocol == "realtime"
            assert socket.compress, "extensions are between client and engine"
            await socket.send_str("echo grüße")
            assert (await socket.receive()).data == "echo grüße"
            await socket.send_bytes(bytes(300_000))
            assert (await socket.receive()).data == bytes(300_000)
        [handshake] = gateway.events("handshake")
    assert handshake["path"] == there
    sent = handshake["headers"]
    assert sent["openai-beta"] == "realtime=v1"
    assert "cookie" not in sent and sent["authorization"] != "Bearer mine"


async def test_close_codes_of_both_sides_pass(
    start_gateway: StartGateway, client: aiohttp.ClientSession, engines: Any
) -> None:
    async with start_gateway({"a": {"engine": "ws"}}, engines=engines) as gateway:
        async with connected(client, gateway) as socket:
            await socket.close(code=4001, message=b"bye")
        await gateway.until(lambda: gateway.events("closed"))
        assert gateway.events("closed")[0]["code"] == 4001
        async with connected(client, gateway) as socket:
            await socket.send_str("close 4002")
            closing = await socket.receive()
            assert (closing.type, closing.data, closing.extra) == (aiohttp.WSMsgType.CLOSE, 4002, "as asked")


async def test_the_model_stays_loaded_while_the_connection_lives(
    start_gateway: StartGateway, client: aiohttp.ClientSession, engines: Any
) -> None:
    profiles = {"a": {"engine": "ws", "ttl_s": 0.1}, "b": {}}
    async with start_gateway(profiles, engines=engines) as gateway, anyio.create_task_group() as tasks:
        async with connected(client, gateway) as socket:
            tasks.start_soon(gateway.chat, "b")
            await gateway.until_counts(serving=1, waiting=1)
            await socket.send_str("echo still here")
            assert (await socket.receive()).data == "echo still here"
            assert not gateway.starts("b")
        await gateway.until(lambda: gateway.starts("b"))
        await gateway.until_counts(serving=0, waiting=0)


async def test_a_client_that_vanishes_ends_the_connection(
    start_gateway: StartGateway, client: aiohttp.ClientSession, engines: Any
) -> None:
    async with start_gateway({"a": {"engine": "ws"}}, engines=engines) as gateway:
        async with connected(client, gateway) as socket:
            await gateway.until_counts(serving=1, waiting=0)
            transport = socket.get_extra_info("socket")
            assert transport is not None
            response = socket._response.connection  # the connection itself, without a close frame
            assert response is not None and response.transport is not None
            response.transport.abort()
            await gateway.until_counts(serving=0, waiting=0)
        await gateway.until(lambda: gateway.events("closed"))
        assert gateway.events("closed")[0]["code"] == 1006


@pytest.mark.parametrize(("limit", "order", "code"), [(None, "exit 3", 1011), (0.2, "echo", 1001)])
async def test_a_connection_that_is_cut_off_gets_a_close_code(
    start_gateway: StartGateway, client: aiohttp.ClientSession, engines: Any, limit: float | None, order: str, code: int
) -> None:
    profile = {"engine": "ws"} if limit is None else {"engine": "ws", "max_answer_s": limit}
    async with start_gateway({"a": profile}, engines=engines) as gateway:
        async with connected(client, gateway) as socket:
            await socket.send_str(order)
            while (message := await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, code)
        await gateway.until_counts(serving=0, waiting=0)
        assert (await gateway.chat("a")).status_code == 200


async def test_a_gateway_that_stops_says_so(
    start_gateway: StartGateway, client: aiohttp.ClientSession, engines: Any
) -> None:
    async with start_gateway({"a": {"engine": "ws"}}, engines=engines) as gateway, connected(client, gateway) as socket:
        gateway.app.stop()  # does not wait for the connection, which would never end by itself
        closing = await socket.receive()
        assert (closing.type, closing.data) == (aiohttp.WSMsgType.CLOSE, 1001)


async def test_what_a_client_does_not_read_is_not_buffered(
    start_gateway: StartGateway, client: aiohttp.ClientSession, engines: Any
) -> None:
    size = 64
    async with start_gateway({"a": {"engine": "ws"}}, engines=engines) as gateway, connected(client, gateway) as socket:
        await socket.send_str(f"flood {size << 20}")
        sent = -1
        while sent < 0 or sent != gateway.events("flood")[-1]["sent"]:
            await gateway.until(lambda: gateway.events("flood"))
            sent = gateway.events("flood")[-1]["sent"]
            await anyio.sleep(0.5)  # until nothing moves any more
        assert sent < size - 16
        received = [len((await socket.receive()).data) for _ in range(size)]
        assert received == [1 << 20] * size


async def test_keys_and_origins_count_as_for_all_requests(
    start_gateway: StartGateway, client: aiohttp.ClientSession, engines: Any, tmp_path: Path
) -> None:
    file, keys = write_keys(tmp_path, user=0)
    path = "/upstream/a/ws"
    async with start_gateway({"a": {"engine": "ws"}}, engines=engines, gateway={"api_keys_file": file}) as gateway:
        assert await status_of(client, gateway, path) == 401
        key = {"Authorization": f"Bearer {keys['user']}"}
        assert await status_of(client, gateway, path, headers={**key, "Origin": "https://evil.example"}) == 403
        assert await status_of(client, gateway, path, headers={**key, "Host": "evil.example"}) == 421
        assert not gateway.events("handshake")
        async with connected(client, gateway, path, headers={**key, "Origin": gateway.url}) as socket:
            await socket.send_str("echo")
            assert (await socket.receive()).data == "echo"


@pytest.mark.parametrize(
    "path",
    ["/upstream/a/plain", "/upstream/unknown/ws", "/v1/responses", "/ws", "/admin/status?model=a", "/upstream/a/../ws"],
)
async def test_everything_else_is_answered_426(
    start_gateway: StartGateway, client: aiohttp.ClientSession, engines: Any, path: str
) -> None:
    async with start_gateway({"a": {"engine": "ws"}}, engines=engines) as gateway:
        assert await status_of(client, gateway, path) == 426
        assert (await gateway.chat("a")).status_code == 200, "which is no failure of the engine"


@pytest.fixture
def backend_log(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "backend.log"
    file.touch()
    yield file


@pytest.mark.parametrize("kind", ["openai", "llamacpp"])
async def test_servers_without_a_supervisor_are_reached_with_their_key(
    start_gateway: StartGateway, client: aiohttp.ClientSession, backend_log: Path, kind: str
) -> None:
    from aiohttp.test_utils import TestServer

    async with TestServer(engine("theirs", backend_log)) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        backend = {"kind": kind, "url": url, "models": {"a": "theirs/a"}, "api_key": "theirs"}
        async with (
            start_gateway({}, backends={"lan": backend}) as gateway,
            connected(client, gateway, "/v1/realtime?model=a") as socket,
        ):
            await socket.send_str("echo")
            assert (await socket.receive()).data == "echo"
    assert EngineLog(backend_log).events("handshake")[-1]["path"] == "/v1/realtime?model=theirs%2Fa"


async def test_a_limit_on_costs_refuses_connections_whose_costs_are_not_counted(
    start_gateway: StartGateway, client: aiohttp.ClientSession, backend_log: Path, tmp_path: Path
) -> None:
    from aiohttp.test_utils import TestServer

    async with TestServer(engine("theirs", backend_log)) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        cloud = {"kind": "openai", "url": url, "models": {"a": "theirs/a"}, "api_key": "theirs", "local": False}
        for limit, status in ((5, 426), (None, None)):
            spending = {"file": str(tmp_path / "spending.json"), "daily_limit": limit}
            async with start_gateway({}, backends={"cloud": cloud}, gateway={"spending": spending}) as gateway:
                if status is not None:
                    assert await status_of(client, gateway, "/v1/realtime?model=a") == status
                    paths = [event["path"] for event in EngineLog(backend_log).events("handshake")]
                    assert set(paths) <= {"/v1/models"}
                    continue
                async with connected(client, gateway, "/v1/realtime?model=a") as socket:
                    await socket.send_str("echo")
                    assert (await socket.receive()).data == "echo"
