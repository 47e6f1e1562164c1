"""The access log: every finished request, in order, each line with its own time, in few records."""

from __future__ import annotations

import logging

import anyio
import pytest

from hostler.gateway.cli.logging import PlainFormatter
from hostler.gateway.events import RequestFinished
from hostler.gateway.telemetry.access_log import AccessLog, AccessLogRecord

pytestmark = pytest.mark.anyio


def finished(number: int) -> RequestFinished:
    return RequestFinished(
        id=f"req-{number}", at=1000.5 + number, protocol="openai", operation="chat", client="anna", outcome="ok",
        status=200, seconds=0.1, model="a", backend="box",
    )  # fmt: skip


async def test_a_batch_is_one_record_with_a_line_for_each_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="hostler.requests")
    log = AccessLog(batch_s=60.0)
    for number in range(3):
        log.add(finished(number))
    assert not caplog.records
    log.flush()
    log.flush()
    (record,) = caplog.records
    assert [line.rpartition(" ")[2] for line in record.getMessage().splitlines()] == ["req-0", "req-1", "req-2"]


async def test_a_batch_is_written_after_a_moment(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="hostler.requests")
    log = AccessLog(batch_s=0.0)
    log.add(finished(7))
    await anyio.sleep(0.01)  # timers that are due are called first
    assert "req-7" in caplog.text


def test_each_line_keeps_its_own_time() -> None:
    record = AccessLogRecord([(1000.25, "one"), (1001.5, "two")])
    first, second = PlainFormatter().format(record).splitlines()
    assert first.endswith(",250 INFO    hostler.requests: one") and second.endswith(
        ",500 INFO    hostler.requests: two"
    )
