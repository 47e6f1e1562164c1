"""The comparison: every proxy under every load, in alternating runs, as rows of medians."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from bench.processes import ROOT, backend, cpu_s, rss_mib
from bench.proxies import PROXIES, Proxy, Skipped

MESSAGES = [{"role": "user", "content": "Say something nice about horses, in three sentences at most. " * 4}]


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of load. `extra` goes into the request's body."""

    name: str
    connections: int
    path: str = "/v1/chat/completions"
    extra: dict[str, object] = {}
    seconds: float | None = None

    def body(self, model: str) -> str:
        if self.path.endswith("/embeddings"):
            return json.dumps({"model": model, "input": MESSAGES[0]["content"], **self.extra})
        return json.dumps({"model": model, "messages": MESSAGES, **self.extra})


SCENARIOS = (
    Scenario(name="chat-1", connections=1, extra={"stream": False}),
    Scenario(name="chat-32", connections=32, extra={"stream": False}),
    Scenario(name="embed-1", connections=1, path="/v1/embeddings"),
    Scenario(name="embed-32", connections=32, path="/v1/embeddings"),
    Scenario(name="unlike-1", connections=1, path="/v1/embeddings", extra={"user": "unlike"}),
    Scenario(name="unlike-32", connections=32, path="/v1/embeddings", extra={"user": "unlike"}),
    Scenario(name="stream-1", connections=1, extra={"stream": True}),
    Scenario(name="stream-32", connections=32, extra={"stream": True}),
    Scenario(name="slow-200", connections=200, extra={"stream": True, "user": "slow", "max_tokens": 40}, seconds=4.0),
    Scenario(name="large-1", connections=1, extra={"stream": True, "user": "large"}),
)
EMBED, STREAM = (next(each for each in SCENARIOS if each.name == name) for name in ("embed-32", "stream-32"))


class Row(msgspec.Struct, kw_only=True):
    """The results of one proxy under one load: medians over the rounds. Times in ms, CPU in µs per request, memory in MiB."""

    proxy: str
    scenario: str
    connections: int
    requests: int
    errors: int
    per_s: float
    mb_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    first_byte_p50_ms: float | None
    chunk_delay_p50_ms: float | None
    chunk_delay_p99_ms: float | None
    cpu_us: float | None
    rss_mib: float | None
    added_p50_ms: float | None = None


def load(url: str, proxy: Proxy, scenario: Scenario, seconds: float) -> dict[str, object]:
    """One run of the load generator."""
    command = [sys.executable, "-m", "bench.load", "--url", url + scenario.path, "--body", scenario.body(proxy.model)]
    command += ["--connections", str(scenario.connections), "--seconds", str(scenario.seconds or seconds)]
    if proxy.closes_silently:
        command.append("--fresh")
    for header in proxy.headers:
        command += ["--header", header]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300, cwd=ROOT)
    result: dict[str, object] = json.loads(done.stdout)
    return result


def measure(url: str, pid: int, proxy: Proxy, scenario: Scenario, seconds: float) -> Row:
    """One run, with the proxy's CPU time and memory."""
    before = cpu_s(pid) if pid else 0.0
    seen = load(url, proxy, scenario, seconds)
    used = cpu_s(pid) - before if pid else None
    latency, first, delay = (seen[key] or {} for key in ("latency_ms", "first_byte_ms", "chunk_delay_ms"))
    assert isinstance(latency, dict) and isinstance(first, dict) and isinstance(delay, dict)
    requests = int(str(seen["requests"]))
    return Row(
        proxy=proxy.name,
        scenario=scenario.name,
        connections=scenario.connections,
        requests=requests,
        errors=int(str(seen["errors"])),
        per_s=float(str(seen["per_s"])),
        mb_per_s=float(str(seen["mb_per_s"])),
        p50_ms=latency.get("p50"),
        p99_ms=latency.get("p99"),
        first_byte_p50_ms=first.get("p50"),
        chunk_delay_p50_ms=delay.get("p50"),
        chunk_delay_p99_ms=delay.get("p99"),
        cpu_us=used / requests * 1e6 if used is not None and requests else None,
        rss_mib=rss_mib(pid) if pid else None,
    )


def merged(rows: list[Row]) -> Row:
    """The median of each column; errors and requests are summed."""
    columns: dict[str, object] = {}
    for name in Row.__struct_fields__:
        values = [getattr(row, name) for row in rows if getattr(row, name) is not None]
        if name in ("requests", "errors"):
            columns[name] = sum(values)
        elif values and isinstance(values[0], float):
            columns[name] = statistics.median(values)
        else:
            columns[name] = values[0] if values else None
    return msgspec.convert(columns, Row)


def compare(
    names: list[str],
    programs: dict[str, str],
    scenarios: list[str],
    seconds: float,
    rounds: int,
    warm_up_s: float = 0.5,
) -> tuple[list[Row], list[str]]:
    """All rows, and what was skipped and why."""
    taken: dict[tuple[str, str], list[Row]] = {}
    skipped: list[str] = []
    chosen = [scenario for scenario in SCENARIOS if not scenarios or scenario.name in scenarios]
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        port = stack.enter_context(backend())
        running: list[tuple[Proxy, str, int]] = []
        for name in names:
            proxy = PROXIES[name](programs.get(name))
            try:
                url, pid = stack.enter_context(proxy.start(port, Path(directory)))
                warm = load(url, proxy, chosen[0], warm_up_s)
                if warm["errors"] or not warm["requests"]:
                    raise Skipped(f"{name}: started, but gave {warm['errors']} errors and {warm['requests']} answers")
            except Skipped as reason:
                skipped.append(str(reason))
                continue
            print(f"{name}: listening after {proxy.started_s:.2f} s", file=sys.stderr)
            running.append((proxy, url, pid))
        for number in range(rounds):
            for scenario in chosen:
                for proxy, url, pid in running if number % 2 == 0 else running[::-1]:
                    row = measure(url, pid, proxy, scenario, seconds)
                    taken.setdefault((scenario.name, proxy.name), []).append(row)
    rows = [merged(each) for each in taken.values()]
    limits = {row.scenario: row.p50_ms for row in rows if row.proxy == "direct"}
    for row in rows:
        limit = limits.get(row.scenario)
        if row.p50_ms is not None and limit is not None:
            row.added_p50_ms = row.p50_ms - limit
    return rows, skipped
