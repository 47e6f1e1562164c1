"""A home lab: five engines of different kinds share one GPU, and clients want all of them at once.

`HOSTLER_HOME_LAB` is for how many minutes; without it, 60 requests are sent.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from fakes.stub_programs import StubPrograms
from system.running_gateway import RunningGateway, StartGateway

REQUESTS = 60
SECONDS = 60 * float(os.environ.get("HOSTLER_HOME_LAB", "0"))
CLIENTS = 4

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120 + SECONDS)]

#: GiB of each model on the GPU, by the name that its engine logs.
MEMORY = {"chat": 14, "embedder": 2, "whisper-server": 6, "sd-server": 16, "vllm": 18}
BUDGET = 22


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubPrograms:
    """Stubs of the programs, first on the PATH."""
    programs = StubPrograms(tmp_path)
    monkeypatch.setenv("PATH", f"{programs.folder}{os.pathsep}{os.environ['PATH']}")
    return programs


def profiles(stubs: StubPrograms) -> dict[str, dict[str, Any]]:
    def profile(engine: str | None, name: str, **more: Any) -> dict[str, Any]:
        given = {"memory": f"{MEMORY[name]}GiB", "devices": ["gpu0"], **more}
        return given if engine is None else {"engine": engine, "env": stubs.env(), **given}

    return {
        "qwen": profile(None, "chat"),
        "bge": profile(None, "embedder", embeddings=True),
        "whisper": profile("whisper-server", "whisper-server"),
        "flux": profile("sd-server", "sd-server"),
        "coder": profile("vllm-docker", "vllm"),
    }


async def ask(gateway: RunningGateway, model: str) -> str:
    """Send a request of the model's kind; returns "answered", or what came instead."""
    if model == "whisper":
        answer = await gateway.http.post(
            "/v1/audio/transcriptions", data={"model": model}, files={"file": ("a.wav", b"RIFF" * 100)}
        )
    elif model == "flux":
        answer = await gateway.http.post("/v1/images/generations", json={"model": model, "prompt": "a cat"})
    elif model == "bge":
        answer = await gateway.http.post("/v1/embeddings", json={"model": model, "input": "a cat"})
    else:
        answer = await gateway.chat(model)
    return "answered" if answer.status_code == 200 else f"{model}: {answer.status_code} {answer.text}"


class Engines:
    """The processes of all engines, as they themselves logged their starts. It reads each log once, for runs of an hour."""

    def __init__(self, gateway: RunningGateway, stubs: StubPrograms) -> None:
        self._logs = [gateway.log, stubs.log]
        self._read = [0, 0]
        self._running: dict[int, tuple[str, str]] = {}
        self.started: Counter[str] = Counter()

    def running(self) -> list[tuple[str, str]]:
        """Name and port of each engine that runs now."""
        for event in self._new_starts():
            port = event["argv"][1 + next(at for at, word in enumerate(event["argv"]) if "port" in word)]
            self._running[event["pid"]] = self.name(event), port
            self.started[self.name(event)] += 1
        self._running = {pid: engine for pid, engine in self._running.items() if _runs(pid)}
        return list(self._running.values())

    def _new_starts(self) -> Iterator[dict[str, Any]]:
        for index, log in enumerate(self._logs):
            if not log.exists():
                continue
            with log.open("rb") as file:
                file.seek(self._read[index])
                # The last line may be half written.
                text, newline, _ = file.read().rpartition(b"\n")
            self._read[index] += len(text) + len(newline)
            for line in text.splitlines():
                event = json.loads(line)
                if event["event"] == "start":
                    yield event

    def name(self, event: dict[str, Any]) -> str:
        """The name in `MEMORY` of the engine that logged the event."""
        return {"qwen": "chat", "bge": "embedder"}.get(event.get("model", ""), event.get("program", ""))


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def test_five_engines_switch_by_request_under_load(start_gateway: StartGateway, stubs: StubPrograms) -> None:
    answers: Counter[str] = Counter()
    beyond: list[list[tuple[str, str]]] = []
    chance = random.Random(5)
    names = list(profiles(stubs))
    first = [*names]
    until = time.monotonic() + SECONDS
    supervisor = {"devices": {"gpu0": {"budget": f"{BUDGET}GiB"}}}
    async with start_gateway(profiles(stubs), supervisor=supervisor) as gateway:
        gateway.http.timeout = 60
        engines = Engines(gateway, stubs)

        async def client() -> None:
            while answers.total() + CLIENTS <= REQUESTS or time.monotonic() < until:
                answers[await ask(gateway, first.pop() if first else chance.choice(names))] += 1

        async def watch() -> None:
            while True:
                running = engines.running()
                memory = sum(MEMORY[name] for name, _ in running)
                if memory > BUDGET or len({port for _, port in running}) < len(running):
                    beyond.append(running)
                await anyio.sleep(0.02)

        async with anyio.create_task_group() as watching:
            watching.start_soon(watch)
            async with anyio.create_task_group() as clients:
                for _ in range(CLIENTS):
                    clients.start_soon(client)
            watching.cancel_scope.cancel()
        failures = [status.failure for status in gateway.manager.status_now().models if status.failure is not None]
    assert set(answers) == {"answered"}
    assert answers["answered"] >= REQUESTS - CLIENTS
    still_running = engines.running()
    assert set(engines.started) == set(MEMORY)
    assert not beyond, "more on the GPU than fits, or two engines at one port"
    assert not failures, "two engines wanted one port, or one could not start"
    assert not still_running, "an engine outlives its supervisor"
    assert not stubs.containers(), "a container was left behind"
