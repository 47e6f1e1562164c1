"""Names that are too long for a table: what a person has to read stays, and models can still be told apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from hostler.gateway.cli.formatting import PAST, Column, aligned, console, middle_cut, shortened, show, table

LONG = "unsloth/Qwen3-Coder-30B-A3B-Instruct-1M-GGUF-UD-Q4_K_XL"
COLUMNS = [
    Column("MODEL", named=True),
    Column("STATE"),
    Column("SLOTS", right=True, drop=1),
    Column("NOTE", wraps=True),
]
NOTE = "the file is not where the profile says, and nobody knows why"


def drawn(columns: list[Column], rows: list[tuple[str, ...]], width: int) -> list[str]:
    out = console(width=width)
    with out.capture() as captured:
        out.print(table(columns, rows, width))
    return captured.get().splitlines()


def test_a_long_name_gives_way_to_what_one_has_to_read() -> None:
    lines = drawn(COLUMNS, [(LONG, "unloaded", "4", NOTE)], 80)
    assert lines[0].split() == ["MODEL", "STATE", "SLOTS", "NOTE"]
    assert lines[1].startswith("unsloth/Qwen3") and "Q4_K_XL  unloaded" in lines[1]
    assert len(lines) <= 4
    assert all(cell_len(line.rstrip()) <= 80 for line in lines)


def test_of_requests_the_times_stay_whatever_the_names_are() -> None:
    row = ("12:00:00", "failed 503", LONG, f"{LONG}, hop 2", "12 s", "250 ms", "42 tokens/s", LONG)
    for lines in (drawn(list(PAST), [row], 80), [line.plain for line in aligned(PAST, [row], 80)]):
        assert "TOOK" in lines[0]
        assert "12 s" in lines[1] and "failed 503" in lines[1] and ", hop 2" in lines[1]
        assert all(cell_len(line.rstrip()) <= 80 for line in lines)


def test_a_name_is_cut_no_further_than_it_must_be() -> None:
    (_, line) = (each.plain for each in aligned(COLUMNS, [(LONG, "loaded", "1", "-")], 72))
    name = line.split("  ")[0]
    assert "…" in name and cell_len(line) <= 72 and cell_len(name) >= 50
    assert LONG in aligned(COLUMNS, [(LONG, "loaded", "1", "-")], 100)[1].plain


def test_names_that_begin_and_end_alike_are_told_apart() -> None:
    names = [f"company/model-with-a-long-name-{size}b-instruct-and-more-words" for size in (7, 14, 32)]
    lines = [each.plain for each in aligned(COLUMNS, [(name, "loaded", "1", NOTE) for name in names], 60)]
    assert len({line.split("  ")[0] for line in lines[1:]}) == 3


def test_a_mark_behind_a_name_stays() -> None:
    names = [f"company/model-with-a-long-name-{size}b-instruct-and-more-words *" for size in (7, 14)]
    assert all(short.endswith(" *") for short in shortened(names, 24).values())


def test_a_text_beside_tables_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    show("active model: \x1b[2Jowned\x07", "")
    assert capsys.readouterr().out == "active model: ?[2Jowned?\n\n"


def test_wide_characters_count_for_two() -> None:
    name = "通义千问三代编程助手超长名字的模型一号"
    for width in range(3, 40):
        assert cell_len(middle_cut(name, width)) <= width
    lines = aligned(COLUMNS, [(name * 2, "loaded", "1", NOTE), ("b", "loaded", "1", "-")], 60)
    assert {cell_len(line.plain[: line.plain.index("loaded")]) for line in lines[1:]} == {
        cell_len(lines[0].plain[: lines[0].plain.index("STATE")])
    }


@given(st.sets(st.text(max_size=40), max_size=6), st.integers(1, 60))
def test_a_shortened_name_always_fits(names: set[str], width: int) -> None:
    for name, short in shortened(names, width).items():
        assert cell_len(short) <= width
        assert short == name or cell_len(name) > width


@pytest.mark.parametrize("place", [0, 9, 18, 27, 36, 49])
def test_one_different_letter_is_enough_wherever_it_is(place: int) -> None:
    one = "abcdefghij" * 5
    other = one[:place] + "#" + one[place + 1 :]
    assert len(set(shortened([one, other], 20).values())) == 2
