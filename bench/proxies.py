"""The measured proxies: how each is configured and started in front of the fake backend, or why it is skipped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

from bench.backend import MODEL
from bench.processes import free_port, running, wait_for


class Skipped(Exception):
    """This proxy cannot run here; the message says why and what to do about it."""


class Proxy:
    """A program between client and backend. Subclasses say how it is started; `command` writes what files it needs."""

    name = ""
    model = MODEL
    ready = "/health"
    start_s = 15.0
    closes_silently = False  # after each stream, as llama-server does
    headers: tuple[str, ...] = ()
    env: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, program: str | None = None) -> None:
        self.program = program

    def find(self, default: str, how: str) -> str:
        """The program as given, beside our interpreter, or on the path."""
        named = self.program or default
        found = shutil.which(named) or shutil.which(str(Path(sys.executable).parent / named))
        if found is None:
            raise Skipped(f"{self.name}: {named} not found; {how}")
        # It is started in another directory.
        return str(Path(found).absolute())

    def command(self, backend: int, port: int, directory: Path) -> list[str]:
        raise NotImplementedError

    @contextlib.contextmanager
    def start(self, backend: int, directory: Path) -> Iterator[tuple[str, int]]:
        """Its base URL and process id, once it answers."""
        port = free_port()
        command = self.command(backend, port, directory)
        log = directory / f"{self.name}.log"
        with running(command, log, self.env) as process:
            url = f"http://127.0.0.1:{port}"
            try:
                self.started_s = wait_for(url + self.ready, process, self.start_s)
            except RuntimeError as error:
                tail = log.read_text(errors="replace")[-600:].strip()
                raise Skipped(f"{self.name}: {error}; last output: {tail}") from error
            self.process: Popen[bytes] = process
            yield url, process.pid


class Direct(Proxy):
    """No proxy: the upper limit."""

    name = "direct"
    closes_silently = True

    @contextlib.contextmanager
    def start(self, backend: int, directory: Path) -> Iterator[tuple[str, int]]:
        self.started_s = 0.0
        yield f"http://127.0.0.1:{backend}", 0


class Hostler(Proxy):
    """The gateway as users start it, with all features on and an API key."""

    name = "hostler"
    service = "gateway"
    ready = "/healthz"
    headers = ("authorization: Bearer bench-key",)
    kind, path = "llamacpp", ""

    def command(self, backend: int, port: int, directory: Path) -> list[str]:
        config, keys = directory / "hostler.yaml", directory / "hostler.keys"
        record = {
            "name": "bench",
            "hash": hashlib.sha256(b"bench-key").hexdigest(),
            "scopes": ["infer", "read"],
            "created": 0,
        }
        keys.write_text(json.dumps(record) + "\n")
        config.write_text(
            f"""\
gateway:
  listen: ["127.0.0.1:{port}"]
  api_keys_file: {keys}
  queue: {{max_waiting: 1000, max_wait_s: 120}}
  chain: [box]
backends:
  box: {{kind: {self.kind}, url: "http://127.0.0.1:{backend}{self.path}", models: {{"{MODEL}": "{MODEL}"}}}}
"""
        )
        named = self.program and self.find(self.program, "name another one with --hostler")
        command = [named] if named else [sys.executable, "-m", "hostler.gateway"]
        return [*command, self.service, "--config", str(config)]


class HostlerOpenAI(Hostler):
    """In front of an engine that notices when the client of a whole answer leaves, as vLLM does: it is asked for such answers."""

    name = "hostler-openai"
    kind, path = "openai", "/v1"


class Nginx(Proxy):
    """One worker, upstream connections kept, no buffering."""

    name = "nginx"
    ready = "/health"

    def command(self, backend: int, port: int, directory: Path) -> list[str]:
        program = self.find("nginx", "apt-get install nginx-light, or name it with --nginx")
        config = directory / "nginx.conf"
        config.write_text(
            f"""\
daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log {directory}/nginx-access.log;
  client_body_temp_path {directory}/n1; proxy_temp_path {directory}/n2; fastcgi_temp_path {directory}/n3;
  uwsgi_temp_path {directory}/n4; scgi_temp_path {directory}/n5;
  keepalive_requests 1000000;
  upstream box {{ server 127.0.0.1:{backend}; keepalive 64; keepalive_requests 100; keepalive_timeout 2s; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://box; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
"""
        )
        return [program, "-e", "stderr", "-c", str(config)]


class StarletteHttpx(Proxy):
    """`bench/starlette_proxy.py` under uvicorn: what a proxy of these libraries costs that does nothing else."""

    name = "starlette-httpx"

    def command(self, backend: int, port: int, directory: Path) -> list[str]:
        self.env = {"BACKEND": f"http://127.0.0.1:{backend}"}
        uvicorn = [
            sys.executable,
            "-m",
            "uvicorn",
            "bench.starlette_proxy:app",
            "--http",
            "httptools",
            "--loop",
            "uvloop",
        ]
        return [*uvicorn, "--port", str(port), "--no-access-log", "--log-level", "error"]


class VllmRouter(Proxy):
    """The Rust router from PyPI, with its defaults for one worker."""

    name = "vllm-router"
    start_s = 60.0

    def command(self, backend: int, port: int, directory: Path) -> list[str]:
        program = self.find(
            "vllm-router", "pip install vllm-router in an environment of its own and name it with --vllm-router"
        )
        return [
            *(program, "--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"http://127.0.0.1:{backend}"),
            *("--policy", "round_robin", "--prometheus-port", str(free_port()), "--log-level", "error"),
        ]


class LiteLLM(Proxy):
    """The proxy from PyPI, one worker, no database."""

    name = "litellm"
    ready = "/health/liveliness"
    start_s = 240.0
    env = {  # noqa: RUF012 - without a key, like the other peers, which it wants to be told in these words
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }

    def command(self, backend: int, port: int, directory: Path) -> list[str]:
        program = self.find(
            "litellm", "pip install 'litellm[proxy]' in an environment of its own and name it with --litellm"
        )
        config = directory / "litellm.json"
        parameters = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{backend}/v1", "api_key": "none"}
        models = [{"model_name": MODEL, "litellm_params": parameters}]
        config.write_text(json.dumps({"model_list": models, "litellm_settings": {"telemetry": False}}))
        return [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]


class LlamaSwap(Proxy):
    """The Go model switcher, given by path. Its command is a sleeper, since the backend runs already."""

    name = "llama-swap"

    def command(self, backend: int, port: int, directory: Path) -> list[str]:
        program = self.find("llama-swap", "name the binary with --llama-swap")
        config = directory / "llama-swap.yaml"
        config.write_text(
            f"""\
healthCheckTimeout: 15
logLevel: error
models:
  {MODEL}:
    cmd: sleep 100000
    proxy: "http://127.0.0.1:{backend}"
    checkEndpoint: /health
    concurrencyLimit: 1000
"""
        )
        return [program, "--config", str(config), "--listen", f"127.0.0.1:{port}"]


PROXIES: dict[str, type[Proxy]] = {
    proxy.name: proxy
    for proxy in (Direct, Hostler, HostlerOpenAI, StarletteHttpx, Nginx, VllmRouter, LlamaSwap, LiteLLM)
}
