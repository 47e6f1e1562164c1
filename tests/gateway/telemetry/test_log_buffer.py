"""The log buffer: the latest lines, and new ones for any number of followers."""

from __future__ import annotations

import logging
import threading

import anyio
import pytest

from hostler.gateway.telemetry.access_log import AccessLogRecord
from hostler.gateway.telemetry.log_buffer import CAPACITY, LogBuffer

pytestmark = pytest.mark.anyio

logger = logging.getLogger("hostler.test")


async def test_each_line_of_a_batch_keeps_its_own_time() -> None:
    buffer = LogBuffer()
    with buffer.installed():
        logging.getLogger().handle(AccessLogRecord([(1000.25, "one"), (1001.5, "two")]))
        assert [(line.text, line.at) for line in buffer.tail()] == [("one", 1000.25), ("two", 1001.5)]


async def test_only_the_latest_lines_are_kept() -> None:
    buffer = LogBuffer()
    with buffer.installed():
        for number in range(CAPACITY + 5):
            logger.warning("line %d", number)
        assert [line.text for line in (buffer.tail()[0], buffer.tail()[-1])] == ["line 5", f"line {CAPACITY + 4}"]


async def test_a_follower_gets_lines_of_other_threads_too() -> None:
    buffer = LogBuffer()
    with buffer.installed(), buffer.follow() as lines, anyio.fail_after(20):
        logger.warning("here")
        thread = threading.Thread(target=logger.error, args=("there",))
        thread.start()
        assert [((line := await anext(lines)).text, line.level) for _ in range(2)] == [
            ("here", "warning"),
            ("there", "error"),
        ]
        thread.join()


async def test_a_message_that_cannot_be_formatted_raises_nothing() -> None:
    buffer = LogBuffer()
    with buffer.installed():
        buffer.emit(logging.LogRecord("x", logging.INFO, "", 0, "%d", ("text",), None))
        assert [line.text for line in buffer.tail()] == ["[a message of x could not be formatted]"]


async def test_nothing_is_kept_outside_of_the_context() -> None:
    buffer = LogBuffer()
    with buffer.installed():
        pass
    logger.warning("later")
    assert buffer.tail() == []
