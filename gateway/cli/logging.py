"""The log on standard error: plain lines or JSON, written by a thread so that a blocked reader never blocks the caller."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from hostler.gateway.cli.output import write_all
from hostler.gateway.telemetry.access_log import AccessLogRecord

Format = Literal["auto", "plain", "json"]

#: Records that may wait to be written; further ones are dropped, counted and reported.
MAX_WAITING_LINES: Final = 10_000

#: How long `close` waits for lines that could not be written yet, in seconds.
CLOSE_S: Final = 2.0

_STDERR: Final = 2

#: Libraries whose INFO messages are of no use to operators.
_NOISY = ("uvicorn", "uvicorn.error", "httpx", "httpcore", "asyncio", "sse_starlette", "watchfiles")


class PlainFormatter(logging.Formatter):
    """Python's standard format. The formatted second is cached, since most lines share it."""

    _second = -1
    _text = ""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return self._time(record.created)

    def _time(self, at: float) -> str:
        second = int(at)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._text},{int((at - second) * 1000):03d}"

    def format(self, record: logging.LogRecord) -> str:
        if not isinstance(record, AccessLogRecord):
            return super().format(record)
        prefix = f"{record.levelname:7} {record.name}"
        return "\n".join(f"{self._time(at)} {prefix}: {text}" for at, text in record.lines)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (UTC), `level`, `logger`, `message`; for a request also `request` with all its
    fields, for an audit entry `audit`, for an exception `traceback`."""

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
        elif record.exc_text:  # of another process
            more["traceback"] = record.exc_text
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


class LogHandler(logging.Handler):
    """Hands records to one thread that writes them in order; the caller never waits.

    When `max_lines` wait, further ones are dropped, and their number is logged once all others have been written.
    `output` is called in the thread; it may be replaced at any time. Records for which it raises `OSError` count as
    dropped.
    """

    def __init__(self, output: Callable[[logging.LogRecord], None], *, max_lines: int = MAX_WAITING_LINES) -> None:
        super().__init__()
        self.output = output
        self._max_lines = max_lines
        self._changed = threading.Condition()
        self._waiting: deque[logging.LogRecord | Callable[[], None]] = deque()
        self._lines = 0
        self._dropped = 0
        self._busy = False
        self._closed = False
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        if not isinstance(record, AccessLogRecord):  # arguments may change before the thread formats them
            try:
                record.msg, record.args = record.getMessage(), None
            except Exception:
                self.handleError(record)
                return
        lines = _count_lines(record)
        with self._changed:
            if self._lines >= self._max_lines:
                self._dropped += lines
                return
            self._lines += lines
            self._waiting.append(record)
            self._changed.notify_all()

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job` in the thread, after everything logged before it. Jobs are never dropped."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify_all()

    def is_idle(self) -> bool:
        """Whether nothing waits. In a job or `output`: whether nothing follows."""
        return not self._waiting

    def wait_until_written(self, timeout_s: float) -> bool:
        """Wait for everything handed over so far. False if that took longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout_s)

    def close(self) -> None:
        """Write what still waits, for at most `CLOSE_S`; later records are dropped."""
        if not self._closed:
            self.wait_until_written(CLOSE_S)
            with self._changed:
                self._closed = True
                self._changed.notify_all()
        super().close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                item = self._waiting.popleft()
                self._busy = True
            if not isinstance(item, logging.LogRecord):
                item()
                continue
            self._write(item)
            with self._changed:
                self._lines -= _count_lines(item)
                dropped = 0 if self._waiting else self._dropped
                self._dropped -= dropped
            if dropped:
                text = f"{dropped} log line{'s' if dropped > 1 else ''} dropped because output was blocked"
                self._write(logging.LogRecord("hostler.log", logging.WARNING, __file__, 0, text, None, None), dropped)

    def _write(self, record: logging.LogRecord, dropped: int = 1) -> None:
        try:
            self.output(record)
        except OSError:  # a full disk, a closed pipe
            with self._changed:
                self._dropped += dropped
        except Exception:
            self.handleError(record)


def _count_lines(record: logging.LogRecord) -> int:
    return len(record.lines) if isinstance(record, AccessLogRecord) else 1


def configure_logging(level: str, form: Format) -> LogHandler:
    """Log to standard error. The caller closes the handler at the end of the process."""
    formatter = JsonFormatter() if form == "json" else PlainFormatter()
    handler = LogHandler(lambda record: write_all(_STDERR, formatter.format(record) + "\n"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Finding out which thread, process and line of code a record came from costs half of it, and no format shows it.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    return handler
