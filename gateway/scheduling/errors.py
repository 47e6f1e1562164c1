"""Why a model cannot be had, as errors for clients: what happened and the way out, without paths or words that clients parse."""

from __future__ import annotations

import math
import re

from hostler.adapters.errors import BackendUnavailable, GatewayError, ModelUnavailable, TooManyRequests, WaitTimeout
from hostler.gateway.scheduling.types import Refuse
from hostler.supervisor.contract import Failure, FailureKind, HostStatus

_WHAT: dict[FailureKind, str] = {
    "file_missing": "its file is not there",
    "not_gguf": "its file is not a GGUF model",
    "model_damaged": "its file is damaged or incomplete",
    "unknown_architecture": "the engine does not know its architecture; use a newer engine",
    "port_taken": "the engine's port is taken by another program",
    "out_of_memory": "there was not enough memory; make the profile smaller or stop other programs",
    "engine_missing": "the engine program is not installed on the host",
    "bad_argument": "the engine does not take one of the profile's arguments",
    "killed": "the engine was killed",
    "exited": "the engine ended",
    "start_timeout": "it did not get ready in time",
    "unresponsive": "the engine answered nothing any more",
    "does_not_fit": "it does not fit into the host's memory budget",
    "source_unavailable": "its file could not be fetched",
    "cancelled": "the start was cancelled",
}

_PATH = re.compile(r"(?:[A-Za-z]:)?(?:/[^\s/'\":,;]+)*/([^\s/'\":,;]+)")
# Some clients take these words in an error for an overflow of the conversation, and begin to cut it.
_MISREAD = re.compile(r"context|token|max_length|window", re.IGNORECASE)
_LINES_SHOWN = 3
_LINE_LENGTH = 160


def explain(model: str, host: str, failure: Failure | None) -> str:
    """Why `model` could not be loaded on `host`, with the engine's last words as far as they may be shown."""
    if failure is None:
        return f"{model} could not be loaded on {host}; its log there tells more (`hostler status`)"
    what = _WHAT[failure.kind]
    said = [
        line
        for line in (_PATH.sub(r"\1", text).strip()[:_LINE_LENGTH] for text in failure.lines if text.strip())
        if not _MISREAD.search(line)
    ]
    words = f"{model} could not be loaded on {host}: {what}"
    if said:
        words += "; the engine said last: " + " | ".join(said[-_LINES_SHOWN:])
    return words


def silent(host: str) -> GatewayError:
    """Nobody speaks for the host."""
    return BackendUnavailable(
        f"the supervisor of {host} does not answer; start it with `hostler supervisor` on that machine", backend=host
    )


def overtaken(model: str, host: str) -> GatewayError:
    """The host takes orders from a gateway that was started later."""
    return ModelUnavailable(
        f"{model} could not be loaded on {host}: another gateway has taken over that host; restart this one to take it "
        "back",
        model=model,
    )


def no_profile(model: str, host: str) -> GatewayError:
    """The host knew the model before."""
    return ModelUnavailable(f"{host} has no profile {model!r} any more", model=model)


def unloaded(model: str) -> GatewayError:
    """Somebody asked for the model to be stopped."""
    return ModelUnavailable(f"{model} was unloaded on request; ask again to load it", model=model)


def refusal(refuse: Refuse, host: str, status: HostStatus | None = None) -> GatewayError:
    """A refused turn as the error that its client is told."""
    model, after = refuse.model, refuse.retry_after_s
    if refuse.cause == "queue_full":
        return TooManyRequests(
            f"{host} is busy and its queue is full; try again in about {max(1, math.ceil(after))} seconds",
            retry_after_s=after,
            model=model,
        )
    if refuse.cause == "wait_limit":
        return WaitTimeout(
            f"{model} could not be had in time (gateway.queue.max_wait_s); try again, or use a model that is running",
            retry_after_s=after,
            model=model,
        )
    if refuse.cause == "host_gone":
        return silent(host)
    if refuse.cause == "unknown_model":
        return no_profile(model, host)
    if refuse.cause == "unloaded":
        return unloaded(model)
    if refuse.cause == "does_not_fit":
        return ModelUnavailable(
            f"{model} can never fit into the memory budget of {host}{_sum(model, status)}; raise "
            "supervisor.memory_budget or give the profile a smaller size",
            model=model,
        )
    return ModelUnavailable(explain(model, host, refuse.failure), retry_after_s=after or None, model=model)


def _sum(model: str, status: HostStatus | None) -> str:
    """What it needs and what there is, if that is known."""
    needs = [profile.memory_bytes for profile in status.profiles if profile.name == model] if status else []
    if status is None or not needs or status.budget_bytes is None:
        return ""
    pinned = sum(profile.memory_bytes for profile in status.profiles if profile.pinned and profile.name != model)
    beside = f", {pinned / 2**30:.1f} of them for pinned models" if pinned else ""
    return f": it needs {needs[0] / 2**30:.1f} GiB of {status.budget_bytes / 2**30:.1f} GiB{beside}"
