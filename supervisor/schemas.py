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


class AvailableResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `GET /models/available`."""

    models: tuple[ProfileInfo, ...]


class SwitchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /models/switch` and `/models/load`."""

    model: str
    evict: tuple[str, ...] = ()
    epoch: int | None = None


class UnloadRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /models/unload`."""

    model: str
    epoch: int | None = None


class PinRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /models/pin`."""

    model: str
    pinned: bool
    epoch: int | None = None


class PinResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A model is pinned from now on, or is not. `remembered`: also after a restart of the supervisor."""

    model: str
    pinned: bool
    remembered: bool = False


class PullRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /models/pull`."""

    model: str


class PullResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A model's file is on the host."""

    model: str


class AnsweredRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /models/answered`."""

    model: str
    generation: int
    cached: int
    prompt: int


class AnsweredResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to what needs none."""


class SwitchResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A model is ready: where, and which phase took how long. `phase_seconds` is empty when it was ready already."""

    address: EngineAddress
    elapsed_s: float = 0.0
    phase_seconds: dict[str, float] = {}


class UnloadResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A model is gone, its whole process group with it."""

    model: str
    state: str = "stopped"


class LocateResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `GET /models/locate`: `None` if the model is not ready now."""

    address: EngineAddress | None


class SupervisorErrorBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong: a word for programs, a sentence for people, and what may help either."""

    type: str
    message: str
    models: tuple[str, ...] = ()
    failure: Failure | None = None


class SupervisorErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Every answer that is not a success, and the data of the event `failed`."""

    error: SupervisorErrorBody


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


def encode_error(error: Exception) -> tuple[int, SupervisorErrorBody]:
    """The status and the body that tell a client of `error`."""
    if isinstance(error, SupervisorError):
        failure = error.failure
        return _STATUS.get(failure.kind, 503), SupervisorErrorBody(
            type="failed", message=failure.message, failure=failure
        )
    if isinstance(error, UnknownProfile):
        return 404, SupervisorErrorBody(type="unknown_profile", message=str(error) or "no profile of that name")
    if isinstance(error, StaleEpoch):
        return 409, SupervisorErrorBody(type="stale_epoch", message=str(error) or "a higher epoch has been seen")
    if isinstance(error, SupervisorUnreachable):
        return 503, SupervisorErrorBody(type="unreachable", message=str(error) or "the supervisor does not answer")
    return 500, SupervisorErrorBody(type="internal_error", message="the supervisor made a mistake; its log says which")


def decode_error(body: SupervisorErrorBody) -> Exception:
    """The exception that `encode_error` was given; `SupervisorUnreachable` for what has no other meaning to a caller."""
    if body.failure is not None:
        return SupervisorError(body.failure)
    if body.type == "unknown_profile":
        return UnknownProfile(body.message)
    if body.type == "stale_epoch":
        return StaleEpoch(body.message)
    return SupervisorUnreachable(body.message)
