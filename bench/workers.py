"""How much more several workers serve than one process: `python -m bench.workers`.

Gateways with different numbers of workers answer the same load in turns, and each of their processes' CPU time is read. A
rate on a machine that runs other programs as well says little, so the capacity is computed: with a core for each process,
the busiest one is the limit; on `--cores` cores, so is the sum of all of them. Load and backend are not counted: they have
cores of their own elsewhere.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import msgspec

from bench.compare import EMBED, STREAM, Scenario, load
from bench.processes import TICKS, backend, rss_mib, tree
from bench.proxies import Hostler


class WithWorkers(Hostler):
    """Hostler with so many workers; one is a single process."""

    def __init__(self, count: int) -> None:
        super().__init__(None)
        self.count = count
        self.name = f"hostler-{count}"

    def command(self, backend: int, port: int, directory: Path) -> list[str]:
        command = super().command(backend, port, directory)
        config = directory / "hostler.yaml"
        config.write_text(config.read_text().replace("gateway:\n", f"gateway:\n  workers: {self.count}\n", 1))
        return command


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """CPU µs of a request in the busiest process, in the main process, and in all of them; memory of all, in MiB."""

    busiest_us: float
    main_us: float
    total_us: float
    rss_mib: float

    def per_s(self, cores: int) -> float:
        """Requests a second on so many cores."""
        return 1e6 / max(self.busiest_us, self.total_us / cores)


def run(count: int, scenario: Scenario, seconds: float, port: int) -> Capacity:
    """One run of the load against a gateway of its own."""
    proxy = WithWorkers(count)
    with tempfile.TemporaryDirectory(prefix="hostler-bench-") as folder, proxy.start(port, Path(folder)) as (url, pid):
        load(url, proxy, scenario, 0.5)  # workers have connected, heads are known
        processes = tree(pid)
        before = [own_cpu_s(each) for each in processes]
        seen = load(url, proxy, scenario, seconds)
        used = [own_cpu_s(each) - earlier for each, earlier in zip(processes, before, strict=True)]
        requests = int(str(seen["requests"]))
        if seen["errors"] or not requests:
            raise RuntimeError(f"{proxy.name}: {seen['errors']} errors in {requests} requests of {scenario.name}")
        return Capacity(
            busiest_us=max(used) / requests * 1e6,
            main_us=used[0] / requests * 1e6,
            total_us=sum(used) / requests * 1e6,
            rss_mib=rss_mib(pid),
        )


def own_cpu_s(pid: int) -> float:
    """CPU seconds of one process, without those of its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def median(runs: list[Capacity]) -> Capacity:
    """The median of each figure."""
    return Capacity(
        **{name: statistics.median(getattr(each, name) for each in runs) for name in Capacity.__struct_fields__}
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.workers", description=__doc__)
    parser.add_argument(
        "--workers", default="1,2", help="numbers of workers, separated by commas; the first is the base"
    )
    parser.add_argument("--cores", type=int, default=2, help="cores that the gateway may use")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each; the rows are medians")
    options = parser.parse_args()
    counts = [int(each) for each in options.workers.split(",")]
    print("scenario   workers  busiest µs  main µs  all µs  MiB  requests/s on", options.cores, "cores  ratio")
    with backend() as port:
        for scenario in (EMBED, STREAM):
            runs: dict[int, list[Capacity]] = {count: [] for count in counts}
            for _ in range(options.rounds):
                for count in counts:
                    runs[count].append(run(count, scenario, options.seconds, port))
            base = median(runs[counts[0]]).per_s(options.cores)
            for count in counts:
                found = median(runs[count])
                rate = found.per_s(options.cores)
                print(
                    f"{scenario.name:10} {count:7} {found.busiest_us:11.1f} {found.main_us:8.1f} {found.total_us:7.1f} "
                    f"{found.rss_mib:4.0f} {rate:14.0f} {rate / base:15.2f}"
                )


if __name__ == "__main__":
    main()
