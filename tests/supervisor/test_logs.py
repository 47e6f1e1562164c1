"""The log lines of an engine, buffered and followed."""

from __future__ import annotations

import pytest

from hostler.supervisor.logs import FOLLOWER_LINES, MAX_LINE, EngineLog, LineSplitter

pytestmark = pytest.mark.anyio


def test_keeps_the_last_lines_only() -> None:
    log = EngineLog(3)
    for number in range(5):
        log.add(str(number))
    assert log.tail() == ["2", "3", "4"]
    assert log.tail(2) == ["3", "4"]
    assert log.tail(0) == []


def test_returns_the_lines_after_a_mark() -> None:
    log = EngineLog(3)
    log.add("before")
    mark = log.count
    assert log.since(mark) == []
    log.add("after")
    assert log.since(mark) == ["after"]


def test_a_key_never_shows() -> None:
    log = EngineLog()
    log.redact("s3cret")
    log.add("Authorization: Bearer s3cret")
    assert "s3cret" not in "".join(log.tail())


async def test_a_follower_gets_new_lines() -> None:
    log = EngineLog()
    log.add("old")
    with log.follow() as lines:
        log.add("new")
        assert await anext(lines) == "new"


async def test_a_slow_follower_gets_the_number_of_lines_it_missed() -> None:
    log = EngineLog(10)
    with log.follow() as lines:
        for number in range(FOLLOWER_LINES + 7):
            log.add(str(number))
        assert await anext(lines) == "[7 lines missed]"
        assert await anext(lines) == "7"


def test_splits_any_pieces_into_whole_lines() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"on") == []
    assert splitter.feed("e\r\ntwö\nthr".encode()) == ["one", "twö"]
    assert splitter.finish() == ["thr"]


def test_a_line_without_an_end_is_cut() -> None:
    splitter = LineSplitter()
    [line] = splitter.feed(b"x" * (MAX_LINE + 100))
    assert len(line) == MAX_LINE
