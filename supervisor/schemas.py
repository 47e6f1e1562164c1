"""The JSON bodies of the supervisor's HTTP API, shared by server and client."""

from __future__ import annotations

from typing import Annotated

import msgspec

from hostler.supervisor.contract import (
    EngineAddress,
    Failure,
    FailureKind,
    ModelLease,
    ProfileInfo,
    SupervisorError,
    SupervisorUnreachable,
    UnknownProfile,
)
from hostler.supervisor.scheduling.estimates import SwitchEstimate


class AvailableResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `GET /models/available`."""

    models: tuple[ProfileInfo, ...]


class SwitchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /models/switch` and `/models/load`."""

    model: str


class UnloadRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /models/unload`. Without `force` answers in progress end first."""

    model: str
    force: bool = True


class PinRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /models/pin`."""

    model: str
    pinned: bool


class PinResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `POST /models/pin`. `remembered`: the choice survives a restart of the supervisor."""

    model: str
    pinned: bool
    remembered: bool = False


class DrainRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /drain`: take the host out of service, or back into it."""

    draining: bool = True


class DrainResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `POST /drain`. `remembered`: the choice survives a restart of the supervisor."""

    draining: bool
    remembered: bool = False


class LeaseRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /models/lease`: load the model and keep it loaded for `seconds`, 30 days at most, for `holder`."""

    model: str
    holder: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    seconds: Annotated[float, msgspec.Meta(gt=0)]


class LeaseEndRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /models/lease/end`."""

    id: str


class LeaseEndResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `POST /models/lease/end`: the lease that has ended, if there was one."""

    ended: ModelLease | None


class PullRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /models/pull`."""

    model: str


class PullResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `POST /models/pull`: the file is on the host."""

    model: str


class SwitchResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `POST /models/switch`. `phase_seconds` maps phases to seconds; it is empty if the model was ready."""

    address: EngineAddress
    elapsed_s: float = 0.0
    phase_seconds: dict[str, float] = {}


class UnloadResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `POST /models/unload`: `stopped`, its process group is gone, or `draining`, answers still run."""

    model: str
    state: str = "stopped"


class ForecastResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `GET /models/forecast`."""

    forecast: SwitchEstimate | None


class SupervisorErrorBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error: `type` for programs, `message` for users. `models` lists the known names."""

    type: str
    message: str
    models: tuple[str, ...] = ()
    failure: Failure | None = None


class SupervisorErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Every error response, and the data of the event `failed`."""

    error: SupervisorErrorBody


# 422: fails until the profile or the file is changed. 409: a conflict right now. Everything else is 503: it may work later.
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
    """The HTTP status and body for an exception."""
    if isinstance(error, SupervisorError):
        failure = error.failure
        return _STATUS.get(failure.kind, 503), SupervisorErrorBody(
            type="failed", message=failure.message, failure=failure
        )
    if isinstance(error, UnknownProfile):
        return 404, SupervisorErrorBody(
            type="unknown_profile", message=str(error) or "the host has no profile of that name"
        )
    if isinstance(error, SupervisorUnreachable):
        return 503, SupervisorErrorBody(type="unreachable", message=str(error) or "the supervisor does not respond")
    return 500, SupervisorErrorBody(type="internal_error", message="internal error; see the supervisor's log")


def decode_error(body: SupervisorErrorBody) -> Exception:
    """The exception that was encoded as `body`; `SupervisorUnreachable` for other types."""
    if body.failure is not None:
        return SupervisorError(body.failure)
    if body.type == "unknown_profile":
        return UnknownProfile(body.message)
    return SupervisorUnreachable(body.message)
