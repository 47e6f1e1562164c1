"""Start and memory of the services: `python -m bench start`.

Time and CPU from the command to the first answer; resident memory a moment later, and that of a gateway after many requests.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.compare import EMBED, STREAM, load
from bench.conversation import write_gguf
from bench.processes import backend, cpu_s, rss_mib
from bench.proxies import Hostler

#: Until the first health checks are over.
SETTLE_S = 2.0


class Start(msgspec.Struct, kw_only=True):
    """The starts of one service: seconds until it listens, and CPU seconds and resident MiB of the process and its children."""

    service: str
    listens_s: float
    fastest_s: float
    slowest_s: float
    cpu_s: float
    rss_mib: float
    requests: int = 0
    rss_after_mib: float | None = None


class Up(Hostler):
    """The gateway with a supervisor, which has a profile."""

    name = service = "up"

    def command(self, backend: int, port: int, directory: Path) -> list[str]:
        command = super().command(backend, port, directory)
        write_gguf(directory / "model.gguf")
        with (directory / "hostler.yaml").open("a") as file:
            file.write(f"profiles:\n  a: {{model: {directory / 'model.gguf'}}}\n")
        return command


class Supervisor(Up):
    """The same supervisor on its own."""

    name = service = "supervisor"

    def command(self, backend: int, port: int, directory: Path) -> list[str]:
        command = super().command(backend, port, directory)
        with (directory / "hostler.yaml").open("a") as file:
            file.write(f'supervisor:\n  listen: "127.0.0.1:{port}"\n')
        return command


def measure(service: Hostler, port: int, rounds: int, settle_s: float) -> Start:
    """The medians of these many starts."""
    seconds, cpu, memory = [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as directory, service.start(port, Path(directory)) as (_, pid):
            cpu.append(cpu_s(pid))
            seconds.append(service.started_s)
            time.sleep(settle_s)
            memory.append(rss_mib(pid))
    return Start(
        service=service.service,
        listens_s=statistics.median(seconds),
        fastest_s=min(seconds),
        slowest_s=max(seconds),
        cpu_s=statistics.median(cpu),
        rss_mib=statistics.median(memory),
    )


def use(gateway: Hostler, port: int, requests: int, seconds: float) -> tuple[int, float]:
    """How many requests were answered, at least this many, whole and streamed, and the resident memory after them."""
    answered = 0
    with tempfile.TemporaryDirectory() as directory, gateway.start(port, Path(directory)) as (url, pid):
        while answered < requests:
            for scenario in (EMBED, STREAM):
                result = load(url, gateway, scenario, seconds)
                if result["errors"] or not result["requests"]:
                    raise RuntimeError(f"{scenario.name}: {result['errors']} errors, {result['requests']} answers")
                answered += int(str(result["requests"]))
        return answered, rss_mib(pid)


def start(
    program: str | None = None,
    *,
    rounds: int = 6,
    requests: int = 45_000,
    seconds: float = 2.0,
    settle_s: float = SETTLE_S,
) -> list[Start]:
    """A row for each service. `program` is another hostler to run; each load of a gateway lasts `seconds`."""
    services: Sequence[Hostler] = (Hostler(program), Up(program), Supervisor(program))
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(backend())
        # First, since this start may have to compile modules.
        answered, memory = use(services[0], port, requests, seconds)
        rows = [measure(service, port, rounds, settle_s) for service in services]
    rows[0].requests, rows[0].rss_after_mib = answered, memory
    return rows


def table(rows: Sequence[Start]) -> str:
    """A Markdown table."""
    lines = ["| service | listens after, s | CPU, s | RSS, MiB | requests | RSS after them, MiB |", "| --- " * 6 + "|"]
    for row in rows:
        listens = f"{row.listens_s:.2f} ({row.fastest_s:.2f} to {row.slowest_s:.2f})"
        after = f"{row.requests} | {row.rss_after_mib:.0f}" if row.rss_after_mib is not None else "- | -"
        lines.append(f"| {row.service} | {listens} | {row.cpu_s:.2f} | {row.rss_mib:.0f} | {after} |")
    return "\n".join(lines)
