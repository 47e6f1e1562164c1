"""A Redis server of a test's own, which it can kill, suspend, fill and start again empty."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes.ports import free_port

needs_redis = pytest.mark.skipif(
    shutil.which("redis-server") is None,
    reason="redis-server is not installed; on Debian: apt-get install redis-server",
)


class RedisServer:
    """A server on a free port that keeps nothing on disk."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers. It has forgotten everything."""
        self._folder.mkdir(parents=True, exist_ok=True)
        command = ["redis-server", *self._arguments(), "--port", str(self.port), "--bind", "127.0.0.1", *self._options]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        while True:
            assert self._process.poll() is None, (self._folder / "redis.log").read_text()
            try:
                if self("PING") == "+PONG":
                    return
            except OSError:
                time.sleep(0.01)

    def _arguments(self) -> list[str]:
        return ["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0", "--dir", str(self._folder)]

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def suspend(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def __call__(self, *words: str) -> str:
        """The answer to a command, as the protocol writes it: for tests' own questions."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            parts = [f"*{len(words)}", *(line for word in words for line in (f"${len(word.encode())}", word))]
            connection.sendall("\r\n".join([*parts, ""]).encode())
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        return answer.decode().strip()

    def count(self, command: str) -> int:
        """How often a command has been called since `CONFIG RESETSTAT`."""
        for line in self("INFO", "commandstats").splitlines():
            name, _, figures = line.partition(":")
            if name == f"cmdstat_{command}":
                return int(figures.partition(",")[0].removeprefix("calls="))
        return 0


class RedisSentinel(RedisServer):
    """Watches the server at `master` under the name `main`, and replaces it by a replica half a second after its end."""

    def __init__(self, folder: Path, master: int) -> None:
        super().__init__(folder)
        folder.mkdir()
        (folder / "sentinel.conf").write_text(
            f"dir {folder}\nsentinel monitor main 127.0.0.1 {master} 1\n"
            "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n"
        )

    def _arguments(self) -> list[str]:
        return [str(self._folder / "sentinel.conf"), "--sentinel"]


@contextmanager
def redis_sentinel(folder: Path, master: int) -> Iterator[RedisServer]:
    """Run a sentinel until the context ends."""
    sentinel = RedisSentinel(folder, master)
    sentinel.start()
    try:
        yield sentinel
    finally:
        sentinel.kill()


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    """Run a server until the context ends."""
    server = RedisServer(folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
