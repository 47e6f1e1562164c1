"""Mixed workloads on a host of one model at a time, `python -m bench.switching`: Hostler measured, plain FIFO simulated.

FIFO serves strictly in the order of arrival. It is simulated with the load and answer times measured here, so that only
the order differs.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from bench.processes import hostler_up

ENGINE = Path(__file__).parent.parent / "tests" / "fakes" / "fake_engine.py"

SLOTS = 2


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """How long the scripted engine takes for a load and an answer, in seconds."""

    load_s: float = 0.5
    answer_s: float = 0.1


class Job(msgspec.Struct, frozen=True):
    """A request: its model, and when it is sent at the earliest. `client` sends its jobs one after the other."""

    model: str
    at: float
    client: int


class Done(msgspec.Struct, frozen=True):
    """An answered request: how long it waited for its model, and when it was over."""

    model: str
    wait_s: float
    ended_at: float


class Row(msgspec.Struct, frozen=True):
    """One workload under one policy."""

    workload: str
    policy: str
    makespan_s: float
    switches: int
    waits: dict[str, tuple[float, float]]


# Workloads


def alternating(clients: int, requests: int) -> list[Job]:
    """A B A B ..., from this many clients."""
    return [Job("ab"[number % 2], 0.0, number % clients) for number in range(requests)]


def steady(seconds: float, every: float, answer_s: float) -> list[Job]:
    """Three clients keep A busy without a pause; another client requests B periodically."""
    busy = [Job("a", 0.0, client) for client in range(3) for _ in range(int(seconds / answer_s))]
    rare = [Job("b", at, 100 + number) for number, at in enumerate(_steps(every / 2, seconds, every))]
    return busy + rare


def zipf(seconds: float, rate: float) -> list[Job]:
    """Three models, the second half and the third a third as popular as the first, at random times."""
    chance = random.Random(7)
    jobs: list[Job] = []
    at = 0.0
    while (at := at + chance.expovariate(rate)) < seconds:
        jobs.append(Job(chance.choices("abc", (1, 1 / 2, 1 / 3))[0], at, len(jobs)))
    return jobs


def _steps(first: float, end: float, step: float) -> Iterator[float]:
    return itertools.takewhile(lambda at: at < end, itertools.count(first, step))


# FIFO, simulated


def fifo(jobs: Sequence[Job], *, load_s: float, answer_s: float, until: float) -> tuple[list[Done], int]:
    """The jobs served strictly in the order of arrival, and the number of loads. No job is sent after `until`."""
    by_client: dict[int, list[Job]] = {}
    for job in jobs:
        by_client.setdefault(job.client, []).append(job)
    arrivals = [(mine[0].at, client) for client, mine in by_client.items()]
    heapq.heapify(arrivals)
    slots = [0.0] * SLOTS
    loaded, switches, begun = "", 0, 0.0
    done = []
    while arrivals:
        at, client = heapq.heappop(arrivals)
        job = by_client[client].pop(0)
        if job.model != loaded:
            ready = max(at, begun, *slots) + load_s
            loaded, switches, slots = job.model, switches + 1, [ready] * SLOTS
        slot = min(range(SLOTS), key=slots.__getitem__)
        begun = max(at, begun, slots[slot])
        slots[slot] = begun + answer_s
        done.append(Done(job.model, begun - at, slots[slot]))
        if by_client[client] and (following := max(slots[slot], by_client[client][0].at)) < until:
            heapq.heappush(arrivals, (following, client))
    return done, switches


# Hostler, measured


@contextmanager
def hostler(folder: Path, patience_s: float, engine: Engine, **gateway: Any) -> Iterator[str]:
    """`hostler up` with three scripted models of which one fits at a time; inside it listens at this address. `gateway`
    are more of its settings."""
    (folder / "model.gguf").write_bytes(b"not read by the scripted engine")
    script = {
        "log": str(folder / "engines.log"),
        "ready_after": engine.load_s,
        "first_delay": engine.answer_s,
        "chunks": 1,
    }
    profile = {"model": str(folder / "model.gguf"), "parallel": SLOTS, "env": {"FAKE_ENGINE": json.dumps(script)}}
    document = {
        "gateway": {
            "queue": {"max_waiting": 1000, "max_wait_s": 600},
            "switching": {"patience_s": patience_s},
            **gateway,
        },
        "supervisor": {"engine": f"{sys.executable} -I -S {ENGINE}", "slots_max": "0B"},
        "profiles": dict.fromkeys("abc", profile),
    }
    with hostler_up(document, folder) as port:
        yield f"http://127.0.0.1:{port}"


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=500)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits, trust_env=False) as http:
        yield http


async def ask(http: httpx.AsyncClient, model: str, clock: Callable[[], float]) -> Done:
    """One request, with the waiting time that the gateway reports."""
    answer = await http.post(
        "/v1/chat/completions", json={"model": model, "messages": [{"role": "user", "content": "?"}]}
    )
    answer.raise_for_status()
    waited = int(answer.headers["x-hostler-queue-ms"]) + int(answer.headers["x-hostler-switch-ms"])
    return Done(model, waited / 1000, clock())


async def measure(address: str, jobs: Sequence[Job], until: float) -> list[Done]:
    """Send the jobs as their clients do."""
    by_client: dict[int, list[Job]] = {}
    for job in jobs:
        by_client.setdefault(job.client, []).append(job)
    began = time.monotonic()
    done: list[Done] = []

    async def client(http: httpx.AsyncClient, mine: Sequence[Job]) -> None:
        for number, job in enumerate(mine):
            await asyncio.sleep(max(0.0, job.at - (time.monotonic() - began)))
            if number and time.monotonic() - began >= until:
                return
            done.append(await ask(http, job.model, lambda: time.monotonic() - began))

    async with connected(address) as http, asyncio.TaskGroup() as tasks:
        for mine in by_client.values():
            tasks.create_task(client(http, mine))
    return done


async def calibrate(address: str) -> tuple[float, float]:
    """How long a load and an answer take here, everything included."""
    async with connected(address) as http:
        loads, answers = [], []
        for model in "abab":
            began = time.monotonic()
            await ask(http, model, time.monotonic)
            middle = time.monotonic()
            await ask(http, model, time.monotonic)
            answers.append(time.monotonic() - middle)
            loads.append(middle - began - answers[-1])
        return statistics.median(loads), statistics.median(answers)


def starts(folder: Path) -> int:
    """How many engines were started so far."""
    return sum(json.loads(line)["event"] == "start" for line in (folder / "engines.log").read_text().splitlines())


# Rows


def row(workload: str, policy: str, done: Sequence[Done], switches: int) -> Row:
    waits = {}
    for model in sorted({each.model for each in done}):
        seconds = sorted(each.wait_s for each in done if each.model == model)
        waits[model] = (statistics.median(seconds), seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))])
    return Row(workload, policy, max(each.ended_at for each in done), switches, waits)


def table(rows: Sequence[Row]) -> str:
    """A Markdown table; waits are p50 / p95 in seconds."""
    lines = ["| workload | policy | makespan s | switches | wait a | wait b | wait c |", "|" + " --- |" * 7]
    for each in rows:
        waits = [
            f"{each.waits[name][0]:.2f} / {each.waits[name][1]:.2f}" if name in each.waits else "-" for name in "abc"
        ]
        lines.append(
            f"| {each.workload} | {each.policy} | {each.makespan_s:.1f} | {each.switches} | {' | '.join(waits)} |"
        )
    return "\n".join(lines)


def run(patience_s: float, seconds: float, engine: Engine, requests: int = 40) -> tuple[list[Row], float]:
    """All workloads under both policies, and how long a load took. Those that alternate have so many `requests`."""
    forever, every = float("inf"), min(10.0, seconds)
    workloads = [(f"A/B, {clients} at a time", alternating(clients, requests), forever) for clients in (1, 4, 10)]
    workloads.append((f"steady A, B every {every:g} s", steady(seconds, every, engine.answer_s), seconds))
    workloads.append(("three models, Zipf, 3/s", zipf(seconds, 3.0), forever))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with hostler(folder, patience_s, engine) as address:
            load_s, answer_s = asyncio.run(calibrate(address))
            for workload, jobs, until in workloads:
                for model in "abc":
                    url = f"{address}/admin/unload"
                    httpx.post(url, json={"model": model}, timeout=60, trust_env=False).raise_for_status()
                before = starts(folder)
                done = asyncio.run(measure(address, jobs, until))
                rows.append(row(workload, "hostler", done, starts(folder) - before))
                simulated, switches = fifo(jobs, load_s=load_s, answer_s=answer_s, until=until)
                rows.append(row(workload, "fifo", simulated, switches))
    return rows, load_s


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.switching", description=__doc__)
    parser.add_argument("--patience", type=float, default=2.0, help="gateway.switching.patience_s")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the workloads that arrive over time")
    parser.add_argument("--json", type=Path, help="also write the rows to this file, as JSON")
    options = parser.parse_args()
    engine = Engine()
    rows, load_s = run(options.patience, options.seconds, engine)
    print(table(rows))
    print(
        f"\npatience {options.patience:g} s, a load takes {load_s:.2f} s, {SLOTS} slots, an answer {engine.answer_s:g} s"
    )
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows)))
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    worse = [ours.workload for ours, plain in pairs if ours.switches > plain.switches]
    bound = options.patience + load_s + 1.0
    late = [ours.workload for ours, _ in pairs if ours.workload.startswith("steady") and ours.waits["b"][1] > bound]
    if worse or late:
        sys.exit(f"more switches than FIFO: {worse or 'nowhere'}; rare model waits too long: {late or 'nowhere'}")


if __name__ == "__main__":
    main()
