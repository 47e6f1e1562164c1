"""Answers, queued requests and admin actions in progress when the gateway stops."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import psutil
import pytest
from fakes.fake_openrouter import start_openrouter
from fakes.flag_file import FlagFile
from system.fallback_chain import openai_backend, start_chain
from system.hostler_process import run_hostler
from system.running_gateway import (
    FAKE_ENGINE,
    EngineLog,
    RunningGateway,
    StartGateway,
    data_events,
    first_token,
    is_complete,
)

pytestmark = pytest.mark.anyio

ENDLESS = {"chunks": 50_000, "chunk_delay": 0.02}


class PendingAnswer:
    """A whole answer that is requested in the background."""

    def __init__(self, gateway: RunningGateway, model: str) -> None:
        self._gateway = gateway
        self._model = model
        self.answer: httpx.Response | None = None
        self.done = anyio.Event()

    async def __call__(self) -> None:
        self.answer = await self._gateway.chat(self._model)
        self.done.set()


def is_refusal(answer: httpx.Response | None) -> bool:
    assert answer is not None
    error = answer.json()["error"]
    return answer.status_code == 503 and error["code"] == "shutting_down"


async def test_answers_aborted_at_the_drain_limit_end_with_an_error(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hostler.requests")
    profiles = {"a": {"parallel": 2, "script": ENDLESS}}
    async with start_gateway(profiles, gateway={"drain_s": 0.3}) as gateway, anyio.create_task_group() as tasks:
        whole = PendingAnswer(gateway, "a")
        async with gateway.stream("a") as stream:
            lines = await first_token(stream)
            tasks.start_soon(whole)
            await gateway.until_counts(serving=2, waiting=0)
            gateway.app.stop()
            rest = [line async for line in lines]
        await whole.done.wait()
        assert data_events("\n".join(rest))[-1]["error"]["code"] == "shutting_down"
        assert is_refusal(whole.answer)
    records = [record for record in caplog.records if record.name == "hostler.requests"]
    said = [line for record in records for line in record.getMessage().splitlines()]
    assert sorted(line.split()[0] for line in said) == ["broken", "failed"]
    assert all(line.split()[1] == "503" and "shutting down" in line for line in said)


async def test_answers_aborted_by_a_second_stop_end_with_an_error(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": ENDLESS}}) as gateway, gateway.stream("a") as stream:
        lines = await first_token(stream)
        gateway.app.stop()
        gateway.app.stop()
        with anyio.fail_after(20):
            rest = [line async for line in lines]
        assert data_events("\n".join(rest))[-1]["error"]["code"] == "shutting_down"


async def test_requests_between_two_attempts_are_refused_at_once(tmp_path: Path) -> None:
    async with start_openrouter("lan") as lan, anyio.create_task_group() as tasks:
        lan.default = "loading"
        backends = {"lan": openai_backend(lan, kind="llamacpp")}
        async with start_chain(tmp_path, backends, gateway={"drain_s": 60}) as chain:
            answers: list[httpx.Response] = []

            async def ask() -> None:
                answers.append(await chain.chat())

            tasks.start_soon(ask)
            await chain.until(lambda: lan.requests)
            chain.app.stop()
            await chain.until(lambda: answers)
    assert is_refusal(answers[0])
    assert answers[0].json()["error"]["message"].startswith("the gateway is shutting down and accepts no new work")
    (finished,) = chain.finished
    assert (finished.outcome, finished.code, finished.status) == ("failed", "shutting_down", 503)
    assert {attempt.outcome for attempt in finished.attempts} == {"loading"}


async def test_queued_requests_are_refused_at_once_and_answers_continue(
    start_gateway: StartGateway, flags: Callable[[str], FlagFile]
) -> None:
    last = flags("last")
    profiles = {"a": {"script": {"last_when": last.path}}, "b": {}}
    async with start_gateway(profiles) as gateway, anyio.create_task_group() as tasks:
        same, other = PendingAnswer(gateway, "a"), PendingAnswer(gateway, "b")
        async with gateway.stream("a") as stream:
            lines = await first_token(stream)
            tasks.start_soon(same)
            tasks.start_soon(other)
            await gateway.until_counts(serving=1, waiting=2)
            gateway.app.stop()
            with anyio.fail_after(20):
                await same.done.wait()
                await other.done.wait()
            last.set()
            rest = [line async for line in lines]
        assert is_complete("\n".join(rest))
        assert is_refusal(same.answer)
        assert is_refusal(other.answer)


async def test_an_aborted_admin_action_ends_with_an_error(start_gateway: StartGateway, tmp_path: Path) -> None:
    gone = FlagFile(tmp_path / "gone")
    profiles = {"a": {"stop_grace_s": 60, "script": {"gone_when": gone.path}}}
    async with start_gateway(profiles, gateway={"drain_s": 0.2}) as gateway, anyio.create_task_group() as tasks:
        await gateway.chat("a")
        answers: list[httpx.Response] = []

        async def unload() -> None:
            try:
                answers.append(await gateway.action("unload", model="a"))
            finally:
                gone.set()

        tasks.start_soon(unload)
        await gateway.until_status(lambda hosts: hosts["local"]["engines"][0]["phase"] == "stopping")
        gateway.app.stop()
    assert is_refusal(answers[0])
    assert answers[0].headers["connection"] == "close"


async def test_stopping_finishes_the_answer_in_progress(
    start_gateway: StartGateway, flags: Callable[[str], FlagFile]
) -> None:
    last = flags("last")

    async def finish() -> None:
        # Not a wait for an event: by then an aborted client would have received its error.
        await anyio.sleep(0.5)
        last.set()

    async with start_gateway({"a": {"script": {"last_when": last.path}}}) as gateway:
        async with anyio.create_task_group() as tasks, gateway.stream("a") as answer:
            lines = await first_token(answer)
            gateway.app.stop()
            tasks.start_soon(finish)
            rest = [line async for line in lines]
        assert is_complete("\n".join(rest))
        # On a connection of its own: a kept one may be used again in the moment in which the gateway closes it.
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as newcomer:
            with pytest.raises(httpx.ConnectError):
                await newcomer.get("/healthz")


async def test_a_third_signal_waits_for_no_engine(tmp_path: Path) -> None:
    """The second one has ended the answers; an engine may take `stop_grace_s` to end by itself."""
    model = tmp_path / "model.gguf"
    model.write_bytes(b"not read by the scripted engine")
    script = {"log": str(tmp_path / "engines.log"), "last_when": str(tmp_path / "never"), "ignore_stop": True}
    document = {
        "gateway": {"listen": ["127.0.0.1:0"], "drain_s": 600},
        "supervisor": {"engine": f"{sys.executable} -I -S {FAKE_ENGINE}", "stop_grace_s": 600},
        "profiles": {"a": {"model": str(model), "env": {"FAKE_ENGINE": json.dumps(script)}}},
    }
    path = tmp_path / "hostler.yaml"
    path.write_text(json.dumps(document))
    environ = {"HOSTLER_CACHE": str(tmp_path / "cache"), "XDG_STATE_HOME": str(tmp_path / "state")}
    body = {"model": "a", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    with run_hostler("up", "--plain", "-c", str(path), errors=tmp_path / "log", environ=environ) as running:
        async with (
            httpx.AsyncClient(base_url=running.address, trust_env=False, timeout=60) as http,
            http.stream("POST", "/v1/chat/completions", json=body) as answer,
        ):
            async for line in answer.aiter_lines():
                if "content" in line:
                    break
            # One that follows within a moment repeats the first one.
            with anyio.fail_after(30):
                while running.log.count("received again") < 2:
                    running.process.send_signal(signal.SIGTERM)
                    await anyio.sleep(0.05)
                await anyio.to_thread.run_sync(running.process.wait)
    engine = EngineLog(tmp_path / "engines.log").events("start")[-1]["pid"]
    assert not psutil.pid_exists(engine)
