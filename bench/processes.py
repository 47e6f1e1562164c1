"""CPU seconds and resident memory of a process and its children, as the kernel counts them; and starting processes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Where `python -m bench.…` finds this package.
ROOT = Path(__file__).parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
# Starts are measured with compiled modules, as in an installed program, whatever the environment is.
COMPILED = {
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "hostler-bench-pycache"),
}
PAGE = os.sysconf("SC_PAGE_SIZE")


def tree(pid: int) -> list[int]:
    """The process and everything below it."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, children.read_text().split())
    return found


def cpu_s(pid: int) -> float:
    """CPU seconds of the process, its living children, and those it has waited for."""
    ticks = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS


def rss_mib(pid: int) -> float:
    """Resident memory of the process and its children; shared pages count in each."""
    pages = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{each}/statm").read_text().split()[1])
    return pages * PAGE / 2**20


def free_port() -> int:
    """A port on which no process listens now, below those that the kernel gives to connections."""
    for port in random.sample(range(10_000, 20_000), 100):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port between 10000 and 20000")


@contextlib.contextmanager
def running(command: list[str], log: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command in its own process group, which is stopped as a whole at the end of the context.

    What Hostler records goes into the log's folder, not into the user's.
    """
    folders = {"XDG_STATE_HOME": str(log.parent), "HOSTLER_CACHE": str(log.parent)}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **COMPILED, **folders, **(env or {})},
            cwd=ROOT,
        )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)


@contextlib.contextmanager
def hostler_up(document: dict[str, Any], folder: Path) -> Iterator[int]:
    """Run `hostler up` with this configuration; yields its port."""
    path, log, port = folder / "hostler.yaml", folder / "log", free_port()
    settings = {**document.get("gateway", {}), "listen": [f"127.0.0.1:{port}"]}
    path.write_text(json.dumps({**document, "gateway": settings}))
    command = [sys.executable, "-m", "hostler.gateway", "up", "--config", str(path)]
    with running(command, log, {"PYTHONUNBUFFERED": "1"}) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/healthz", process, 120)
        except RuntimeError as error:
            raise RuntimeError(f"hostler {error}:\n{log.read_text()}") from error
        yield port


@contextlib.contextmanager
def backend(port: int = 0) -> Iterator[int]:
    """Run the fake backend; yields its port."""
    command = [sys.executable, "-m", "bench.backend", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def wait_for(url: str, process: subprocess.Popen[bytes], seconds: float) -> float:
    """Seconds until the URL answers with success. Raises `RuntimeError` if it never does."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if process.poll() is not None:
            raise RuntimeError(f"ended with {process.returncode} before it listened")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return time.monotonic() - started
        time.sleep(0.005)
    raise RuntimeError(f"did not listen within {seconds:g} s")
