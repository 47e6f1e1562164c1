"""How much of a stream is parsed in one go."""

from __future__ import annotations

import pytest

from hostler.gateway.parsing_turns import TURN, TURN_LINES, turns


@pytest.mark.parametrize(
    "segment",
    [b"data: x\n\n", b"x" * TURN, b"data: %b\n\n" % (b"x" * 64 * 1024) * 4, b"\n" * (TURN_LINES - 1) + b"x" * TURN],
    ids=["short", "one turn", "long events", "nearly too many lines"],
)
def test_few_lines_are_parsed_in_one_go_however_long_they_are(segment: bytes) -> None:
    assert list(turns(segment, TURN)) == [segment]


@pytest.mark.parametrize("segment", [b"data: x\n\n" * 5000, b"\n" * TURN_LINES + b"x" * TURN])
def test_many_lines_are_parsed_in_several_turns(segment: bytes) -> None:
    pieces = turns(segment, TURN)
    assert b"".join(pieces) == segment
    assert len(pieces) > 1 and max(map(len, pieces)) == TURN


def test_nothing_is_parsed_in_no_turn() -> None:
    assert list(turns(b"", TURN)) == []
