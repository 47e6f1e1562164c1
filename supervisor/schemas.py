"""The JSON of the supervisor's HTTP interface, as values that `api.py` and `client.py` share. No I/O."""

from __future__ import annotations

import msgspec

from hostler.supervisor.contract import (
    EngineAddress,
    Failure,
    FailureKind,
    ProfileInfo,
    StaleEpoch,
    SupervisorError,
    SupervisorUnreachable,
    UnknownProfile,
)


class Available(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `GET /models/available`."""

    models: tuple[ProfileInfo, ...]


class SwitchOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /models/switch` and `/models/load`."""

    model: str
    evict: tuple[str, ...] = ()
    epoch: int | None = None


class UnloadOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /models/unload`."""

    model: str
    epoch: int | None = None


class PinOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /models/pin`."""

    model: str
    pinned: bool
    epoch: int | None = None


class PinAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A model is pinned from now on, or is not. `remembered`: also after a restart of the supervisor."""

    model: str
    pinned: bool
    remembered: bool = False


class PullOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /models/pull`."""

    model: str


class PullAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A model's file is on the host."""

    model: str


class FirstAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /models/answered`."""

    model: str
    generation: int
    cached: int
    prompt: int


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to what needs none."""


class SwitchAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A model is ready: where, and which phase took how long. `spent` is empty when it was ready already."""

    address: EngineAddress
    elapsed_s: float = 0.0
    spent: dict[str, float] = {}


class UnloadAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A model is gone, its whole process group with it."""

    model: str
    state: str = "stopped"


class Located(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `GET /models/locate`: `None` if the model is not ready now."""

    address: EngineAddress | None


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong: a word for programs, a sentence for people, and what may help either."""

    type: str
    message: str
    models: tuple[str, ...] = ()
    failure: Failure | None = None


class ErrorAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Every answer that is not a success, and the data of the event `failed`."""

    error: ErrorBody


# 422: asking again changes nothing until somebody changes the profile or the file. 409: something is in the way just
# now. Everything else is 503: it may work later.
_STATUS: dict[FailureKind, int] = {
    "file_missing": 422,
    "not_gguf": 422,
    "model_damaged": 422,
    "unknown_architecture": 422,
    "bad_argument": 422,
    "does_not_fit": 422,
    "cancelled": 409,
    "port_taken": 409,
}


def describe(error: Exception) -> tuple[int, ErrorBody]:
    """The status and the body that tell a client of `error`."""
    if isinstance(error, SupervisorError):
        failure = error.failure
        return _STATUS.get(failure.kind, 503), ErrorBody(type="failed", message=failure.message, failure=failure)
    if isinstance(error, UnknownProfile):
        return 404, ErrorBody(type="unknown_profile", message=str(error) or "no profile of that name")
    if isinstance(error, StaleEpoch):
        return 409, ErrorBody(type="stale_epoch", message=str(error) or "a higher epoch has been seen")
    if isinstance(error, SupervisorUnreachable):
        return 503, ErrorBody(type="unreachable", message=str(error) or "the supervisor does not answer")
    return 500, ErrorBody(type="internal_error", message="the supervisor made a mistake; its log says which")


def revive(body: ErrorBody) -> Exception:
    """The exception that `describe` was given; `SupervisorUnreachable` for what has no other meaning to a caller."""
    if body.failure is not None:
        return SupervisorError(body.failure)
    if body.type == "unknown_profile":
        return UnknownProfile(body.message)
    if body.type == "stale_epoch":
        return StaleEpoch(body.message)
    return SupervisorUnreachable(body.message)
