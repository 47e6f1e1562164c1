"""The log for programs: one JSON object a line, of requests and the audit log with all that is known."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from hostler.gateway.cli.logging import JsonLines
from hostler.gateway.events import RequestFinished
from hostler.gateway.telemetry.access_log import AccessLogRecord, describe


def record(text: str, *given: object, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("hostler.x", logging.WARNING, __file__, 1, text, given, more.pop("exc_info", None))
    made.created = 1000.5
    for name, value in more.items():
        setattr(made, name, value)
    return made


def lines(of: logging.LogRecord) -> list[dict[str, Any]]:
    return [json.loads(line) for line in JsonLines().format(of).splitlines()]


def test_a_line_tells_when_how_grave_and_who() -> None:
    (line,) = lines(record("%s is\nfull", "the disk"))
    assert line == {
        "time": "1970-01-01T00:16:40.500Z",
        "level": "warning",
        "logger": "hostler.x",
        "message": "the disk is\nfull",
    }


def test_a_request_is_told_with_all_its_figures() -> None:
    events = [
        RequestFinished(
            id=f"req-{number}", at=1000.0 + number, protocol="openai", operation="chat", client="anna", outcome="ok",
            status=200, seconds=0.1, model="a", backend="box",
        )
        for number in range(2)
    ]  # fmt: skip
    told = lines(AccessLogRecord([(event.at, describe(event)) for event in events], events))
    assert [line["request"]["id"] for line in told] == ["req-0", "req-1"]
    assert told[1]["request"]["backend"] == "box"
    assert told[1]["time"] == "1970-01-01T00:16:41.000Z"
    assert told[0]["logger"] == "hostler.requests"


def test_an_exception_is_one_line_too() -> None:
    try:
        raise ValueError("no luck")
    except ValueError:
        (line,) = lines(record("it failed", exc_info=sys.exc_info()))
    assert line["traceback"].startswith("Traceback")
    assert line["traceback"].endswith("ValueError: no luck")


@pytest.mark.parametrize("value", [{"key": "anna", "scope": "operate"}, {"odd": object()}])
def test_an_audit_line_has_its_facts(value: dict[str, Any]) -> None:
    (line,) = lines(record("refused", audit=value))
    assert line["audit"].keys() == value.keys()
