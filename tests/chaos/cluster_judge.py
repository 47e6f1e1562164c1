"""What the engines' own logs prove of a storm: no two engines or too many requests at a time, nothing answered twice."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from chaos.cluster_storm import Try
from chaos.cluster_world import HOSTS, LIMITED_TOKENS, METERED, PACED, ClusterWorld


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine has done for one request. `how` it ended: `finished`, `gone` with its client, or `died`."""

    request: str
    host: str
    began: float
    ended: float
    how: str


def read_log(file: Path) -> list[dict[str, Any]]:
    """The events that the engines of a host have logged, in order."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def overlapping_engines(logs: Mapping[str, Sequence[dict[str, Any]]]) -> list[str]:
    """Engines that were started beside another one of the same host."""
    return [
        f"{host}: {event}"
        for host, events in logs.items()
        for event in events
        if event["event"] == "start" and event["alive"]
    ]


def crowded_engines(logs: Mapping[str, Sequence[dict[str, Any]]]) -> list[str]:
    """Requests that made more than an engine has slots."""
    return [
        f"{host}: {event}"
        for host, events in logs.items()
        for event in events
        if event["event"] == "begin" and event["running"] > event["slots"]
    ]


def work_of(logs: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, list[Work]]:
    """What was done for each request, in the order of its beginnings."""
    found: dict[str, list[Work]] = defaultdict(list)
    for host, events in logs.items():
        begun: dict[tuple[int, str], float] = {}
        for event in events:
            if event["event"] == "begin":
                begun[event["pid"], event["request"]] = event["at"]
            elif event["event"] == "end":
                began = begun.pop((event["pid"], event["request"]))
                found[event["request"]].append(
                    Work(request=event["request"], host=host, began=began, ended=event["at"], how=event["how"])
                )
        for (_, request), began in begun.items():
            found[request].append(Work(request=request, host=host, began=began, ended=began, how="died"))
    return {request: sorted(works, key=lambda each: each.began) for request, works in found.items()}


def answered_twice(world: ClusterWorld, tries: Iterable[Try], work: Mapping[str, Sequence[Work]]) -> list[str]:
    """Tries that engines have finished more than once, though nothing had happened to the one that was first."""
    found = []
    for each in tries:
        finished = [done for done in work.get(each.request.name, ()) if done.how == "finished"]
        for first, second in itertools.pairwise(finished):
            if not world.explained({first.host, each.gateway}, each.sent, second.ended):
                found.append(f"{each}: {first} {second}")
    return found


def broken_for_nothing(world: ClusterWorld, tries: Iterable[Try]) -> list[str]:
    """Answers that broke off, though nothing had happened to their gateway or to any host of their model: they may have been
    cut off while they were answered, or while they waited."""
    return [
        str(each)
        for each in tries
        if each.verdict == "broken"
        and not world.explained(
            {each.gateway, *(host for host, models in HOSTS.items() if each.request.model in models)},
            each.sent,
            each.ended,
        )
    ]


def unworked(tries: Iterable[Try], work: Mapping[str, Sequence[Work]]) -> list[str]:
    """Complete answers that no engine has finished."""
    return [
        str(each)
        for each in tries
        if each.verdict == "complete" and not any(done.how == "finished" for done in work.get(each.request.name, ()))
    ]


def used_tokens(tries: Iterable[Try]) -> int:
    """What the key with a limit on tokens has used for its complete answers."""
    return sum(LIMITED_TOKENS for each in tries if each.key == METERED and each.verdict == "complete")


def most_in_a_minute(tries: Iterable[Try], work: Mapping[str, Sequence[Work]]) -> int:
    """The most requests of the key with a limit on requests that were certainly admitted within a minute: sent after its
    start, and begun by an engine before its end. They are admitted at some moment in between."""
    moments = [
        (each.sent, work[each.request.name][0].began)
        for each in tries
        if each.key == PACED and each.request.name in work
    ]
    return max(
        (sum(sent >= start and began < start + 60 for sent, began in moments) for start, _ in moments), default=0
    )
