"""How long a backend may send signs of life instead of tokens."""

from __future__ import annotations

from hostler.adapters.canonical import PromptStatus
from hostler.adapters.errors import BackendTimeout
from hostler.gateway.backends.transport import Timeouts


class TokenLimit:
    """Judges the pieces of one answer that contain no token. The transport judges silence.

    Before the first token they may go on for `longest_prompt_s`, counted anew whenever the backend reports that it has
    read more of the prompt; after it for `between_bytes_s`.
    """

    __slots__ = ("_last", "_latest", "_read", "_since", "_timeouts")

    def __init__(self, timeouts: Timeouts, now: float) -> None:
        self._timeouts = timeouts
        self._latest = now + timeouts.longest_prompt_s
        self._read = -1
        self._since = now
        self._last = -1

    def before_token(self, prompt: PromptStatus | None, now: float) -> None:
        """A piece without a token, before the first one. Raises `BackendTimeout`."""
        if prompt is not None and prompt.processed > self._read:
            self._read = prompt.processed
            self._latest = now + self._timeouts.longest_prompt_s
        if now >= self._latest:
            raise BackendTimeout("only keep-alives arrived, but no token in time")

    def after_token(self, number: int, now: float) -> None:
        """The answer's piece of this number contains no token. Raises `BackendTimeout`."""
        if number != self._last + 1:
            self._since = now
        self._last = number
        if now - self._since >= self._timeouts.between_bytes_s:
            raise BackendTimeout("only keep-alives arrived, but no further token in time")
