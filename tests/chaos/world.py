"""What the storm rages in: two machines with supervisors, a cloud and a gateway, all processes on loopback."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import httpx
import psutil
from fakes.gguf_files import LLAMA, TENSORS, GgufWriter
from fakes.ports import free_port
from system.three_machines import Machine

FOLDER = Path(__file__).parent
BACKEND = f"{sys.executable} -I -S {FOLDER / 'backend.py'}"
TOKEN = "the-storm's-token"
#: The machines' models; the cloud answers for all of them.
MODELS = ("a", "b")
MARK = "STORM_ID"


class Program(Machine):
    """A `hostler` command with a configuration file. `up`: it serves, for the time of so many `starts`."""

    def __init__(
        self, folder: Path, command: str, name: str, document: dict[str, Any], environ: dict[str, str]
    ) -> None:
        self.name = name
        self.file = folder / f"{name}.yaml"
        self.document = document
        self.file.write_text(json.dumps(document))
        own = {"HOSTLER_CACHE": str(folder / f"cache-{name}"), "XDG_STATE_HOME": str(folder / f"state-{name}")}
        super().__init__(folder, command, self.file, {**environ, **own})
        self.starts = 0
        self.up = False
        self.longest_start_s = self.longest_stop_s = 0.0

    async def start(self) -> None:
        began = time.monotonic()
        await super().start()
        self.starts, self.up = self.starts + 1, True
        self.longest_start_s = max(self.longest_start_s, time.monotonic() - began)

    async def stop(self) -> None:
        self.up = False
        began = time.monotonic()
        await super().stop()
        self.longest_stop_s = max(self.longest_stop_s, time.monotonic() - began)

    async def kill(self) -> None:
        self.up = False
        await super().kill()

    async def crash(self) -> None:
        """Kill the program alone; its engines have to notice."""
        self.up = False
        assert self.running is not None
        self.running.process.kill()
        await self.stop()

    def engines(self) -> list[psutil.Process]:
        """The processes of its engines."""
        if self.running is None:
            return []
        with suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.running.process.pid).children(recursive=True)
            return [each for each in found if _is_backend(each)]
        return []

    @contextmanager
    def disk_full(self) -> Iterator[None]:
        """Let every write to a file fail meanwhile."""
        assert self.running is not None
        process = psutil.Process(self.running.process.pid)
        everyone = [process, *process.children(recursive=True)]
        for each in everyone:
            _limit_files(each, 0)
        try:
            yield
        finally:
            for each in everyone:
                _limit_files(each, resource.RLIM_INFINITY)


def _is_backend(process: psutil.Process) -> bool:
    try:
        return any("backend.py" in word for word in process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def _limit_files(process: psutil.Process, size: int) -> None:
    with suppress(psutil.NoSuchProcess):
        _, hard = process.rlimit(resource.RLIMIT_FSIZE)
        process.rlimit(resource.RLIMIT_FSIZE, (size, hard))


class Cloud:
    """A server of the kind `openai`."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.port = free_port()
        self._environ = environ
        self._process: anyio.abc.Process | None = None

    async def start(self) -> None:
        arguments = [*BACKEND.split(), "--port", str(self.port), "--alias", "cloud", "--storm-cloud"]
        self._process = await anyio.open_process(
            arguments, env={**os.environ, **self._environ}, stdin=subprocess.DEVNULL, stdout=None, stderr=None
        )
        with anyio.fail_after(20):
            while True:
                with suppress(OSError):
                    stream = await anyio.connect_tcp("127.0.0.1", self.port)
                    await stream.aclose()
                    return
                await anyio.sleep(0.02)

    async def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await process.wait()


class Programs:
    """Programs that are known by a mark in their environment."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex

    @property
    def programs(self) -> Sequence[Program]:
        """All of them."""
        raise NotImplementedError

    def left(self) -> list[int]:
        """The processes that belong to this storm and still run."""
        return [process.pid for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.mark
        except psutil.Error:
            return False

    def tracebacks(self) -> list[str]:
        """What the programs' logs hold of tracebacks."""
        found = []
        for program in self.programs:
            log = program.log
            at = log.find("Traceback (most recent call last)")
            if at >= 0:
                found.append(f"{program.name}: {log[max(0, at - 500) : at + 3000]}")
        return found


class World(Programs):
    """All programs. `faults` is what backends do to requests, `clock` how far the programs' clocks are off, in seconds."""

    def __init__(self, folder: Path, seed: int, *, gateways: int = 1) -> None:
        super().__init__()
        self._seed = seed
        self._faults, self._clock = folder / "faults.json", folder / "clock"
        (folder / "model.gguf").write_bytes(GgufWriter().bytes(LLAMA, TENSORS))
        environ = {
            MARK: self.mark,
            "STORM_FAULTS": str(self._faults),
            "STORM_CLOCK": str(self._clock),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "PYTHONPATH": str(FOLDER / "clock"),
        }
        self.order_faults((), 0.0)
        self.set_clock(0.0)
        self.cloud = Cloud(environ)
        ports = [free_port() for _ in range(2)]
        self.machines = [
            Program(folder, "supervisor", f"pc{index}", _machine(folder, port), environ)
            for index, port in enumerate(ports, start=1)
        ]
        self.gateways = [
            Program(folder, "gateway", f"gateway{index}", _gateway(free_port(), ports, self.cloud.port), environ)
            for index in range(1, gateways + 1)
        ]

    @property
    def programs(self) -> list[Program]:
        return [*self.machines, *self.gateways]

    def url(self, gateway: Program) -> str:
        """Where it listens, also while it does not run."""
        return f"http://{gateway.document['gateway']['listen'][0]}"

    def order_faults(self, kinds: Sequence[str], rate: float) -> None:
        """Let this share of all requests fail in these ways from now on."""
        fresh = self._faults.with_suffix(".new")
        fresh.write_text(json.dumps({"kinds": list(kinds), "rate": rate, "seed": self._seed}))
        fresh.replace(self._faults)

    def set_clock(self, offset_s: float) -> None:
        """Set the clock of all programs."""
        self._clock.write_text(str(offset_s))


def _machine(folder: Path, port: int) -> dict[str, Any]:
    return {
        "gateway": {"logging": {"level": "warning"}},
        "supervisor": {
            "listen": f"127.0.0.1:{port}",
            "token": TOKEN,
            "engine": BACKEND,
            "stop_grace_s": 1.0,
            "start_timeout_s": 10.0,
            "drain_s": 5.0,
            "backoff_s": 0.1,
            "max_backoff_s": 0.5,
            "watchdog_s": 2.0,
            "slots_max": 0,
        },
        "profiles": {
            name: {"model": str(folder / "model.gguf"), "parallel": 4, "ttl_s": 5 if name == "b" else None}
            for name in MODELS
        },
    }


def _gateway(port: int, machines: Sequence[int], cloud: int) -> dict[str, Any]:
    backends: dict[str, Any] = {
        f"pc{index}": {"kind": "supervisor", "url": f"http://127.0.0.1:{each}", "token": TOKEN}
        for index, each in enumerate(machines, start=1)
    }
    backends["cloud"] = {
        "kind": "openai",
        "url": f"http://127.0.0.1:{cloud}/v1",
        "models": {name: name for name in MODELS},
        "local": False,
    }
    timeouts = {"connect_s": 0.5, "first_byte_s": 3, "first_token_s": 3, "between_bytes_s": 1}
    return {**gateway_document(port, max_wait_s=20, timeouts=timeouts), "backends": backends}


def gateway_document(port: int, *, max_wait_s: int, timeouts: Mapping[str, float], **more: Any) -> dict[str, Any]:
    """A gateway that notices failures and recoveries quickly. `more` are further settings in `gateway`."""
    return {
        "gateway": {
            "listen": [f"127.0.0.1:{port}"],
            "drain_s": 10,
            "logging": {"level": "warning"},
            "queue": {"max_waiting": 200, "max_wait_s": max_wait_s},
            "switching": {"patience_s": 0.5},
            "timeouts": timeouts,
            "probing": {"every_s": 1, "down_every_s": 0.2},
            **more,
        },
        "breaker": {"failures": 3, "open_s": 0.2, "max_open_s": 1},
    }


@asynccontextmanager
async def start_world(folder: Path, seed: int, *, gateways: int = 1) -> AsyncIterator[World]:
    """Run all programs; whatever is left of them is ended with the context."""
    world = World(folder, seed, gateways=gateways)
    try:
        await world.cloud.start()
        for program in world.programs:
            await program.start()
        yield world
    finally:
        with anyio.CancelScope(shield=True):
            for program in reversed(world.programs):
                await program.stop()
            await world.cloud.kill()


def freeze(process: psutil.Process) -> None:
    """Suspend a process; it may be gone."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGSTOP)


def resume(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGCONT)


async def until_used(world: World, http: httpx.AsyncClient, backend: str, chance: random.Random) -> None:
    """Wait until a healthy backend answers again: no request names it, which would close its circuit."""
    body = {"messages": [{"role": "user", "content": "This is number again, 2 words, please."}]}
    with anyio.fail_after(60):
        while True:
            model = chance.choice(MODELS)
            answer = await http.post(
                f"{world.url(world.gateways[0])}/v1/chat/completions", json={"model": model, **body}
            )
            if answer.status_code == 200 and answer.headers.get("x-hostler-backend") == backend:
                return
            await anyio.sleep(0.05)
