"""One log line for every finished request, written in batches a few times a second."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from hostler.gateway.events import RequestFinished, printable

logger = logging.getLogger("hostler.requests")

#: How long a line may wait for others, in seconds.
_BATCH_S = 0.1


class AccessLogRecord(logging.LogRecord):
    """A batch of lines, each with its own time. Handlers unaware of this class see one message of many lines.

    `events` are the finished requests, one for each line, if known.
    """

    def __init__(self, lines: list[tuple[float, str]], events: Sequence[RequestFinished] = ()) -> None:
        super().__init__(logger.name, logging.INFO, __file__, 0, "", None, None)
        self.lines = lines
        self.events = events

    def getMessage(self) -> str:
        """All lines as one text, which the handlers that know this class never need."""
        return "\n".join(text for _, text in self.lines)


class AccessLog:
    """Logs finished requests in batches. Call `flush` at the end."""

    def __init__(self, batch_s: float = _BATCH_S) -> None:
        self._batch_s = batch_s
        self._waiting: list[RequestFinished] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, event: RequestFinished) -> None:
        """Never waits."""
        self._waiting.append(event)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._batch_s, self.flush)

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        events, self._waiting = self._waiting, []
        if events and logger.isEnabledFor(logging.INFO):
            logger.handle(AccessLogRecord([(event.at, describe(event)) for event in events], events))


def describe(event: RequestFinished) -> str:
    """A finished request as one line of text."""
    words = [event.outcome, str(event.status), f"{event.protocol}.{event.operation}"]
    if event.model or event.requested_model:
        words.append(printable(event.model or event.requested_model or ""))
    if event.backend:
        words.append(f"from {event.backend}")
    words.append(f"for {event.client} in {event.seconds:.3f} s")
    if event.queue_s >= 0.001:
        words.append(f"queued {event.queue_s:.3f} s")
    if event.switch_s >= 0.001:
        words.append(f"switched {event.switch_s:.3f} s")
    if event.first_token_s is not None:
        words.append(f"first token {event.first_token_s:.3f} s")
    if event.completion_tokens:
        words.append(f"{event.prompt_tokens}+{event.completion_tokens} tokens")
    if event.cost is not None:
        words.append(f"${event.cost:.6f}")
    if event.reason:
        words.append(f"({printable(event.reason)})")
    return " ".join([*words, event.id])
