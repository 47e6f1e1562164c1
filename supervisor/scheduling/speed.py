"""How fast a host answers with a model, as measured: it is compared with other hosts that have the model."""

from __future__ import annotations

from typing import Final

import msgspec

from hostler.adapters.canonical import Usage

#: Fewer tokens than this say nothing about a speed.
_FEWEST: Final = 8
#: The weight of the latest answer in an average.
_LATEST: Final = 0.2


class ModelSpeed(msgspec.Struct, eq=False):
    """Averages over a model's answers, `None` until one was measured: tokens per second of one answer, tokens of a prompt
    that are read in a second, and tokens of an answer."""

    tokens_per_s: float | None = None
    prompt_tokens_per_s: float | None = None
    answer_tokens: float | None = None

    def record(self, usage: Usage, seconds: float) -> None:
        """An answer took `seconds`; the engine's own timings take precedence."""
        if usage.completion_tokens > 0:
            self.answer_tokens = _averaged(self.answer_tokens, float(usage.completion_tokens))
        if usage.completion_tokens >= _FEWEST:
            took_s = seconds if not usage.completion_ms else usage.completion_ms / 1000
            self.tokens_per_s = _averaged(self.tokens_per_s, _rate(usage.completion_tokens, took_s))
        read = usage.prompt_tokens - usage.cached_tokens
        if usage.prompt_ms and read >= _FEWEST:
            self.prompt_tokens_per_s = _averaged(self.prompt_tokens_per_s, _rate(read, usage.prompt_ms / 1000))


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if seconds > 0 else None


def _averaged(before: float | None, latest: float | None) -> float | None:
    if latest is None or before is None:
        return before if latest is None else latest
    return (1 - _LATEST) * before + _LATEST * latest
