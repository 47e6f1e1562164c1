"""A worker's log: its records are written by the main process, among its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from hostler.gateway.workers.channel import Channel
from hostler.gateway.workers.frames import FrameToWorker, LogEntry

_formatter = logging.Formatter()


class ChannelLogHandler(logging.Handler):
    """Sends records to the main process, but for those of `repeated` loggers below ERROR, which the main process writes
    about the same things itself. Thread-safe. Records are dropped while the main process does not read.
    """

    def __init__(self, channel: Channel[FrameToWorker], *, repeated: Iterable[str] = ()) -> None:
        super().__init__()
        self._channel = channel
        self._repeated = frozenset(repeated)
        self._loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        if record.name in self._repeated and record.levelno < logging.ERROR:
            return
        try:
            entry = LogEntry(
                logger=record.name,
                level=record.levelno,
                at=record.created,
                text=record.getMessage(),
                traceback="" if record.exc_info is None else _formatter.formatException(record.exc_info),
                audit=getattr(record, "audit", None),
            )
        except Exception:
            self.handleError(record)
            return
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._send, entry)

    def _send(self, entry: LogEntry) -> None:
        if not self._channel.crowded:
            self._channel.send(entry)


def handle(entry: LogEntry) -> None:
    """Write a worker's record, in the main process."""
    logger = logging.getLogger(entry.logger)
    if not logger.isEnabledFor(entry.level):
        return
    record = logger.makeRecord(entry.logger, entry.level, "", 0, entry.text, (), None)
    record.created, record.msecs = entry.at, int(entry.at * 1000) % 1000
    record.exc_text = entry.traceback or None
    if entry.audit is not None:
        record.audit = entry.audit
    logger.handle(record)
