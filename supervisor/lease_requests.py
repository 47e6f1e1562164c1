"""The frames by which a gateway asks for leases and releases them: its values, fitted into what frames may carry."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from hostler.adapters.canonical import Usage
from hostler.supervisor.lease_frames import MAX_NAME, AskFrame, ReleaseFrame, SeedFrame
from hostler.supervisor.scheduling.lease import Lease
from hostler.supervisor.scheduling.queue import MAX_PRIORITY
from hostler.supervisor.scheduling.types import MAX_COUNT, MAX_SECONDS

#: Models in one `SeedFrame`.
_SEED_MODELS = 200


def ask_frame(lease: Lease, waited_s: float = 0.0) -> AskFrame:
    """Request the lease, which has waited for `waited_s` already."""
    keep = lease.keep_alive_s
    return AskFrame(
        lease.id,
        lease.model[:MAX_NAME],
        lease.client[:MAX_NAME],
        lease.request_id[:MAX_NAME],
        max(-MAX_PRIORITY, min(lease.priority, MAX_PRIORITY)),
        None if keep is None or math.isnan(keep) else max(0.0, keep),
        min(waited_s, MAX_SECONDS),
        lease.client_port,
        lease.prompt,
        lease.background,
    )


def release_frame(lease: Lease) -> ReleaseFrame:
    """End the lease, with the usage of its answer if its numbers are possible: an engine may report any."""
    usage = lease.usage if _is_possible(lease.usage) else None
    return ReleaseFrame(lease.id, lease.answered, usage, lease.timed_out)


def _is_possible(usage: Usage | None) -> bool:
    if usage is None:
        return False
    counts = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens)
    return all(0 <= count <= MAX_COUNT for count in counts)


def seed_frames(answers: Mapping[str, Sequence[float]]) -> Iterator[SeedFrame]:
    """The durations of each model's earlier answers, in several frames if there are many models."""
    models = [model for model in answers if len(model) <= MAX_NAME]
    for start in range(0, len(models), _SEED_MODELS):
        part = models[start : start + _SEED_MODELS]
        yield SeedFrame({model: tuple(max(0.0, min(each, MAX_SECONDS)) for each in answers[model]) for model in part})
