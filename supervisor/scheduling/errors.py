"""Why a model is not available, as errors for clients: the cause and the remedy, without paths or words that clients
parse."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from hostler.adapters.errors import (
    BackendUnavailable,
    GatewayError,
    ModelUnavailable,
    TooManyRequests,
    WaitTimeout,
    printable,
)
from hostler.supervisor.contract import DeviceStatus, Failure, FailureKind, HostStatus, ModelLease, ProfileInfo
from hostler.supervisor.scheduling.types import Refuse, RevokeReason

_CAUSES: dict[FailureKind, str] = {
    "file_missing": "its file is missing",
    "not_gguf": "its file is not a GGUF model",
    "model_damaged": "its file is damaged or incomplete",
    "unknown_architecture": "the engine does not know its architecture; use a newer engine",
    "port_taken": "the engine's port is in use by another program",
    "out_of_memory": "there was not enough memory; make the profile smaller or stop other programs",
    "engine_missing": "the engine program is not installed on the host",
    "bad_argument": "the engine rejected one of the profile's arguments",
    "killed": "the engine was killed",
    "exited": "the engine exited",
    "start_timeout": "it was not ready in time",
    "unresponsive": "the engine stopped responding",
    "does_not_fit": "it does not fit into the host's memory budget",
    "source_unavailable": "its file could not be downloaded",
    "cancelled": "the start was cancelled",
}

#: What stays as it is until someone acts. A killed engine, one that hung, and a download may succeed at the next try.
_FINAL: frozenset[FailureKind] = frozenset(
    {
        *("file_missing", "not_gguf", "model_damaged", "unknown_architecture", "port_taken", "out_of_memory"),
        *("engine_missing", "bad_argument", "exited", "start_timeout", "does_not_fit"),
    }
)

#: Kinds that are named beside the supervisor's reason, which is a detail of them.
_NAMED: frozenset[FailureKind] = frozenset(
    {"file_missing", "not_gguf", "model_damaged", "engine_missing", "start_timeout"}
)

_PATH = re.compile(r"(?:[A-Za-z]:)?(?:/[^\s/'\":,;]+)*/([^\s/'\":,;]+)")
# Some clients take these words in an error for a context overflow, and start to truncate the conversation.
_MISREAD = re.compile(r"context|token|max_length|window", re.IGNORECASE)
_MAX_LENGTH = 500
#: A lease that ends within this time is worth waiting for, in seconds: clients do not obey a longer `Retry-After`.
SOON_S: Final = 60.0


class EngineLost(BackendUnavailable):
    """The engine of a granted lease was dead, and nothing was sent. Queue again: the next lease is of a new engine."""


class Preempted(ModelUnavailable):
    """Background work was cut off by other requests."""

    code = "preempted"


def load_failure_message(model: str, host: str, failure: Failure | None) -> str:
    """Why `model` could not be loaded on `host`: the supervisor's reason without folders, or that of its kind if a client
    would misread it. The engine's last lines are in the log: its farewell seldom is the reason."""
    if failure is None:
        return f"{model} could not be loaded on {host}; see the log there (`hostler status`)"
    reason = _PATH.sub(r"\1", failure.message).strip()
    if not reason or _MISREAD.search(reason.replace(f'"{model}"', "")):
        reason = _CAUSES[failure.kind]
    elif failure.kind in _NAMED:
        reason = f"{_CAUSES[failure.kind]} ({reason})"
    return f"{model} could not be loaded on {host}: {reason[:_MAX_LENGTH]}{_exit_code(failure, reason)}"


def _exit_code(failure: Failure, reason: str) -> str:
    """How the engine exited, if the reason does not say so."""
    code = failure.exit_code
    if code is None or "exit code" in reason or "killed by" in reason:
        return ""
    return f" (exit code {code})" if code >= 0 else f" (signal {-code})"


def is_final_failure(failure: Failure | None) -> bool:
    """Whether loading the model fails again until someone acts. An engine that was killed several times in a row, so that
    its supervisor pauses, will be killed again."""
    return failure is not None and (
        failure.kind in _FINAL or (failure.kind == "killed" and failure.retry_after_s is not None)
    )


def supervisor_unreachable(host: str) -> GatewayError:
    """The host's supervisor does not answer."""
    return BackendUnavailable(
        f"the supervisor of {host} does not respond; start it with `hostler supervisor` on that machine", backend=host
    )


def supervisor_stopping(host: str) -> GatewayError:
    """The host's supervisor finishes what it serves, and stops."""
    return BackendUnavailable(f"the supervisor of {host} is stopping; try again when it is back", backend=host)


class HostDraining(ModelUnavailable):
    """The host is out of service for maintenance. It serves requests again as soon as an operator says so."""


def host_draining(model: str, host: str) -> GatewayError:
    """The host takes no new requests."""
    return HostDraining(
        f"{host} is being drained for maintenance; send the request again later (`hostler drain --undo {host}` ends that)",
        model=model or None,
    )


def profile_removed(model: str, host: str) -> GatewayError:
    """The host does not know the model, but did when the request was routed."""
    return ModelUnavailable(f"{host} no longer has a profile {model!r}", model=model, final=True)


def revocation_error(model: str, reason: RevokeReason) -> GatewayError:
    """The error for the client of a request whose engine was stopped while it held its lease."""
    if reason == "given_up":
        return ModelUnavailable(
            f"{model} was stopped for other requests while its supervisor could not reach this gateway; send the request "
            "again",
            model=model,
        )
    if reason == "preempted":
        return Preempted(f"background work for {model} was cut off by other requests; send it again", model=model)
    return _unloaded(model)


def _unloaded(model: str) -> GatewayError:
    """The model was unloaded by an operator or a client."""
    return ModelUnavailable(f"{model} was unloaded on request; send the request again to load it", model=model)


def refusal_error(refusal: Refuse, host: str, status: HostStatus | None = None) -> GatewayError:
    """The error for the client of a refused ticket."""
    model, after = refusal.model, refusal.retry_after_s
    if refusal.reason == "queue_full":
        return TooManyRequests(
            f"{host} is busy and its queue is full; try again in about {max(1, math.ceil(after))} seconds",
            retry_after_s=after,
            model=model,
        )
    if refusal.reason == "model_queue_full":
        return TooManyRequests(
            f"as many requests wait for {model} on {host} as its profile allows (max_waiting); try again in about "
            f"{max(1, math.ceil(after))} seconds",
            retry_after_s=after,
            model=model,
        )
    if refusal.reason == "wait_limit":
        return WaitTimeout(
            f"{model} did not become available in time (gateway.queue.max_wait_s); try again, or use a loaded model",
            retry_after_s=after,
            model=model,
        )
    if refusal.reason == "host_gone":
        return supervisor_unreachable(host)
    if refusal.reason == "stopping":
        draining = status is not None and status.draining
        return host_draining(model, host) if draining else supervisor_stopping(host)
    if refusal.reason == "unknown_model":
        return profile_removed(model, host)
    if refusal.reason == "invalid":
        return ModelUnavailable(
            f"the supervisor of {host} did not accept a request for {model}; its log says why", model=model
        )
    if refusal.reason == "leased" and refusal.model_lease is not None:
        return leased_error(model, host, refusal.model_lease, after)
    if refusal.reason == "unloaded":
        return _unloaded(model)
    if refusal.reason == "does_not_fit":
        return _does_not_fit(model, host, status)
    final = is_final_failure(refusal.failure)
    return ModelUnavailable(
        load_failure_message(model, host, refusal.failure),
        retry_after_s=None if final else after or None,
        model=model,
        final=final,
    )


def leased_error(model: str, host: str, lease: ModelLease, left_s: float) -> GatewayError:
    """The model would take the place of a leased one, which is free again in `left_s` seconds."""
    return ModelUnavailable(
        f"{model} cannot be loaded on {host}: {lease.model} is leased to {printable(lease.holder)} until "
        f"{_utc(lease.expires_at)}, in {spoken(left_s)}; try again then, or have the lease ended (`hostler lease --list`)",
        retry_after_s=left_s,
        model=model,
        final=left_s > SOON_S,
    )


def check_not_leased(model: str, leases: Iterable[ModelLease]) -> None:
    """Raises `ModelUnavailable` for a model that is not unloaded because it is leased."""
    lease = max((each for each in leases if each.model == model), key=lambda each: each.expires_at, default=None)
    if lease is not None:
        raise ModelUnavailable(
            f"{model} is leased to {printable(lease.holder)} until {_utc(lease.expires_at)} and stays loaded; end the lease "
            f"first (`hostler lease --end {lease.id}`)",
            model=model,
            final=True,
        )


def _utc(seconds: float) -> str:
    """A moment, given in seconds since the epoch."""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def spoken(seconds: float) -> str:
    """A duration in words."""
    for unit, length in (("hours", 5400), ("minutes", 90)):
        if seconds >= length:
            return f"{seconds / (3600 if unit == 'hours' else 60):.0f} {unit}"
    return f"{max(1, math.ceil(seconds))} seconds"


def _does_not_fit(model: str, host: str, status: HostStatus | None) -> GatewayError:
    """Why the model does not fit, with the sum if it is known. Only other programs may leave memory by themselves."""
    profile = next((each for each in status.profiles if each.name == model), None) if status is not None else None
    if status is None or profile is None:
        message = f"{model} does not fit into the memory of {host}; make the profile smaller"
        return ModelUnavailable(message, model=model, final=True)
    for device in status.devices:
        need, pinned = profile.device_bytes.get(device.name, 0), _pinned(status, model)
        held = sum(other.device_bytes.get(device.name, 0) for other in pinned)
        if device.capacity_bytes is not None and need + held > device.capacity_bytes:
            return _does_not_fit_on(model, host, device, need, held)
    if status.budget_bytes is None:
        message = f"{model} cannot run beside the pinned models of {host}; unpin one of them"
        return ModelUnavailable(message, model=model, final=True)
    held = sum(other.memory_bytes for other in _pinned(status, model))
    return ModelUnavailable(
        f"{model} can never fit into the memory budget of {host}: it needs {_gib(profile.memory_bytes)} of "
        f"{_gib(status.budget_bytes)}{_beside(held)}; raise supervisor.memory_budget or make the profile smaller",
        model=model,
        final=True,
    )


def _does_not_fit_on(model: str, host: str, device: DeviceStatus, need: int, held: int) -> GatewayError:
    """`held` is what pinned models have of the device."""
    size = f"it needs {_gib(need)} of {_gib(device.capacity_bytes or 0)}{_beside(held)}"
    limits = [limit for limit in (device.budget_bytes, device.total_bytes) if limit is not None]
    if device.other_bytes and need + held <= min(limits, default=0):
        return ModelUnavailable(
            f"{model} does not fit on {device.name} of {host} now: {size}, while other programs use "
            f"{_gib(device.other_bytes)}; try again when they have ended",
            model=model,
        )
    return ModelUnavailable(
        f"{model} can never fit on {device.name} of {host}: {size}; raise supervisor.devices.{device.name}.budget, split "
        "the profile over more devices, or make it smaller",
        model=model,
        final=True,
    )


def _pinned(status: HostStatus, model: str) -> list[ProfileInfo]:
    """The other models that are pinned."""
    return [profile for profile in status.profiles if profile.pinned and profile.name != model]


def _beside(pinned: int) -> str:
    return f", of which {pinned / 2**30:.1f} for pinned models" if pinned else ""


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
