"""The benchmarks run: every module is imported, and every measurement is made once, with sizes that take no time."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from bench import (
    agents,
    architectures,
    batches,
    busy_leases,
    clients,
    conversation,
    crowd,
    dead,
    engine_switches,
    ladder,
    leases,
    overlap,
    scale,
    start,
    switching,
    waiting,
)
from bench.compare import compare
from bench.pages import Pages
from bench.pages import table as table_of_pages
from bench.processes import ROOT, backend
from bench.proxies import PROXIES, Direct, Hostler, StarletteHttpx
from bench.report import plot, plot_growth, table

MODULES = sorted(f"bench.{path.stem}" for path in (ROOT / "bench").glob("*.py") if path.stem != "__init__")

#: The middleware that a request passes, outermost first, with the default settings and API keys.
LAYERS = [
    "Starlette, AuthMiddleware, RequestContextMiddleware",
    "AccessLogMiddleware",
    "ModelInfoMiddleware",
    "ModelAdminMiddleware",
    "DownloadsMiddleware",
    "ModelDetectionMiddleware",
    "KeyLimitsMiddleware",
    "FallbackMiddleware",
    "QueueingMiddleware",
    "SwitchingMiddleware",
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int, Hostler]]:
    """The URL and the process id of a gateway in front of the fake backend."""
    proxy = Hostler()
    with backend() as port, proxy.start(port, tmp_path_factory.mktemp("gateway")) as (url, pid):
        yield url, pid, proxy


@pytest.mark.parametrize("module", MODULES)
def test_a_module_can_be_imported(module: str) -> None:
    importlib.import_module(module)


def test_each_step_of_the_ladder_answers() -> None:
    # The ladder itself raises an error for an answer that does not come from the step in question.
    rungs = ladder.ladder(requests=2, rounds=1)
    assert [rung.part for rung in rungs] == ["HTTP to the client", *LAYERS, "proxy, adapter, backend"]
    assert all(f"| {rung.part} |" in ladder.table(rungs) for rung in rungs)


def test_proxies_are_compared(tmp_path: Path) -> None:
    names = [Direct.name, Hostler.name]
    rows, skipped = compare(names, {}, ["embed-1"], seconds=0.1, rounds=1, warm_up_s=0.1)
    assert skipped == []
    assert [(row.proxy, row.scenario, row.errors) for row in rows] == [(name, "embed-1", 0) for name in names]
    assert all(row.rss_mib for row in rows if row.proxy != Direct.name)
    assert len(table(rows).splitlines()) == 2 + len(names)
    assert str(tmp_path / "rows.png") in plot(rows, tmp_path / "rows.png")


def test_a_proxy_that_is_not_installed_is_skipped_with_a_reason() -> None:
    names = [name for name in PROXIES if name not in (Direct.name, StarletteHttpx.name)]
    rows, skipped = compare(names, dict.fromkeys(names, "/nowhere/program"), ["embed-1"], seconds=0.1, rounds=1)
    assert rows == []
    assert [reason.partition(": /nowhere/program not found; ")[0] for reason in skipped] == names


def test_streams_idle_connections_and_a_large_answer_are_measured(
    gateway: tuple[str, int, Hostler], tmp_path: Path
) -> None:
    sizes = scale.Sizes(streams=(2,), idle=(3,), chunks=2, pieces=4, settle_s=0.0, watch_s=0.02)
    loads = uvloop.run(scale.Scale(*gateway, sizes).all())
    assert [(load.kind, load.clients) for load in loads] == [
        ("no clients", 0),
        ("answer of 0 MiB", 1),
        ("streams", 2),
        ("idle", 3),
    ]
    assert len(scale.table(loads).splitlines()) == 2 + len(loads)
    assert str(tmp_path / "scale.png") in plot_growth("", "", {"memory": [(1.0, 2.0)]}, tmp_path / "scale.png")


def test_open_dashboards_are_measured(gateway: tuple[str, int, Hostler]) -> None:
    rows = uvloop.run(Pages(*gateway, pages=2, flood=8, settle_s=0.0).all(seconds=0.3, rounds=1))
    assert [row.what for row in rows] == ["none", "2", "2 that have stalled", "2, and 2 that have stalled"]
    assert len(table_of_pages(rows).splitlines()) == 2 + len(rows)


def test_starts_are_measured() -> None:
    rows = start.start(rounds=1, requests=1, seconds=0.1, settle_s=0.0)
    assert [row.service for row in rows] == ["gateway", "up", "supervisor"]
    assert rows[0].requests > 1
    assert len(start.table(rows).splitlines()) == 2 + len(rows)


def test_a_dead_backend_is_measured() -> None:
    cost = dead.middle([dead.measure(dead.HostlerChain(), "refused", requests=3)])
    assert (cost.asked, cost.failed) == (3, 0)
    assert "| hostler | refused |" in dead.table([cost])


def test_clients_are_compared() -> None:
    rows = clients.main(seconds=0.02, rounds=1, connections=(1,))
    assert {("hostler", "whole"), ("hostler", "stream"), ("httpx", "whole"), ("httpx", "stream")} <= {
        (row["client"], row["kind"]) for row in rows
    }


def test_queued_requests_are_measured() -> None:
    assert len(crowd.table([crowd.measure(5, places=1)]).splitlines()) == 3
    costs = waiting.waiting(lengths=(3,), events=2)
    assert [cost.waiting for cost in costs] == [3]
    assert len(waiting.table(costs).splitlines()) == 3


def test_leases_are_measured() -> None:
    costs = leases.leases(seconds=0.1, clients=(1, 2))
    assert [(cost.where, cost.clients) for cost in costs] == [("local", 1), ("local", 2), ("remote", 1), ("remote", 2)]
    assert len(leases.table(costs).splitlines()) == 2 + len(costs)


def test_leases_are_measured_while_both_sides_are_busy() -> None:
    rows = busy_leases.busy_leases(seconds=0.2, loads=((0, 0), (2, 20)))
    assert [(row.streams, row.rate) for row in rows] == [(0, 0), (2, 20)]
    assert all(row.leases and row.remote_ms > 0 for row in rows)
    assert len(busy_leases.table(rows).splitlines()) == 2 + len(rows)


def test_switches_under_load_are_measured() -> None:
    engine = switching.Engine(load_s=0.01, answer_s=0.01)
    rows, _ = switching.run(patience_s=0.0, seconds=0.3, engine=engine, requests=2)
    assert [row.policy for row in rows] == ["hostler", "fifo"] * 5
    assert all(row.switches for row in rows)
    assert len(switching.table(rows).splitlines()) == 2 + len(rows)


def test_batches_are_measured() -> None:
    rows = batches.run(requests=4, engine=switching.Engine(load_s=0.01, answer_s=0.01))
    assert [row.way for row in rows] == list(batches.WAYS)
    assert rows[-1].loads <= rows[0].loads + 1
    assert all(row.chats for row in rows)
    assert len(batches.table(rows).splitlines()) == 2 + len(rows)


def test_switches_of_an_instant_engine_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    conversation.instant(times=2)
    assert "2 alternating switches" in capsys.readouterr().out


def test_switches_between_two_engines_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    engine_switches.main(times=2)
    assert capsys.readouterr().out.count("beyond it") == 2


def test_the_time_from_ready_to_the_first_byte_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    conversation.ready(after=(0, 0.01), times=1)
    assert capsys.readouterr().out.count(" ms\n") == 2


@pytest.mark.engine
def test_conversations_with_other_architectures_are_measured() -> None:
    rows = architectures.architectures(tokens=700, names=["gemma3"], repeats=2)
    assert [row.same for row in rows] == [True]
    assert 0 < rows[0].read["extended"] < rows[0].unkept["extended"]
    assert rows[0].bytes
    assert len(architectures.table(rows).splitlines()) == 2 + len(rows)


@pytest.mark.engine
def test_agents_that_share_slots_are_measured() -> None:
    steps = agents.trace(main_steps=2, sub_steps=2)
    rows = agents.agents(["gemma3"], steps)
    assert [row.server for row in rows] == [
        "Hostler",
        "llama-server",
        "llama-server, --cache-ram 0",
        "one slot, as Ollama's default",
    ]
    assert {(row.requests, row.tokens) for row in rows} == {(len(steps), rows[0].tokens)}
    assert rows[0].cached > rows[2].cached
    assert len(agents.table(rows).splitlines()) == 2 + len(rows)


@pytest.mark.engine
def test_the_gap_of_a_switch_is_measured() -> None:
    found = overlap.run(rounds=1, tokens=8)
    assert all(switch.speed > 0 for switches in found.switches.values() for switch in switches)
    assert found.alone[0].first_token_s > found.alone[0].stop_s > 0
    assert len(overlap.table(found).splitlines()) == 3 + len(overlap.MODES)
