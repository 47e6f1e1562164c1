"""`python -m bench`: the proxies side by side; `... clients`: HTTP clients for the hot path; `... scale`: many
clients; `... waiting`: many queued requests; `... crowd`: more clients than places; `... leases`: leases of a local
and of a remote host; `... placement`: 100 simulated hosts; `... ladder`: the cost of each step of a request;
`... start`: start and memory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench import clients, crowd, ladder, leases, placement, scale, start, waiting
from bench.compare import SCENARIOS, compare
from bench.proxies import PROXIES
from bench.report import plot, plot_growth, table


def kept(
    options: argparse.Namespace,
    rows: Sequence[object],
    title: str,
    axis: str,
    series: dict[str, list[tuple[float, float]]],
) -> None:
    """Write the rows and draw the chart, where that was requested."""
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode({"rows": rows})))
    if options.plot and series:
        print(plot_growth(title, axis, series, options.plot), file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=["proxies", "clients", "scale", "waiting", "crowd", "leases", "placement", "ladder", "start"],
        default="proxies",
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each pair; the rows are medians")
    parser.add_argument("--requests", type=int, default=45_000, help="after which `start` reports the memory again")
    parser.add_argument("--only", default=",".join(PROXIES), help="proxies to run, separated by commas")
    parser.add_argument("--scenarios", default="", help=", ".join(scenario.name for scenario in SCENARIOS))
    parser.add_argument("--json", type=Path, help="also write the rows to this file, as JSON")
    parser.add_argument("--plot", type=Path, help="draw the chart to this PNG file")
    for name in PROXIES:
        if name != "direct":
            parser.add_argument(f"--{name}", metavar="PROGRAM", help=f"{name} program to run")
    options = parser.parse_args()
    if options.what == "clients":
        for row in clients.main(options.seconds, options.rounds):
            numbers = f"{row['cpu_us']:8.1f} µs CPU {row['per_s']:8.0f}/s {row['p50_ms']:8.3f} ms"
            print(f"{row['kind']:7} {row['connections']:3} {row['client']:8} {numbers}")
        return
    if options.what == "placement":
        placement.main(placement.Size())
        return
    if options.what == "scale":
        loads = scale.scale(PROXIES["hostler"](options.hostler))
        print(scale.table(loads))
        grown: dict[str, list[tuple[float, float]]] = {}
        for load in loads:
            if load.clients > 1:
                grown.setdefault(f"{load.kind}: share of one core", []).append((load.clients, load.core))
                grown.setdefault(f"{load.kind}: memory, MiB", []).append((load.clients, load.rss_mib))
        kept(options, loads, "many clients", "clients", grown)
        return
    if options.what == "start":
        starts = start.start(options.hostler, rounds=options.rounds, requests=options.requests, seconds=options.seconds)
        print(start.table(starts))
        kept(options, starts, "", "", {})
        return
    if options.what == "ladder":
        rungs = ladder.ladder(rounds=3 * options.rounds)
        print(ladder.table(rungs))
        kept(options, rungs, "", "", {})
        return
    if options.what == "leases":
        prices = leases.leases()
        print(leases.table(prices))
        kept(options, prices, "", "", {})
        return
    if options.what == "crowd":
        crowds = crowd.crowd()
        print(crowd.table(crowds))
        kept(options, crowds, "", "", {})
        return
    if options.what == "waiting":
        costs = waiting.waiting()
        print(waiting.table(costs))
        events = {"join": "join_us", "leave": "leave_us", "show progress": "progress_us"}
        lines = {
            name: [(float(cost.waiting), getattr(cost, field)) for cost in costs] for name, field in events.items()
        }
        kept(options, costs, "CPU of one event, µs", "queued requests", lines)
        return
    given = vars(options)
    programs = {name: path for name in PROXIES if (path := given.get(name.replace("-", "_")))}
    names = [name for name in PROXIES if name in options.only.split(",")]
    scenarios = [name for name in options.scenarios.split(",") if name]
    rows, skipped = compare(names, programs, scenarios, options.seconds, options.rounds)
    print(table(rows))
    for reason in skipped:
        print(f"skipped: {reason}")
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode({"rows": rows, "skipped": skipped})))
    if options.plot:
        print(plot(rows, options.plot), file=sys.stderr)


if __name__ == "__main__":
    main()
