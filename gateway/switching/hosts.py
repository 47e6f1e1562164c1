"""Several hosts that have the same model: which of them is asked first."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from hostler.gateway.exchange import Target
from hostler.gateway.switching.orchestrator import Orchestrator


def nearest_first(targets: tuple[Target, ...], hosts: Mapping[str, Orchestrator]) -> tuple[Target, ...]:
    """The targets with those of supervisors that stand side by side in the chain in the order of `nearness`.

    The chain is what its owner wants: a cloud between two hosts stays between them, and so does every other backend.
    """
    ordered: list[Target] = []
    for supervised, group in groupby(targets, key=lambda target: target.backend in hosts):
        run = list(group)
        if supervised and len(run) > 1:
            run.sort(key=lambda target: hosts[target.backend].nearness(target.model))
        ordered += run
    return tuple(ordered)
