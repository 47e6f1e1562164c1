"""The three machines of the deployment guide as processes on loopback, each with its shipped example file.

Only addresses, paths and secrets are replaced: each machine has its own loopback address and keeps the shipped ports.
Engines are scripted, and so is the cloud, which runs in the test's process.
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
from fakes.gguf_files import LLAMA, TENSORS, GgufWriter
from system.fallback_chain import answer_text, error_in
from system.hostler_process import HostlerProcess, run_hostler
from system.running_gateway import FAKE_ENGINE

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
TOKEN, CLOUD_KEY = "shared-token", "sk-or-scripted"

#: The whole answer of each backend. Scripted engines number their words.
COMPLETE_ANSWERS = {
    "main-pc": "".join(f"pc{number} " for number in range(5)),
    "openrouter": "openrouter:One two three",
    "lxc": "".join(f"small{number} " for number in range(5)),
}


class Machine:
    """A machine and its program. `kill` is a power cut; `freeze` suspends all processes until `resume`."""

    def __init__(self, folder: Path, command: str, file: Path, environ: dict[str, str]) -> None:
        self._arguments = (command, "--config", str(file))
        self._logs = folder / "logs" / file.stem
        self._environ = environ
        self._stack = ExitStack()
        self._starts = itertools.count()
        self.running: HostlerProcess | None = None

    async def start(self) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{next(self._starts)}.log"
        running = run_hostler(*self._arguments, errors=log, environ=self._environ)
        self.running = await anyio.to_thread.run_sync(self._stack.enter_context, running)

    @property
    def log(self) -> str:
        """The logs of all its starts. The last lines of a running program may be missing."""
        return "".join(path.read_text() for path in sorted(self._logs.iterdir()))

    async def stop(self) -> None:
        """Stop it gracefully, also when it is frozen."""
        self.resume()
        await anyio.to_thread.run_sync(self._stack.close)
        self.running = None

    async def kill(self) -> None:
        self._signal(signal.SIGKILL)
        await self.stop()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the program and its engines, parents first."""
        if self.running is None or self.running.process.poll() is not None:
            return
        program = psutil.Process(self.running.process.pid)
        for process in (program, *program.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


class ThreeMachines:
    """The main PC, the cloud, the small machine, and the gateway in front of them."""

    def __init__(
        self, pc: Machine, cloud: FakeOpenRouter, lxc: Machine, gateway: Machine, http: httpx.AsyncClient, key: str
    ) -> None:
        self.pc, self.cloud, self.lxc, self.gateway = pc, cloud, lxc, gateway
        self.http = http
        self.url = str(http.base_url)
        self.key = key

    async def chat(self, *, stream: bool = False, model: str = "qwen3-8b", request_id: str = "chat") -> httpx.Response:
        """Request an answer and read it to its end. The gateway's log has the `request_id`."""
        body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "Hello"}]}
        return await self.http.post("/v1/chat/completions", json=body, headers={"X-Request-Id": request_id})

    async def until_reachable(self, name: str) -> None:
        """Wait until the gateway follows this machine's supervisor."""
        with anyio.fail_after(30):
            while True:
                hosts = (await self.http.get("/admin/status")).json()["hosts"]
                if any(host["backend"] == name and host["reachable"] for host in hosts):
                    return
                await anyio.sleep(0.05)

    async def recovered(self, name: str) -> None:
        """Run the doctor until a backend is healthy, which closes its circuit."""
        arguments = ["doctor", "qwen3-8b", "--url", self.url, "--json"]
        environ = {**os.environ, "HOSTLER_API_KEY": self.key}
        with anyio.fail_after(90):
            while True:
                command = [sys.executable, "-m", "hostler.gateway", *arguments]
                done = await anyio.run_process(command, env=environ, check=False)
                if any(hop["backend"] == name and hop["ok"] for hop in json.loads(done.stdout)["hops"]):
                    return


class ChatLoad:
    """Clients that chat continuously, streamed and whole in turn, and the outcome of each request."""

    def __init__(self, machines: ThreeMachines) -> None:
        self._machines = machines
        self._numbers = itertools.count()
        self._finished = anyio.Event()
        self._stopping = False
        self.sent = 0
        self.outcomes: list[tuple[int, str]] = []

    async def answered_by(self, name: str, *, within_s: float = 90.0) -> None:
        """Wait until this backend has answered a request that was sent after this call."""
        now = self.sent
        with anyio.fail_after(within_s):
            while not any(number >= now and outcome == name for number, outcome in self.outcomes):
                await self._finished.wait()

    def stop(self) -> None:
        """Send no more requests."""
        self._stopping = True

    async def client(self) -> None:
        """Run one client."""
        while not self._stopping:
            number = next(self._numbers)
            self.sent += 1
            stream = number % 2 == 0
            try:
                response = await self._machines.chat(stream=stream, request_id=f"chat-{number}")
            except httpx.RemoteProtocolError:
                assert not stream, "a broken stream ends with an error"
                outcome = "broken"
            else:
                outcome = classify(response)
            self.outcomes.append((number, outcome))
            finished, self._finished = self._finished, anyio.Event()
            finished.set()
            if outcome == "refused":
                await anyio.sleep(0.05)


def classify(response: httpx.Response) -> str:
    """The backend whose whole answer this is, `broken` for one that ends with an error, or `refused`.

    Fails for anything else, such as an incomplete answer without an error.
    """
    if response.status_code != 200:
        assert response.status_code in (429, 502, 503, 504), response.text
        assert error_in(response) is not None
        return "refused"
    # Headers that precede progress cannot name the backend; a comment at the end of the stream does. The small machine's
    # own gateway may have added another one for its engine.
    late = [
        name
        for name in re.findall(r"^: .* x-hostler-backend=(\S+)", response.text, re.MULTILINE)
        if name in COMPLETE_ANSWERS
    ]
    words, backend = answer_text(response), late[-1] if late else response.headers["x-hostler-backend"]
    if error_in(response) is None:
        assert words == COMPLETE_ANSWERS[backend], response.text
        if response.headers["content-type"].startswith("text/event-stream"):
            assert response.text.count("data: [DONE]") == 1
        return str(backend)
    assert COMPLETE_ANSWERS[backend].startswith(words), response.text
    return "broken"


@asynccontextmanager
async def chat_load(machines: ThreeMachines, *, clients: int = 4) -> AsyncIterator[ChatLoad]:
    """Run clients; they finish their requests when the context ends."""
    chat = ChatLoad(machines)
    async with anyio.create_task_group() as tasks:
        for _ in range(clients):
            tasks.start_soon(chat.client)
        yield chat
        chat.stop()


@asynccontextmanager
async def start_machines(folder: Path) -> AsyncIterator[ThreeMachines]:
    """Run all machines; they are stopped with the context, also when killed or frozen."""
    net = _net()
    pc_address, lxc_address = f"{net}.10", f"{net}.2"
    async with start_openrouter("openrouter") as cloud:
        engines = folder / "bin"
        engines.mkdir()
        program = engines / "llama-server"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {FAKE_ENGINE} "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        (folder / "model.gguf").write_bytes(GgufWriter().bytes(LLAMA, TENSORS))
        secrets = {"supervisor": TOKEN, "openrouter": CLOUD_KEY}
        for name, secret in secrets.items():
            (folder / name).write_text(secret)
        run = rf"/run/credentials/[\w.-]+/({'|'.join(secrets)})"
        for name in ("gateway", "supervisor", "small", "manifest"):
            text = (DEPLOY / f"{name}.yaml").read_text()
            text = re.sub(run, rf"{folder}/\1", text).replace("/etc/hostler/", f"{folder}/")
            text = text.replace("/var/lib/hostler/", f"{folder}/state-").replace("192.168.1.10", pc_address)
            text = re.sub(r"model: (hf|pypi):\S+", f"model: {folder}/model.gguf", text)
            text = re.sub(r"^ +sha256: .*\n", "", text, flags=re.MULTILINE)
            text = text.replace("0.0.0.0:8080", f"{pc_address}:8080").replace("0.0.0.0:8000", f"{lxc_address}:8000")
            # A loopback address counts as local by default; the real cloud's address does not.
            text = text.replace("https://openrouter.ai/api/v1", f"{cloud.url}\n    local: false")
            text = text.replace("127.0.0.1:8090", f"{lxc_address}:8090")
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
            for machine in (pc, lxc, gateway):
                await machine.start()
            url = f"http://{lxc_address}:8000"
            async with httpx.AsyncClient(
                base_url=url, headers=headers, timeout=60, limits=limits, trust_env=False
            ) as http:
                yield ThreeMachines(pc, cloud, lxc, gateway, http, key)
        finally:
            with anyio.CancelScope(shield=True):
                for machine in (gateway, lxc, pc):
                    await machine.stop()


async def _key(file: Path, environ: dict[str, str]) -> str:
    """Create a key as an operator does."""
    arguments = [sys.executable, "-m", "hostler.gateway", "keys", "add", "alice", "--scope", "infer", "--scope", "read"]
    arguments += ["--scope", "operate"]
    arguments += ["--config", str(file)]
    done = await anyio.run_process(arguments, env={**os.environ, **environ}, stderr=subprocess.PIPE)
    found = re.search(rb"[\w-]{40,}", done.stdout)
    assert found is not None, done.stdout
    return found[0].decode()


def _net() -> str:
    """The first half of loopback addresses that belong to this process."""
    return f"127.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"


def has_addresses() -> bool:
    """Whether loopback has more than one address, as on Linux."""
    with socket.socket() as sock:
        try:
            sock.bind((f"{_net()}.2", 0))
        except OSError:
            return False
    return True
