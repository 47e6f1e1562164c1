"""Measurements that survive a restart: times of loads and answers, and the figures of charts."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fakes.flag_file import FlagFile
from system.fallback_chain import start_chain
from system.running_gateway import StartGateway, remote_supervisor, until_hosts_reachable

from hostler.gateway.app import Gateway
from hostler.gateway.config import read
from hostler.gateway.events import Event, RequestFinished
from hostler.gateway.server.server import bind

pytestmark = pytest.mark.anyio

SLOW = {"a": {"script": {"ready_after": 0.3}}, "b": {}}


async def expected(http: httpx.AsyncClient) -> dict[str, Any]:
    """The estimated load time of `a`, wherever it is shown."""
    forecast = (await http.get("/admin/forecast", params={"model": "a"})).json()
    (host, *_) = (await http.get("/admin/status")).json()["hosts"]
    engine = next(each for each in host["engines"] if each["model"] == "a")
    profile = next(each for each in host["host"]["profiles"] if each["name"] == "a")
    return {
        "forecast": forecast["hosts"][host["backend"]]["load_s"],
        "engine": engine["load_s"],
        "profile": profile["load_s"],
    }


async def test_load_times_survive_a_restart_of_gateway_and_supervisor(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with start_gateway(SLOW) as gateway:
        unknown = (await expected(gateway.http))["forecast"]
        await gateway.chat("a")
        await gateway.until(lambda: (tmp_path / "cache" / "load-times.json").exists())
    async with start_gateway(SLOW) as gateway:
        after = await expected(gateway.http)
        await gateway.chat("b")
        eta = (await gateway.http.get("/admin/forecast", params={"model": "a"})).json()["hosts"]["local"]["ready_s"]
    assert 0.3 <= after["forecast"] < unknown
    assert after["forecast"] == pytest.approx(after["engine"], abs=0.01)
    assert after["forecast"] == pytest.approx(after["profile"], abs=0.01)
    assert eta >= after["forecast"]


async def test_a_restarted_gateway_gets_load_times_from_running_supervisors(tmp_path: Path) -> None:
    async with remote_supervisor(tmp_path / "far", SLOW) as far:
        path, history = tmp_path / "hostler.yaml", tmp_path / "history.sqlite3"
        path.write_text(json.dumps({"gateway": {"listen": ["127.0.0.1:0"]}, "backends": {"far": far.backend}}))
        seen: list[tuple[dict[str, Any], int, int]] = []

        async def run_gateway(ask: bool) -> None:
            gateway = Gateway(read(path).settings, history=history)
            sockets = bind([("127.0.0.1", 0)], "gateway.listen")
            started = anyio.Event()
            async with anyio.create_task_group() as tasks:

                async def serve() -> None:
                    await gateway.run(sockets, started=started.set)

                tasks.start_soon(serve)
                await started.wait()
                await until_hosts_reachable(gateway)
                url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
                async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as http:
                    if ask:
                        messages = [{"role": "user", "content": "Hi"}]
                        await http.post("/v1/chat/completions", json={"model": "a", "messages": messages})
                        await http.post("/admin/unload", json={"model": "a"})
                    figures = (await http.get("/admin/figures", params={"minutes": 5, "buckets": 1})).json()
                    seen.append((await expected(http), figures[0]["requests"], figures[0]["switches"]))
                gateway.stop()

        await run_gateway(True)
        measured = next(each.load_s for each in far.manager.status_now().profiles if each.name == "a")
        await run_gateway(False)
    (before, *counts), (after, *counts_after) = seen
    assert counts == counts_after == [1, 1]
    assert after["forecast"] == before["forecast"]
    assert after["forecast"] == pytest.approx(measured, abs=0.05)
    assert after["forecast"] >= 0.3


async def test_answer_times_survive_a_restart(tmp_path: Path, flags: Callable[[str], FlagFile]) -> None:
    speak = flags("speak")
    script = {"answer_when": speak.path, "queue": True}
    async with remote_supervisor(tmp_path / "far", {"a": {"script": script}}) as far:
        history, finished = tmp_path / "history.sqlite3", list[RequestFinished]()

        def on_event(event: Event) -> None:
            if isinstance(event, RequestFinished):
                finished.append(event)

        speak.set()
        async with start_chain(tmp_path, {"far": far.backend}, history=history) as chain:
            await until_hosts_reachable(chain.app)
            chain.app.bus.listen(on_event)
            await chain.chat(model="a")
            await chain.until(lambda: finished)
        speak.clear()
        (event,) = finished
        async with (
            start_chain(tmp_path, {"far": far.backend}, history=history) as chain,
            anyio.create_task_group() as tasks,
        ):
            await until_hosts_reachable(chain.app)
            tasks.start_soon(partial(chain.chat, model="a"))
            tasks.start_soon(partial(chain.chat, model="a"))
            host: dict[str, Any] = {}
            with anyio.fail_after(20):
                while (host.get("serving"), len(host.get("queue", ()))) != (1, 1):
                    (host,) = (await chain.http.get("/admin/status")).json()["hosts"]
            speak.set()
    (waiting,) = host["queue"]
    assert waiting["eta_s"] == pytest.approx(event.seconds - event.queue_s - event.switch_s, abs=0.05)
    assert waiting["eta_s"] != 5.0  # the default for a model without measurements
