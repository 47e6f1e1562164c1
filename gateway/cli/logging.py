"""How the log looks: plain lines for people, JSON for programs, and lines that a live view takes over while it is there."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec

from hostler.gateway.telemetry.access_log import AccessLogRecord

Form = Literal["auto", "plain", "json"]

#: What is logged by others and is of no use below a warning.
_NOISY = ("uvicorn", "uvicorn.error", "httpx", "httpcore", "asyncio", "sse_starlette", "watchfiles")


class PlainLines(logging.Formatter):
    """Python's own format of a line; the second's text is made once a second."""

    _second = -1
    _shown = ""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return self._time(record.created)

    def _time(self, at: float) -> str:
        second = int(at)
        if second != self._second:
            self._second, self._shown = second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._shown},{int((at - second) * 1000):03d}"

    def format(self, record: logging.LogRecord) -> str:
        if not isinstance(record, AccessLogRecord):
            return super().format(record)
        kind = f"{record.levelname:7} {record.name}"
        return "\n".join(f"{self._time(at)} {kind}: {text}" for at, text in record.lines)


class JsonLines(logging.Formatter):
    """One JSON object a line: `time` (UTC), `level`, `logger`, `message`; of a request also `request` with all its
    fields, of the audit log `audit`, of an exception `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record, AccessLogRecord):
            events = record.events or (None,) * len(record.lines)
            return "\n".join(
                self._line(record, at, text, {} if event is None else {"request": event})
                for (at, text), event in zip(record.lines, events, strict=True)
            )
        more: dict[str, Any] = {}
        audit = getattr(record, "audit", None)
        if audit is not None:
            more["audit"] = audit
        if record.exc_info:
            more["traceback"] = self.formatException(record.exc_info)
        return self._line(record, record.created, record.getMessage(), more)

    def _line(self, record: logging.LogRecord, at: float, message: str, more: dict[str, Any]) -> str:
        line = {
            "time": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            **more,
        }
        return msgspec.json.encode(line, enc_hook=str).decode()


class Handler(logging.StreamHandler[TextIO]):
    """Writes lines, or hands records to `above` as long as a live view stands below them."""

    above: Callable[[logging.LogRecord], None] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        if self.above is None:
            super().emit(record)
        else:
            self.above(record)


def set_up(level: str, form: Form) -> Handler:
    """Log to standard error. The handler is returned for a live view to stand in its way."""
    handler = Handler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else PlainLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Half of a line's price is finding out which thread, process and line of code it came from; no line says so.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    return handler
