"""How far a backend has read a prompt: as it reports itself, else by the speed learned from earlier requests."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from hostler.adapters.canonical import Progress, PromptStatus, Usage
from hostler.gateway.context import Attempt, Target
from hostler.supervisor.scheduling.estimates import is_overdue

#: The number of models whose speed is remembered.
MODELS = 500
#: First tokens that came sooner show no speed, in seconds: they are mostly other things.
SHORTEST_S = 0.2
#: From this percentage on, only the time is shown.
_NEARLY = 99.0


class PromptSpeed(msgspec.Struct, frozen=True):
    """Seconds for a token that was not cached, and tokens for a byte of the request."""

    token_s: float
    tokens_per_byte: float


class PromptSpeeds:
    """The speeds learned from answers, by backend and model."""

    def __init__(self) -> None:
        self._speeds: OrderedDict[tuple[str, str], PromptSpeed] = OrderedDict()

    def learn(self, target: Target, usage: Usage, size: int, first_token_s: float) -> None:
        """An answer to a request of `size` bytes took so long until its first token. Later ones count more."""
        read = usage.prompt_tokens - usage.cached_tokens
        seconds = first_token_s if usage.prompt_ms is None else usage.prompt_ms / 1000
        if seconds < SHORTEST_S or read <= 0 or size <= 0:
            return
        key = (target.backend, target.name_there)
        token_s, tokens_per_byte = seconds / read, usage.prompt_tokens / size
        known = self._speeds.pop(key, None)
        if known is not None:
            token_s = 0.5 * (known.token_s + token_s)
            tokens_per_byte = 0.5 * (known.tokens_per_byte + tokens_per_byte)
        self._speeds[key] = PromptSpeed(token_s, tokens_per_byte)
        if len(self._speeds) > MODELS:
            self._speeds.popitem(last=False)

    def estimate_s(self, target: Target, size: int, prompt: PromptStatus | None) -> float | None:
        """Seconds until the first token of a request of `size` bytes; `None` if no speed is known."""
        speed = self._speeds.get((target.backend, target.name_there))
        if speed is None:
            return None
        tokens = size * speed.tokens_per_byte if prompt is None else prompt.total - prompt.cached
        return tokens * speed.token_s


def reading_progress(attempt: Attempt, model: str, usual_s: float | None, now: float) -> Progress:
    """What is known about the prompt of a streamed request, which usually takes `usual_s`."""
    elapsed_s = now - attempt.sent_at
    share, rest_s = _reported(attempt.prompt, now - attempt.prompt_at)
    if rest_s is None and usual_s is not None:
        rest_s = usual_s - elapsed_s
        share = elapsed_s / usual_s if usual_s else 1.0
    overdue = rest_s is not None and is_overdue(elapsed_s, elapsed_s + rest_s)
    percent = None if share is None or overdue or 100 * share >= _NEARLY else 100 * share
    return Progress(
        phase="reading the prompt",
        model=model,
        percent=percent,
        eta_s=None if rest_s is None or overdue else max(0.0, rest_s),
        elapsed_s=elapsed_s,
        overdue=overdue,
        waited_s=elapsed_s,
    )


def _reported(prompt: PromptStatus | None, ago_s: float) -> tuple[float | None, float | None]:
    """The share that was read `ago_s` ago, and the rest in seconds from now; `None` if it is not known."""
    if prompt is None or prompt.total <= prompt.cached:
        return None, None
    todo, done = prompt.total - prompt.cached, prompt.processed - prompt.cached
    if done <= 0 or prompt.seconds <= 0:
        return 0.0, None
    rate = done / prompt.seconds
    return done / todo, (todo - done) / rate - ago_s
