"""Records of a worker's log are written by the main process as if they were its own."""

from __future__ import annotations

import logging
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from hostler.gateway.cli.logging import JsonFormatter, PlainFormatter
from hostler.gateway.workers.channel import Channel
from hostler.gateway.workers.frames import FrameToWorker, LogEntry
from hostler.gateway.workers.log_entries import ChannelLogHandler, handle

pytestmark = pytest.mark.anyio


class MainProcess:
    """A channel that keeps what is sent."""

    def __init__(self, *, crowded: bool = False) -> None:
        self.sent: list[Any] = []
        self.crowded = crowded

    def send(self, frame: object) -> None:
        self.sent.append(frame)


def logger_to(main: MainProcess, name: str, *, repeated: tuple[str, ...] = ()) -> logging.Logger:
    logger = logging.Logger(name)
    logger.addHandler(ChannelLogHandler(cast(Channel[FrameToWorker], main), repeated=repeated))
    return logger


async def test_a_record_arrives_with_its_traceback_and_its_time(caplog: pytest.LogCaptureFixture) -> None:
    main = MainProcess()
    logger = logger_to(main, "hostler.test")
    try:
        raise LookupError("on purpose")
    except LookupError:
        logger.exception("%s failed", "it")
    await anyio.lowlevel.checkpoint()
    (entry,) = main.sent
    handle(entry)
    (record,) = caplog.records
    assert (record.name, record.levelname, record.created) == ("hostler.test", "ERROR", entry.at)
    assert "it failed" in PlainFormatter().format(record)
    assert "LookupError: on purpose" in PlainFormatter().format(record)
    assert "LookupError: on purpose" in JsonFormatter().format(record)


async def test_what_the_main_process_logs_as_well_is_left_to_it_unless_it_is_an_error() -> None:
    main = MainProcess()
    logger = logger_to(main, "hostler.hosts", repeated=("hostler.hosts",))
    logger.warning("pc: not reachable")
    logger.error("pc: broken")
    await anyio.lowlevel.checkpoint()
    assert [entry.text for entry in main.sent] == ["pc: broken"]


async def test_records_are_dropped_while_the_main_process_does_not_read() -> None:
    main = MainProcess(crowded=True)
    logger_to(main, "hostler.test").error("too much")
    await anyio.lowlevel.checkpoint()
    assert main.sent == []


def test_entries_below_the_level_are_not_written(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        handle(LogEntry("hostler.test", logging.INFO, 1.0, "too quiet"))
        handle(LogEntry("hostler.audit", logging.WARNING, 1.0, "refused", audit={"key": "bob"}))
    (record,) = caplog.records
    assert record.audit == {"key": "bob"}  # type: ignore[attr-defined]
