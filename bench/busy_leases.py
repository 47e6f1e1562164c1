"""What a lease of a remote host adds while gateway and host are busy: `python -m bench.busy_leases`.

This process is a whole gateway, through which streams of 20 chunks a second pass, and which asks for leases meanwhile: in
turns of its own host and of one behind a connection, at fixed times, whether the ones before were granted or not. That host
grants leases of another gateway at the same time, which asks at a fixed rate as well. What is added is the time until the
grant from the remote host, less that from the own one in the same run: each waits for its turn of the same event loop.
"""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from bench.compare import Scenario
from bench.lease_hosts import own_host, remote_host, supervisor
from bench.load import Load
from bench.processes import ROOT, backend, cpu_s
from bench.proxies import Hostler
from hostler.gateway.app import Gateway
from hostler.gateway.config import read
from hostler.gateway.server.server import bind
from hostler.supervisor.scheduling.host import Host

SECONDS = 10.0
#: How often the measured gateway asks each of both hosts, in leases a second.
EVERY_S = 0.005
#: Streams through the gateway, and leases a second of the other gateway.
LOADS = ((0, 0), (150, 1500), (300, 3000))


class BusyLeases(msgspec.Struct, kw_only=True):
    """Times until the grant while both are busy: `gateway_cores` and `host_cores` is what they used."""

    streams: int
    rate: int
    gateway_cores: float
    host_cores: float
    leases: int
    local_ms: float
    local_p99_ms: float
    remote_ms: float
    remote_p99_ms: float

    @property
    def added_ms(self) -> float:
        """What the connection adds at the median."""
        return self.remote_ms - self.local_ms


async def _lease(host: Host, took: list[float]) -> None:
    began = time.perf_counter()
    lease = host.lease("a", client="client", request_id="r")
    if not lease.settled:
        await lease.wait(60)
    took.append(time.perf_counter() - began)
    lease.address()
    lease.release()


async def _ask(host: Host, took: list[float], every_s: float, end: float, offset_s: float = 0.0) -> None:
    """Ask at fixed times; what is late asks at once."""
    due = time.monotonic() + offset_s
    async with anyio.create_task_group() as tasks:
        while due < end:
            if (left := due - time.monotonic()) > 0:
                await anyio.sleep(left)
            tasks.start_soon(_lease, host, took)
            due += every_s


async def be_other_gateway(url: str, rate: int) -> None:
    """Ask for so many leases a second, and drop what is known of them."""
    async with remote_host(url) as host:
        while True:
            await _ask(host, [], 1 / rate, time.monotonic() + 1.0)


@contextmanager
def _part(name: str, url: str, number: int) -> Iterator[None]:
    """Another process of this measurement, unless there is nothing for it to do."""
    if not number:
        yield
        return
    with subprocess.Popen([sys.executable, "-m", "bench.busy_leases", name, url, str(number)], cwd=ROOT) as process:
        try:
            yield
        finally:
            process.kill()


class _Spread(Load):
    """Streams whose chunks come at different moments, as those of different clients do."""

    async def connect(self) -> None:
        await anyio.sleep(random.random())
        await super().connect()


async def be_clients(url: str, streams: int) -> None:
    """Read so many streams until killed."""
    scenario = Scenario(name="slow", connections=streams, extra={"stream": True, "user": "slow", "max_tokens": 40})
    headers = dict(header.split(": ", 1) for header in Hostler.headers)
    await _Spread(f"{url}{scenario.path}", scenario.body(Hostler.model).encode(), headers, streams, 3600, False).run()


async def _measure(port: int, url: str, pid: int, streams: int, rate: int, seconds: float) -> BusyLeases:
    local: list[float] = []
    remote: list[float] = []
    with _part("clients", f"http://127.0.0.1:{port}", streams), _part("gateway", url, rate):
        async with remote_host(url) as host, own_host() as own:
            await anyio.sleep(min(3.0, seconds))  # until programs have started
            spent, theirs, end = time.process_time(), cpu_s(pid), time.monotonic() + seconds
            async with anyio.create_task_group() as asking:
                asking.start_soon(_ask, own, local, EVERY_S, end)
                asking.start_soon(_ask, host, remote, EVERY_S, end, EVERY_S / 2)
            spent, theirs = time.process_time() - spent, cpu_s(pid) - theirs
    return BusyLeases(
        streams=streams, rate=rate, gateway_cores=spent / seconds, host_cores=theirs / seconds, leases=len(remote),
        local_ms=_at(local, 0.5), local_p99_ms=_at(local, 0.99), remote_ms=_at(remote, 0.5),
        remote_p99_ms=_at(remote, 0.99),
    )  # fmt: skip


def _at(took: list[float], part: float) -> float:
    return 1e3 * sorted(took)[int(part * len(took))]


async def _run(folder: Path, seconds: float, loads: Sequence[tuple[int, int]]) -> list[BusyLeases]:
    rows: list[BusyLeases] = []
    with backend() as backend_port, supervisor() as (url, pid):
        Hostler().command(backend_port, 0, folder)
        gateway = Gateway(read(folder / "hostler.yaml", {}).settings, history=folder / "history.sqlite3")
        sockets = bind([("127.0.0.1", 0)], "here")
        started = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(gateway.run, sockets, started=started.set))
            await started.wait()
            port = sockets[0].getsockname()[1]
            for streams, rate in loads:
                rows.append(await _measure(port, url, pid, streams, rate, seconds))
            gateway.stop()
    return rows


def busy_leases(*, seconds: float = SECONDS, loads: Sequence[tuple[int, int]] = LOADS) -> list[BusyLeases]:
    """A row for each load."""
    root, handler = logging.getLogger(), logging.FileHandler(os.devnull)
    root.addHandler(handler)
    try:
        with tempfile.TemporaryDirectory() as folder:
            options: dict[str, Any] = {"use_uvloop": True}
            return anyio.run(_run, Path(folder), seconds, loads, backend_options=options)
    finally:
        root.removeHandler(handler)
        handler.close()


def table(rows: list[BusyLeases]) -> str:
    """A Markdown table."""
    lines = [
        "| streams | other leases/s | gateway, cores | host, cores | own host, ms | p99 | remote host, ms | p99 | added, ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.streams} | {row.rate:,} | {row.gateway_cores:.2f} | {row.host_cores:.2f} | {row.local_ms:.3f} "
        f"| {row.local_p99_ms:.2f} | {row.remote_ms:.3f} | {row.remote_p99_ms:.2f} | {row.added_ms:.3f} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    match sys.argv[1:]:
        case [part, place, number]:
            run: Any = be_clients if part == "clients" else be_other_gateway
            anyio.run(run, place, int(number), backend_options={"use_uvloop": True})
        case _:
            print(table(busy_leases()))
