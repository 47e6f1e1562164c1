"""Numbers as people read them, and tables as wide as the terminal."""

from __future__ import annotations

import io
import sys

import pytest

from hostler.gateway.cli.formatting import Column, console, count, seconds, show_table, size, speed, table


@pytest.mark.parametrize(
    ("value", "told"),
    [(None, "-"), (0.0, "0 s"), (0.0123, "12 ms"), (3.14, "3.1 s"), (42.4, "42 s"), (89.9, "1 min"), (600.0, "10 min"),
     (5 * 3600.0 + 120, "5 h 2 min"), (3 * 86400.0, "3 days"), (float("inf"), "-")],
)  # fmt: skip
def test_a_duration_is_the_coarser_the_longer_it_is(value: float | None, told: str) -> None:
    assert seconds(value) == told


@pytest.mark.parametrize(
    ("value", "told"),
    [(0, "-"), (None, "-"), (999, "999 B"), (1024, "1.0 KiB"), (210 * 1024**2, "210 MiB"), (1.25 * 1024**3, "1.2 GiB"),
     (9000 * 1024**4, "9000 TiB")],
)  # fmt: skip
def test_a_size_has_a_unit(value: float | None, told: str) -> None:
    assert size(value) == told


def test_counts_and_speeds() -> None:
    assert (count(1, "request"), count(2, "request"), count(1200, "token")) == (
        "1 request",
        "2 requests",
        "1,200 tokens",
    )
    assert (speed(101, 2.0), speed(1, 2.0), speed(5, 0.0)) == ("50 tokens/s", "-", "-")


COLUMNS = [Column("NAME"), Column("SIZE", right=True, drop=2), Column("PLACE", drop=1), Column("NOTE", wraps=True)]
ROW = ("a-model-with-a-name", "1.2 GiB", "/a/place/far/away", "something that is told in quite a few words")


def drawn(width: int) -> list[str]:
    out = console(io.StringIO(), width=width)
    with out.capture() as captured:
        out.print(table(COLUMNS, [ROW], width))
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [45, 60, 80, 100, 200])
def test_a_table_is_never_wider_than_the_terminal(width: int) -> None:
    assert all(len(line) <= width for line in drawn(width))


def test_what_is_least_needed_is_left_out_first() -> None:
    assert drawn(200)[0].split() == ["NAME", "SIZE", "PLACE", "NOTE"]
    assert drawn(62)[0].split() == ["NAME", "PLACE", "NOTE"]
    assert drawn(45)[0].split() == ["NAME", "NOTE"]


def test_into_a_pipe_goes_everything_in_one_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(COLUMNS, [ROW, ("b\x1b[2J", "-", "-", "ready")])
    header, first, second = capsys.readouterr().out.splitlines()
    assert all(word in first for word in ROW)
    assert header.index("NOTE") == first.index("something") == second.index("ready")
    assert "\x1b" not in header + first + second
    assert sys.stdout.isatty() is False
