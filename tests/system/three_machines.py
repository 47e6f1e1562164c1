"""Three boxes as three processes on loopback, each with the example file that is shipped for it.

Only addresses, paths and secrets are others: each box has a loopback address of its own and keeps the shipped ports. The
engines are scripted; the cloud is scripted, too, and lives in the test's process.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import anyio
import httpx
import psutil
from fakes.fake_openrouter import FakeOpenRouter, start_openrouter
from system.fallback_chain import answer_text, error_in
from system.hostler_process import HostlerProcess, run_hostler
from system.running_gateway import FAKE_ENGINE

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
TOKEN, CLOUD_KEY = "between-the-boxes", "sk-or-of-the-house"

#: What each box says. The scripted engines number their words.
COMPLETE_ANSWERS = {
    "main-pc": "".join(f"pc{number} " for number in range(5)),
    "openrouter": "openrouter:One two three",
    "lxc": "".join(f"small{number} " for number in range(5)),
}


class Machine:
    """A machine: `on` starts its program, `kill` is the power cut, `block` freezes all of it until `resume`."""

    def __init__(self, folder: Path, command: str, file: Path, environ: dict[str, str]) -> None:
        self._arguments = (command, "--config", str(file))
        self._logs = folder / "logs" / file.stem
        self._environ = environ
        self._stack = ExitStack()
        self._starts = itertools.count()
        self.running: HostlerProcess | None = None

    async def on(self) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{next(self._starts)}.log"
        running = run_hostler(*self._arguments, errors=log, environ=self._environ)
        self.running = await anyio.to_thread.run_sync(self._stack.enter_context, running)

    @property
    def log(self) -> str:
        """What it logged, start by start. The last lines of a running program may be missing."""
        return "".join(path.read_text() for path in sorted(self._logs.iterdir()))

    async def off(self) -> None:
        """Let it end well, also if it is frozen."""
        self.resume()
        await anyio.to_thread.run_sync(self._stack.close)
        self.running = None

    async def kill(self) -> None:
        self._signal(signal.SIGKILL)
        await self.off()

    def block(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        """To the program and its engines, parents first."""
        if self.running is None or self.running.process.poll() is not None:
            return
        program = psutil.Process(self.running.process.pid)
        for process in (program, *program.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


class ThreeMachines:
    """The main PC, the cloud and the small box, and the gateway that knows them."""

    def __init__(
        self, pc: Machine, cloud: FakeOpenRouter, lxc: Machine, gateway: Machine, http: httpx.AsyncClient, key: str
    ) -> None:
        self.pc, self.cloud, self.lxc, self.gateway = pc, cloud, lxc, gateway
        self.http = http
        self.url = str(http.base_url)
        self.key = key

    async def ask(self, *, stream: bool = False, model: str = "qwen3-8b", name: str = "asked") -> httpx.Response:
        """An answer, read to its end. `name` is the request's in the gateway's log."""
        body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "Hello"}]}
        return await self.http.post("/v1/chat/completions", json=body, headers={"X-Request-Id": name})

    async def mended(self, name: str) -> None:
        """Let the doctor look at a box until it is well: what was held against it is forgotten then."""
        arguments = ["doctor", "qwen3-8b", "--url", self.url, "--json"]
        environ = {**os.environ, "HOSTLER_API_KEY": self.key}
        with anyio.fail_after(90):
            while True:
                command = [sys.executable, "-m", "hostler.gateway", *arguments]
                done = await anyio.run_process(command, env=environ, check=False)
                if any(hop["backend"] == name and hop["ok"] for hop in json.loads(done.stdout)["hops"]):
                    return


class ChatLoad:
    """Clients that chat without a pause, streamed and whole by turns, and what became of each request."""

    def __init__(self, boxes: ThreeMachines) -> None:
        self._boxes = boxes
        self._numbers = itertools.count()
        self._ended = anyio.Event()
        self._leaving = False
        self.asked = 0
        self.verdicts: list[tuple[int, str]] = []

    async def answered_by(self, name: str, *, within_s: float = 90.0) -> None:
        """Wait until this box has answered somebody who asked after now."""
        now = self.asked
        with anyio.fail_after(within_s):
            while not any(number >= now and verdict == name for number, verdict in self.verdicts):
                await self._ended.wait()

    def leave(self) -> None:
        """No more questions."""
        self._leaving = True

    async def client(self) -> None:
        """One client."""
        while not self._leaving:
            number = next(self._numbers)
            self.asked += 1
            stream = number % 2 == 0
            try:
                response = await self._boxes.ask(stream=stream, name=f"chat-{number}")
            except httpx.RemoteProtocolError:
                assert not stream, "a stream says what broke it"
                verdict = "broken"
            else:
                verdict = classify(response)
            self.verdicts.append((number, verdict))
            ended, self._ended = self._ended, anyio.Event()
            ended.set()
            if verdict == "refused":
                await anyio.sleep(0.05)


def classify(response: httpx.Response) -> str:
    """The box whose whole answer this is, `broken` if it says so itself, or `refused`. Anything else is a lie."""
    if response.status_code != 200:
        assert response.status_code in (429, 502, 503, 504), response.text
        assert error_in(response) is not None
        return "refused"
    # Where progress was shown first, the headers were too early to know; the stream's end says it. The small box may have
    # been as early, and says the same of its own engine.
    late = [
        name
        for name in re.findall(r"^: .* x-hostler-backend=(\S+)", response.text, re.MULTILINE)
        if name in COMPLETE_ANSWERS
    ]
    words, box = answer_text(response), late[-1] if late else response.headers["x-hostler-backend"]
    if error_in(response) is None:
        assert words == COMPLETE_ANSWERS[box], response.text
        if response.headers["content-type"].startswith("text/event-stream"):
            assert response.text.count("data: [DONE]") == 1
        return str(box)
    assert COMPLETE_ANSWERS[box].startswith(words), response.text
    return "broken"


@asynccontextmanager
async def chat_load(boxes: ThreeMachines, *, clients: int = 4) -> AsyncIterator[ChatLoad]:
    """Clients at work; they end what they have begun when the context ends."""
    chat = ChatLoad(boxes)
    async with anyio.create_task_group() as tasks:
        for _ in range(clients):
            tasks.start_soon(chat.client)
        yield chat
        chat.leave()


@asynccontextmanager
async def start_machines(folder: Path) -> AsyncIterator[ThreeMachines]:
    """All of them, running. They end with the context, whatever was done to them."""
    net = _net()
    pc_at, box_at = f"{net}.10", f"{net}.2"
    async with start_openrouter("openrouter") as cloud:
        engines = folder / "bin"
        engines.mkdir()
        program = engines / "llama-server"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {FAKE_ENGINE} "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        (folder / "model.gguf").write_bytes(b"not read by the scripted engine")
        secrets = {"supervisor": TOKEN, "openrouter": CLOUD_KEY}
        for name, secret in secrets.items():
            (folder / name).write_text(secret)
        run = rf"/run/credentials/[\w.-]+/({'|'.join(secrets)})"
        for name in ("gateway", "supervisor", "small", "manifest"):
            text = (DEPLOY / f"{name}.yaml").read_text()
            text = re.sub(run, rf"{folder}/\1", text).replace("/etc/hostler/", f"{folder}/")
            text = text.replace("/var/lib/hostler/", f"{folder}/state-").replace("192.168.1.10", pc_at)
            text = re.sub(r"model: (hf|pypi):\S+", f"model: {folder}/model.gguf", text)
            text = re.sub(r"^ +sha256: .*\n", "", text, flags=re.MULTILINE)
            text = text.replace("0.0.0.0:8080", f"{pc_at}:8080").replace("0.0.0.0:8000", f"{box_at}:8000")
            # An address of loopback is in the house by itself; the cloud's own is not.
            text = text.replace("https://openrouter.ai/api/v1", f"{cloud.url}\n    local: false")
            text = text.replace("127.0.0.1:8090", f"{box_at}:8090")
            (folder / f"{name}.yaml").write_text(text)
        common = {
            "XDG_STATE_HOME": str(folder / "state"), "XDG_CONFIG_HOME": str(folder / "config"), "HOSTLER_CONFIG": "",
            "HOSTLER_CACHE": str(folder / "cache"), "PATH": f"{engines}:{os.environ['PATH']}", "FAKE_CHUNK_DELAY": "0.01",
        }  # fmt: skip
        pc = Machine(folder, "supervisor", folder / "supervisor.yaml", {**common, "FAKE_TEXT": "pc{}"})
        lxc = Machine(folder, "up", folder / "small.yaml", {**common, "FAKE_TEXT": "small{}"})
        gateway = Machine(folder, "gateway", folder / "gateway.yaml", common)
        key = await _key(folder / "gateway.yaml", common)
        headers = {"Authorization": f"Bearer {key}", "Host": "llm.lan:8000"}
        limits = httpx.Limits(max_connections=100)
        try:
            for box in (pc, lxc, gateway):
                await box.on()
            url = f"http://{box_at}:8000"
            async with httpx.AsyncClient(
                base_url=url, headers=headers, timeout=60, limits=limits, trust_env=False
            ) as http:
                yield ThreeMachines(pc, cloud, lxc, gateway, http, key)
        finally:
            with anyio.CancelScope(shield=True):
                for box in (gateway, lxc, pc):
                    await box.off()


async def _key(file: Path, environ: dict[str, str]) -> str:
    """A key, made as the operator makes it."""
    arguments = [sys.executable, "-m", "hostler.gateway", "keys", "add", "alice", "--scope", "infer", "--scope", "read"]
    arguments += ["--scope", "operate"]
    arguments += ["--config", str(file)]
    done = await anyio.run_process(arguments, env={**os.environ, **environ}, stderr=subprocess.PIPE)
    found = re.search(rb"[\w-]{40,}", done.stdout)
    assert found is not None, done.stdout
    return found[0].decode()


def _net() -> str:
    """The beginning of loopback addresses that this process has for itself."""
    return f"127.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"


def has_addresses() -> bool:
    """Whether loopback has more addresses than one here, as on Linux."""
    with socket.socket() as sock:
        try:
            sock.bind((f"{_net()}.2", 0))
        except OSError:
            return False
    return True
