"""A gateway with several worker processes behaves like one process, and its workers may end at any time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fakes.fake_openrouter import FakeOpenRouter
from fakes.flag_file import FlagFile
from system.hostler_process import run_hostler
from system.running_gateway import FAKE_ENGINE, RunningGateway, StartGateway, first_token, is_complete

from hostler.gateway.auth import keys
from hostler.gateway.context import KeyRules
from hostler.gateway.worker_service import WorkerService

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

TWO = {"workers": 2}
CHAT = {"model": "a", "messages": [{"role": "user", "content": "Hello"}]}


def service(gateway: RunningGateway) -> WorkerService:
    found = gateway.app._workers
    assert found is not None
    return found


async def chat(http: httpx.AsyncClient) -> None:
    """An answer."""
    answer = await http.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200, answer.text


@asynccontextmanager
async def own_connections(gateway: RunningGateway, count: int) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Clients with a connection each; the system spreads them over the workers."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(httpx.AsyncClient(base_url=gateway.url, timeout=30, trust_env=False))
            for _ in range(count)
        ]


@asynccontextmanager
async def stream_on_each_worker(gateway: RunningGateway) -> AsyncIterator[dict[int, httpx.Response]]:
    """A streamed answer that has begun on each worker, by the worker's number."""
    pool, streams = service(gateway).pool, dict[int, httpx.Response]()
    async with AsyncExitStack() as stack:
        while len(streams) < pool.count:
            http = await stack.enter_async_context(httpx.AsyncClient(base_url=gateway.url, timeout=60, trust_env=False))
            name = f"stream-{len(streams)}-{id(http)}"
            answer = await stack.enter_async_context(
                http.stream(
                    "POST", "/v1/chat/completions", json={**CHAT, "stream": True}, headers={"X-Request-ID": name}
                )
            )
            await first_token(answer)
            await pool.refresh()
            owner = next(each.number for each in pool.processes if any(view.id == name for view in each.in_flight))
            if owner in streams:
                await answer.aclose()
            streams.setdefault(owner, answer)
        yield streams


async def test_limits_of_keys_hold_over_all_workers(start_gateway: StartGateway, tmp_path: Path) -> None:
    key = keys.add(tmp_path / "keys", "bob", ["infer"], rules=KeyRules(requests_per_minute=5))
    settings = {**TWO, "api_keys_file": str(tmp_path / "keys"), "key_usage_file": str(tmp_path / "usage.json")}
    async with start_gateway({"a": {}}, gateway=settings) as gateway, own_connections(gateway, 16) as clients:
        headers = {"Authorization": f"Bearer {key}"}
        answers = await asyncio.gather(
            *(http.post("/v1/chat/completions", json=CHAT, headers=headers) for http in clients)
        )
        assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 11


async def test_the_daily_limit_holds_over_all_workers(
    start_gateway: StartGateway, cloud: FakeOpenRouter, tmp_path: Path
) -> None:
    backend = {"kind": "openai", "url": f"{cloud.url}/v1", "models": {"a": "m"}, "local": False}
    settings = {**TWO, "spending": {"daily_limit": 0.5, "file": str(tmp_path / "spent.json")}}
    async with start_gateway({}, gateway=settings, backends={"cloud": backend}) as gateway:
        async with own_connections(gateway, 8) as clients:
            answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=CHAT) for http in clients))
        # Nothing is known of its prices yet: one request at a time, over all workers.
        assert [answer.status_code for answer in answers].count(200) == 1


async def test_a_revoked_key_ends_at_all_workers(start_gateway: StartGateway, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key = keys.add(path, "bob", ["infer"])
    keys.add(path, "eve", ["infer"])
    settings = {**TWO, "api_keys_file": str(path)}
    async with start_gateway({"a": {}}, gateway=settings) as gateway, own_connections(gateway, 8) as clients:
        headers = {"Authorization": f"Bearer {key}"}

        async def statuses() -> set[object]:
            answers = [await http.post("/v1/chat/completions", json=CHAT, headers=headers) for http in clients]
            return {answer.status_code if answer.status_code in (200, 401) else answer.text for answer in answers}

        assert await statuses() == {200}
        keys.revoke(path, "bob")
        with anyio.fail_after(20):
            while await statuses() != {401}:
                pass
        assert await statuses() == {401}


async def test_the_throttle_of_invalid_keys_counts_over_all_workers(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    keys.add(tmp_path / "keys", "bob", ["infer"])
    settings = {**TWO, "api_keys_file": str(tmp_path / "keys")}
    async with start_gateway({"a": {}}, gateway=settings) as gateway, own_connections(gateway, 8) as clients:
        seen: list[int] = []
        for number in range(260):
            http, headers = clients[number % 8], {"Authorization": f"Bearer wrong-{number}"}
            seen.append((await http.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code)
        assert seen.index(429) == 250
        assert set(seen[250:]) == {429}


async def test_requests_of_all_workers_are_shown_counted_and_cancelled(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    last = FlagFile(tmp_path / "last")
    profiles = {"a": {"parallel": 8, "script": {"last_when": last.path}}}
    async with start_gateway(profiles, gateway=TWO) as gateway:
        async with stream_on_each_worker(gateway) as streams:
            shown = {view["id"] for view in (await gateway.status())["in_flight"]}
            ids = {answer.request.headers["X-Request-ID"] for answer in streams.values()}
            assert ids <= shown
            for request_id in ids:
                cancelled = await gateway.action("cancel", id=request_id)
                assert (cancelled.status_code, cancelled.json()["cancelled"]) == (200, 1)
            assert (await gateway.action("cancel", id="of nobody")).status_code == 404
        last.set()
        async with own_connections(gateway, 8) as clients:
            for http in clients:
                await chat(http)
        await gateway.until_counts(serving=0, waiting=0)
        metrics = (await gateway.http.get("/metrics")).text
        counted = [
            line for line in metrics.splitlines() if line.startswith("hostler_attempts_total{") and "answered" in line
        ]
        assert [float(line.split()[-1]) for line in counted] == [8.0]
        assert "hostler_workers 2.0" in metrics
        history = (await gateway.http.get("/admin/history")).json()
        assert sum(entry["event"]["outcome"] == "ok" for entry in history) == 8


async def test_a_killed_worker_takes_only_its_own_streams_along(start_gateway: StartGateway, tmp_path: Path) -> None:
    last = FlagFile(tmp_path / "last")
    profiles = {"a": {"parallel": 8, "script": {"last_when": last.path}}}
    async with start_gateway(profiles, gateway=TWO) as gateway, stream_on_each_worker(gateway) as streams:
        pool = service(gateway).pool
        killed, other = pool.processes
        assert killed.pid is not None
        os.kill(killed.pid, signal.SIGKILL)
        with pytest.raises(httpx.HTTPError):
            async for _ in streams[killed.number].extensions["lines"]:
                pass
        last.set()
        text = "\n".join([line async for line in streams[other.number].extensions["lines"]])
        assert is_complete(text), text
        with anyio.fail_after(60):
            while pool.restarts < 1 or pool.serving < 2:  # noqa: ASYNC110 - a process comes up
                await anyio.sleep(0.02)
        async with own_connections(gateway, 8) as clients:
            for http in clients:
                await chat(http)


async def test_requests_that_wait_are_refused_when_the_gateway_stops(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    last = FlagFile(tmp_path / "last")
    async with (
        start_gateway({"a": {"script": {"last_when": last.path}}}, gateway=TWO) as gateway,
        own_connections(gateway, 2) as clients,
        anyio.create_task_group() as tasks,
    ):
        answers: list[httpx.Response] = []

        async def ask(http: httpx.AsyncClient) -> None:
            answers.append(await http.post("/v1/chat/completions", json=CHAT))

        async with gateway.stream("a") as stream:
            await first_token(stream)
            for http in clients:
                tasks.start_soon(ask, http)
            await gateway.until_counts(serving=1, waiting=2)
            gateway.app.stop()
            with anyio.fail_after(30):
                while len(answers) < 2:  # noqa: ASYNC110 - answers of another process
                    await anyio.sleep(0.01)
            last.set()
        assert {(answer.status_code, answer.json()["error"]["code"]) for answer in answers} == {(503, "shutting_down")}


async def test_nothing_is_refused_while_a_worker_starts_again(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}}, gateway=TWO | {"queue": {"max_waiting": 20}}) as gateway:
        pool = service(gateway).pool
        assert pool.processes[0].pid is not None
        os.kill(pool.processes[0].pid, signal.SIGKILL)
        async with own_connections(gateway, 12) as clients:
            answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=CHAT) for http in clients))
        assert {answer.status_code for answer in answers} == {200}


async def test_connections_are_served_while_a_worker_cannot_start(start_gateway: StartGateway, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    headers = {"Authorization": f"Bearer {keys.add(path, 'bob', ['infer'])}"}
    async with start_gateway({"a": {}}, gateway={**TWO, "api_keys_file": str(path)}) as gateway:
        pool, good = service(gateway).pool, path.read_text()

        async def ask() -> set[int]:
            async with own_connections(gateway, 12) as clients:
                answers = [await http.post("/v1/chat/completions", json=CHAT, headers=headers) for http in clients]
            return {answer.status_code for answer in answers}

        async def until_serving(count: int) -> None:
            with anyio.fail_after(60):
                while pool.serving != count:  # noqa: ASYNC110 - processes end and start
                    await anyio.sleep(0.02)

        path.write_text("no key")  # the others keep those that they have read
        assert pool.processes[0].pid is not None
        os.kill(pool.processes[0].pid, signal.SIGKILL)
        await until_serving(1)
        assert await ask() == {200}
        assert pool.serving == 1
        path.write_text(good)
        await until_serving(2)
        assert await ask() == {200}


def configuration(folder: Path, **script: Any) -> str:
    """A configuration file with one model, for `hostler up` with two workers; its path."""
    model = folder / "model.gguf"
    model.write_bytes(b"not read by the scripted engine")
    engine = {"log": str(folder / "engines.log"), **script}
    document = {
        "gateway": {"listen": ["127.0.0.1:0"], "workers": 2, "api_keys_file": None},
        "supervisor": {"engine": f"{sys.executable} -I -S {FAKE_ENGINE}"},
        "profiles": {"a": {"model": str(model), "env": {"FAKE_ENGINE": json.dumps(engine)}}},
    }
    path = folder / "hostler.yaml"
    path.write_text(json.dumps(document))
    return str(path)


def descendants(pid: int) -> set[int]:
    """The processes that this one has started, and those have."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child} | descendants(child)
    return found


def is_worker(pid: int) -> bool:
    return b"hostler.gateway.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("frozen", [False, True])
async def test_a_killed_main_process_leaves_nothing_behind(tmp_path: Path, frozen: bool) -> None:
    with run_hostler("up", "--config", configuration(tmp_path), "--plain", errors=tmp_path / "log") as hostler:
        async with httpx.AsyncClient(base_url=hostler.address, timeout=60, trust_env=False) as http:
            await chat(http)
        started = descendants(hostler.process.pid)
        workers = [pid for pid in started if is_worker(pid)]
        assert len(workers) == 2
        assert len(started) > 2  # the engine
        if frozen:
            os.kill(workers[0], signal.SIGSTOP)
        hostler.process.kill()
        with anyio.fail_after(30):
            while any(map(is_running, started)):  # noqa: ASYNC110 - processes end
                await anyio.sleep(0.02)


async def test_a_gateway_alone_has_workers_on_all_its_addresses(tmp_path: Path, lan: FakeOpenRouter) -> None:
    socket = tmp_path / "gateway.sock"
    document = {
        "gateway": {"listen": ["127.0.0.1:0", f"unix:{socket}"], "workers": 2},
        "backends": {"lan": {"kind": "openai", "url": lan.url, "models": {"a": "m"}}},
    }
    (tmp_path / "hostler.yaml").write_text(json.dumps(document))
    environ = {"XDG_STATE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    arguments = ("gateway", "--config", str(tmp_path / "hostler.yaml"), "--plain")
    with run_hostler(*arguments, errors=tmp_path / "log", environ=environ) as hostler:
        async with (
            httpx.AsyncClient(base_url=hostler.address, timeout=60, trust_env=False) as tcp,
            httpx.AsyncClient(
                base_url="http://localhost", timeout=60, transport=httpx.AsyncHTTPTransport(uds=str(socket))
            ) as unix,
        ):
            for http in (tcp, unix):
                await chat(http)
                assert "a" in (await http.get("/v1/models")).text
        assert await anyio.to_thread.run_sync(hostler.stop) == 0
        assert hostler.log.count(" ok 200 openai.chat ") == 2
        assert not socket.exists()


@pytest.mark.parametrize("to_all", [False, True])
async def test_sigterm_ends_answers_in_progress_before_the_processes(tmp_path: Path, to_all: bool) -> None:
    """A service manager sends it to the main process, or to all of them."""
    last = FlagFile(tmp_path / "last")
    path = configuration(tmp_path, last_when=last.path)
    with run_hostler("up", "--config", path, "--plain", errors=tmp_path / "log") as hostler:
        async with (
            httpx.AsyncClient(base_url=hostler.address, timeout=60, trust_env=False) as http,
            http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer,
        ):
            lines = await first_token(answer)
            started = descendants(hostler.process.pid)
            if to_all:
                for pid in filter(is_worker, started):
                    os.kill(pid, signal.SIGTERM)
                with anyio.fail_after(60):
                    while "another one is started" not in hostler.log:  # noqa: ASYNC110 - the idle worker ends
                        await anyio.sleep(0.02)
            hostler.process.terminate()
            with anyio.fail_after(60):
                while "finishing requests in progress" not in hostler.log:  # noqa: ASYNC110 - a file
                    await anyio.sleep(0.02)
            last.set()
            text = "\n".join([line async for line in lines])
        assert is_complete(text), text
        assert await anyio.to_thread.run_sync(hostler.process.wait, 60) == 0
        assert not any(map(is_running, started))
        assert "Traceback" not in hostler.log
