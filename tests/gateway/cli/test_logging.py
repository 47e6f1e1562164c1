"""The log: JSON lines, and a handler that never blocks its caller."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from hostler.gateway.cli.logging import CLOSE_S, JsonFormatter, LogHandler
from hostler.gateway.events import RequestFinished
from hostler.gateway.telemetry.access_log import AccessLogRecord, describe


def record(text: str, *given: object, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("hostler.x", logging.WARNING, __file__, 1, text, given, more.pop("exc_info", None))
    made.created = 1000.5
    for name, value in more.items():
        setattr(made, name, value)
    return made


def lines(of: logging.LogRecord) -> list[dict[str, Any]]:
    return [json.loads(line) for line in JsonFormatter().format(of).splitlines()]


def test_a_json_line_has_time_level_logger_and_message() -> None:
    (line,) = lines(record("%s is\nfull", "the disk"))
    assert line == {
        "time": "1970-01-01T00:16:40.500Z",
        "level": "warning",
        "logger": "hostler.x",
        "message": "the disk is\nfull",
    }


def test_a_request_is_logged_with_all_its_fields() -> None:
    events = [
        RequestFinished(
            id=f"req-{number}", at=1000.0 + number, protocol="openai", operation="chat", client="anna", outcome="ok",
            status=200, seconds=0.1, model="a", backend="box",
        )
        for number in range(2)
    ]  # fmt: skip
    logged = lines(AccessLogRecord([(event.at, describe(event)) for event in events], events))
    assert [line["request"]["id"] for line in logged] == ["req-0", "req-1"]
    assert logged[1]["request"]["backend"] == "box"
    assert logged[1]["time"] == "1970-01-01T00:16:41.000Z"
    assert logged[0]["logger"] == "hostler.requests"


def test_an_exception_is_one_line_too() -> None:
    try:
        raise ValueError("no luck")
    except ValueError:
        (line,) = lines(record("it failed", exc_info=sys.exc_info()))
    assert line["traceback"].startswith("Traceback")
    assert line["traceback"].endswith("ValueError: no luck")


@pytest.mark.parametrize("value", [{"key": "anna", "scope": "operate"}, {"odd": object()}])
def test_an_audit_line_has_its_fields(value: dict[str, Any]) -> None:
    (line,) = lines(record("refused", audit=value))
    assert line["audit"].keys() == value.keys()


class BlockedOutput:
    """Takes records while it is open, and holds up the thread that writes them while it is not."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.blocked = threading.Event()
        self.messages: list[str] = []

    def __call__(self, record: logging.LogRecord) -> None:
        self.blocked.set()
        assert self.opened.wait(20)
        self.messages += record.getMessage().splitlines()


@pytest.fixture
def output() -> BlockedOutput:
    return BlockedOutput()


@pytest.fixture
def handler(output: BlockedOutput) -> Iterator[LogHandler]:
    handler = LogHandler(output, max_lines=10)
    yield handler
    output.opened.set()
    handler.close()


def test_dropped_lines_are_counted_and_reported_once_there_is_room(handler: LogHandler, output: BlockedOutput) -> None:
    for number in range(30):
        handler.handle(record("line %d", number))
    handler.handle(AccessLogRecord([(1.0, "one"), (2.0, "two"), (3.0, "three")]))
    output.opened.set()
    assert handler.wait_until_written(20)
    assert output.messages == [f"line {number}" for number in range(10)] + [
        "23 log lines dropped because output was blocked"
    ]
    handler.handle(record("later"))
    assert handler.wait_until_written(20)
    assert output.messages[-1] == "later"


def test_a_record_of_many_lines_counts_as_many(handler: LogHandler, output: BlockedOutput) -> None:
    handler.handle(AccessLogRecord([(1.0, f"line {number}") for number in range(50)]))
    handler.handle(record("dropped"))
    output.opened.set()
    assert handler.wait_until_written(20)
    assert output.messages[50:] == ["1 log line dropped because output was blocked"]


def test_arguments_that_change_later_are_logged_as_they_were(handler: LogHandler, output: BlockedOutput) -> None:
    changing = ["before"]
    handler.handle(record("%s", changing))
    changing[0] = "after"
    output.opened.set()
    assert handler.wait_until_written(20)
    assert output.messages == ["['before']"]


def test_jobs_run_in_order_with_the_log_and_are_never_dropped(handler: LogHandler, output: BlockedOutput) -> None:
    for number in range(20):
        handler.handle(record("line %d", number))
    handler.submit(lambda: output.messages.append("the job"))
    output.opened.set()
    assert handler.wait_until_written(20)
    assert output.messages[10] == "the job" or output.messages[11] == "the job"


def test_lines_that_cannot_be_written_are_dropped_and_reported(output: BlockedOutput) -> None:
    full = [True]

    def write(record: logging.LogRecord) -> None:
        if full[0]:
            raise OSError("no space left on device")
        output(record)

    output.opened.set()
    handler = LogHandler(write)
    handler.handle(record("lost"))
    assert handler.wait_until_written(20)
    full[0] = False
    handler.handle(record("kept"))
    assert handler.wait_until_written(20)
    assert output.messages == ["kept", "1 log line dropped because output was blocked"]
    handler.close()


def test_closing_waits_for_blocked_output_only_for_a_while(handler: LogHandler, output: BlockedOutput) -> None:
    handler.handle(record("never written"))
    assert not handler.wait_until_written(0.1)
    began_at = time.monotonic()
    handler.close()
    closed_at = time.monotonic()
    handler.close()
    assert closed_at - began_at >= CLOSE_S
    # The second time it does not wait again.
    assert time.monotonic() - closed_at < closed_at - began_at


def test_arguments_that_do_not_fit_their_message_do_not_raise(
    handler: LogHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[logging.LogRecord] = []
    monkeypatch.setattr(handler, "handleError", failed.append)
    handler.emit(record("%d lines", "many"))
    assert [each.msg for each in failed] == ["%d lines"]
