"""What one request has met on its way along the chain, and what its client is told of it. Values and plain methods."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hostler.adapters.errors import (
    BackendBroken,
    BackendError,
    BackendRejected,
    Forbidden,
    GatewayError,
    ModelUnavailable,
    TooManyRequests,
)
from hostler.gateway.backends.chain import Hop
from hostler.gateway.backends.failure_policy import WORDS, Fault, Outcome, Skip, fault_of

#: What a client is told to wait where nothing else is known, in seconds.
SOON_S = 2.0

_FAULTS: dict[Fault, str] = {
    "context": "the request is longer than the maximum context length of the model at {}",
    "model": "{} does not have the model",
    "contents": "{} refused the contents of the request",
    "request": "{} refused the request as invalid",
}
_FOR_EVER = frozenset({"rejected", "unsupported", "non_local", "too_long", "excluded"})


class Passed(msgspec.Struct, frozen=True, kw_only=True):
    """A hop that did not answer: why, and when it makes sense to try again. `error` is `None` if it was not asked."""

    hop: Hop
    why: Outcome | Skip
    error: GatewayError | None = None
    retry_after_s: float | None = None

    @property
    def words(self) -> str:
        """One clause for people, with the kind for programs."""
        if isinstance(self.error, TooManyRequests):
            return f"{self.hop.name} has a full queue ({self.why})"
        return f"{self.hop.name} {WORDS[self.why]} ({self.why})"


def reason(passed: Sequence[Passed]) -> str:
    """Why not the earlier hops, in few words."""
    return "; ".join(f"{each.hop.name}: {each.why}" for each in passed)


def failure(model: str | None, passed: Sequence[Passed]) -> GatewayError:
    """What the client is told when nobody answered."""
    asked = [each for each in passed if each.error is not None]
    if asked and all(each.why in ("rejected", "unsupported") for each in asked) and len(asked) == len(passed):
        error = asked[0].error
        assert error is not None
        return presentable(error, asked[0].hop)
    told = "; ".join(each.words for each in passed)
    if passed and all(each.why == "non_local" for each in passed):
        return Forbidden(f"this request must stay in the house, but {model} runs only outside: {told}")
    waits = [each.retry_after_s for each in passed if each.retry_after_s]
    lasting = all(each.why in _FOR_EVER for each in passed)
    retry_after_s = min(waits) if waits else None if lasting else SOON_S
    if asked and all(each.why == "busy" or isinstance(each.error, TooManyRequests) for each in asked):
        if len(passed) == 1 and isinstance(asked[0].error, TooManyRequests):
            return asked[0].error
        return TooManyRequests(
            f"everybody who could answer for {model} is busy: {told}", retry_after_s=retry_after_s, model=model
        )
    if len(passed) == 1 and asked:
        only = asked[0]
        assert only.error is not None
        if only.hop.supervised and only.why not in ("unreachable", "connect_timeout"):
            return presentable(only.error, only.hop)
    return ModelUnavailable(f"no backend could answer for {model}: {told}", retry_after_s=retry_after_s, model=model)


def presentable(error: GatewayError, hop: Hop) -> GatewayError:
    """The error as it may leave the house: what a foreign backend said stays in the log."""
    if isinstance(error, BackendRejected):
        if hop.local and (400 <= error.backend_status < 500 or error.backend_status == 501):
            return error  # 501: what this model cannot do, in its engine's own words
        if 400 <= error.backend_status < 500:
            return BackendRejected(
                _FAULTS[fault_of(error)].format(hop.name),
                backend=hop.name,
                wire="",
                backend_status=error.backend_status,
                headers={},
                body=b"",
                retry_after_s=error.retry_after_s,
            )
        return BackendError(f"{hop.name} answered with status {error.backend_status}", backend=hop.name)
    if isinstance(error, BackendBroken) and not hop.supervised:
        return BackendBroken(f"{hop.name} {WORDS['broken']}", backend=hop.name, backend_status=error.backend_status)
    return error
