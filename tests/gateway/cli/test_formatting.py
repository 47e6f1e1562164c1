"""Numbers, shortened names, and tables that fit into the terminal."""

from __future__ import annotations

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from hostler.gateway.cli.formatting import (
    REQUEST_COLUMNS,
    Column,
    cut_middle,
    format_bytes,
    format_seconds,
    format_speed,
    make_console,
    make_table,
    plural,
    print_parts,
    print_table,
    shorten_names,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0 s"), (0.0123, "12 ms"), (3.14, "3.1 s"), (42.4, "42 s"), (89.9, "1 min"), (600.0, "10 min"),
     (5 * 3600.0 + 120, "5 h 2 min"), (3 * 86400.0, "3 days"), (float("inf"), "-")],
)  # fmt: skip
def test_longer_durations_are_coarser(value: float | None, text: str) -> None:
    assert format_seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "-"), (None, "-"), (999, "999 B"), (1024, "1.0 KiB"), (210 * 1024**2, "210 MiB"), (1.25 * 1024**3, "1.2 GiB"),
     (9000 * 1024**4, "9000 TiB")],
)  # fmt: skip
def test_a_size_has_a_unit(value: float | None, text: str) -> None:
    assert format_bytes(value) == text


def test_counts_and_speeds() -> None:
    assert plural(1, "request") == "1 request"
    assert plural(2, "request") == "2 requests"
    assert plural(1200, "token") == "1,200 tokens"
    assert (format_speed(101, 2.0), format_speed(1, 2.0), format_speed(5, 0.0)) == ("50 tokens/s", "-", "-")


NAME = "unsloth/Qwen3-Coder-30B-A3B-Instruct-1M-GGUF-UD-Q4_K_XL"
NAMED_COLUMNS = [
    Column("MODEL", named=True),
    Column("STATE"),
    Column("SLOTS", right=True, drop=1),
    Column("NOTE", wraps=True),
]
NOTE = "the file is not where the profile expects it, for an unknown reason"


def rendered(columns: list[Column], rows: list[tuple[str, ...]], width: int) -> list[str]:
    console = make_console(io.StringIO(), width=width)
    with console.capture() as captured:
        console.print(make_table(columns, rows, width))
    return captured.get().splitlines()


def test_a_long_name_leaves_room_for_the_other_columns() -> None:
    lines = rendered(NAMED_COLUMNS, [(NAME, "unloaded", "4", NOTE)], 80)
    assert lines[0].split() == ["MODEL", "STATE", "SLOTS", "NOTE"]
    assert lines[1].startswith("unsloth/Qwen3") and "Q4_K_XL  unloaded" in lines[1]
    assert len(lines) <= 4
    assert all(cell_len(line.rstrip()) <= 80 for line in lines)


def test_times_of_requests_stay_beside_long_names() -> None:
    row = ("12:00:00", "failed 503", NAME, f"{NAME}, hop 2", "12 s", "250 ms", "42 tokens/s", NAME)
    lines = rendered(list(REQUEST_COLUMNS), [row], 80)
    assert "TOOK" in lines[0]
    assert "12 s" in lines[1] and "failed 503" in lines[1] and ", hop 2" in lines[1]
    assert all(cell_len(line.rstrip()) <= 80 for line in lines)


def test_a_name_is_cut_no_further_than_necessary() -> None:
    line = rendered(NAMED_COLUMNS, [(NAME, "loaded", "1", "-")], 72)[1].rstrip()
    name = line.split("  ")[0]
    assert "…" in name and cell_len(line) <= 72 and cell_len(name) >= 50
    assert NAME in rendered(NAMED_COLUMNS, [(NAME, "loaded", "1", "-")], 100)[1]


def test_names_with_equal_ends_stay_different() -> None:
    names = [f"company/model-with-a-long-name-{size}b-instruct-and-more-words" for size in (7, 14, 32)]
    lines = rendered(NAMED_COLUMNS, [(name, "loaded", "1", NOTE) for name in names], 60)
    assert len({line.split("  ")[0] for line in lines if line.startswith("company")}) == 3


def test_a_mark_behind_a_name_stays() -> None:
    names = [f"company/model-with-a-long-name-{size}b-instruct-and-more-words *" for size in (7, 14)]
    assert all(short.endswith(" *") for short in shorten_names(names, 24).values())


def test_a_text_beside_tables_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    print_parts("active model: \x1b[2Jowned\x07", "")
    assert capsys.readouterr().out == "active model: ?[2Jowned?\n\n"


def test_wide_characters_take_two_cells() -> None:
    name = "通义千问三代编程助手超长名字的模型一号"
    for width in range(3, 40):
        assert cell_len(cut_middle(name, width)) <= width
    lines = rendered(NAMED_COLUMNS, [(name * 2, "loaded", "1", "-"), ("b", "loaded", "1", "-")], 60)
    assert {cell_len(line[: line.index("loaded")]) for line in lines[1:]} == {
        cell_len(lines[0][: lines[0].index("STATE")])
    }


@given(st.sets(st.text(max_size=40), max_size=6), st.integers(1, 60))
def test_a_shortened_name_always_fits(names: set[str], width: int) -> None:
    for name, short in shorten_names(names, width).items():
        assert cell_len(short) <= width
        assert short == name or cell_len(name) > width


@pytest.mark.parametrize("place", [0, 9, 18, 27, 36, 49])
def test_one_different_letter_is_enough_wherever_it_is(place: int) -> None:
    one = "abcdefghij" * 5
    other = one[:place] + "#" + one[place + 1 :]
    assert len(set(shorten_names([one, other], 20).values())) == 2


COLUMNS = [Column("NAME"), Column("SIZE", right=True, drop=2), Column("PLACE", drop=1), Column("NOTE", wraps=True)]
ROW = ("a-model-with-a-name", "1.2 GiB", "/a/place/far/away", "something that is said in quite a few words")


@pytest.mark.parametrize("width", [45, 60, 80, 100, 200])
def test_a_table_is_never_wider_than_the_terminal(width: int) -> None:
    assert all(len(line) <= width for line in rendered(COLUMNS, [ROW], width))


def test_the_least_needed_columns_are_left_out_first() -> None:
    assert rendered(COLUMNS, [ROW], 200)[0].split() == ["NAME", "SIZE", "PLACE", "NOTE"]
    assert rendered(COLUMNS, [ROW], 62)[0].split() == ["NAME", "PLACE", "NOTE"]
    assert rendered(COLUMNS, [ROW], 45)[0].split() == ["NAME", "NOTE"]


def test_a_pipe_gets_everything_with_one_line_per_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, [ROW, ("b\x1b[2J", "-", "-", "ready")])
    header, first, second = capsys.readouterr().out.splitlines()
    assert all(word in first for word in ROW)
    assert header.index("NOTE") == first.index("something") == second.index("ready")
    assert "\x1b" not in header + first + second
    assert sys.stdout.isatty() is False
