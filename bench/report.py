"""The comparison as a table for the terminal and as a picture."""

from __future__ import annotations

from pathlib import Path

from bench.compare import Row

COLUMNS = {
    "scenario": "", "proxy": "", "per_s": ".0f", "p50_ms": ".2f", "added_p50_ms": ".2f", "p99_ms": ".2f",
    "first_byte_p50_ms": ".2f", "chunk_delay_p50_ms": ".2f", "chunk_delay_p99_ms": ".2f", "cpu_us": ".0f", "rss_mib": ".0f",
    "mb_per_s": ".1f", "errors": "d",
}  # fmt: skip


def table(rows: list[Row]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for row in rows:
        values = [getattr(row, name) for name in COLUMNS]
        cells = [
            format(value, how) if value is not None else "-"
            for value, how in zip(values, COLUMNS.values(), strict=True)
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot_growth(title: str, axis: str, series: dict[str, list[tuple[float, float]]], path: Path) -> str:
    """Draw how values grow with the number of clients, on logarithmic axes. Returns a message."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return f"{path}: not drawn, matplotlib is not installed"
    figure, one = pyplot.subplots(figsize=(7, 5))
    for name, points in series.items():
        one.plot([x for x, _ in points], [max(y, 0.001) for _, y in points], marker="o", label=name)
    one.set_xscale("log")
    one.set_yscale("log")
    values = [y for points in series.values() for _, y in points]
    if values and min(values) > 1:
        one.set_ylim(1, max(values) * 50)  # constant values should look constant
    one.set_xlabel(axis)
    one.set_title(title)
    one.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return f"{path}: drawn"


def plot(rows: list[Row], path: Path) -> str:
    """Draw CPU per request and added latency. Returns a message."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return f"{path}: not drawn, matplotlib is not installed"
    scenarios = list(dict.fromkeys(row.scenario for row in rows))
    proxies = [name for name in dict.fromkeys(row.proxy for row in rows) if name != "direct"]
    figure, axes = pyplot.subplots(1, 2, figsize=(14, 5))
    parts = (("cpu_us", "CPU of the proxy, µs a request"), ("added_p50_ms", "added to the median, ms"))
    for axis, (column, title) in zip(axes, parts, strict=True):
        for index, proxy in enumerate(proxies):
            values = {row.scenario: getattr(row, column) for row in rows if row.proxy == proxy}
            heights = [max(values.get(scenario) or 0.0, 0.001) for scenario in scenarios]
            places = [place + index * 0.8 / len(proxies) for place in range(len(scenarios))]
            axis.bar(places, heights, width=0.8 / len(proxies), label=proxy)
        axis.set_yscale("log")
        axis.set_xticks([place + 0.4 for place in range(len(scenarios))], scenarios, rotation=30)
        axis.set_title(title)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return f"{path}: drawn"
