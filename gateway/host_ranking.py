"""Which of several hosts serves a request for a model: decided by what they offer, without I/O."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Final

import msgspec

from hostler.supervisor.scheduling.views import HostOffer

#: What a turn of unknown length is taken to last, in seconds: longer than most loads.
_UNKNOWN_TURN_S: Final = 15.0
#: Bytes of a prompt that are a token, and tokens that are read in a second where no engine has said so.
_BYTES_PER_TOKEN, _PROMPT_TOKENS_PER_S = 4.0, 500.0


class RankedHost(msgspec.Struct, frozen=True, kw_only=True):
    """A host in the order of choice. `wait_s` is the estimated time until the request is served, `total_s` until it is
    answered, both infinite if that host cannot serve it. `deferred`: it would be a replica that is not needed yet.
    `reasons` are the same in words, if they were asked for."""

    backend: str
    wait_s: float
    total_s: float
    deferred: bool
    reasons: tuple[str, ...] = ()


def rank(offers: Mapping[str, HostOffer], *, replica_wait_s: float, explain: bool = False) -> list[RankedHost]:
    """The hosts, the best first: the one that is expected to have answered first, waiting, loading, reading what it does
    not have in its cache, and writing included.

    A host that had to load a model comes after those that have it, as long as the wait there is at most `replica_wait_s`.
    Of equal ones the less busy one comes first, then the earlier one. With `explain` they have their reasons, which take
    longer than the choice.
    """
    comparison = _Comparison(offers.values(), replica_wait_s, explain=explain)
    keys = {}
    for position, (backend, offer) in enumerate(offers.items()):
        ranked = comparison.rank(backend, offer)
        distance = offer.distance
        keys[
            not offer.available, ranked.deferred, ranked.total_s, distance.steps, distance.load, distance.host_load, position
        ] = ranked  # fmt: skip
    return [keys[key] for key in sorted(keys)]


def ranked_names(names: Sequence[str], offers: Mapping[str, HostOffer], *, replica_wait_s: float) -> list[str]:
    """The backends with neighbours that are hosts sorted by `rank`. Everything else keeps its place: a cloud between two
    hosts stays between them."""
    ordered: list[str] = []
    for hosted, group in groupby(names, key=offers.__contains__):
        run = list(group)
        if hosted and len(run) > 1:
            run = [each.backend for each in rank({name: offers[name] for name in run}, replica_wait_s=replica_wait_s)]
        ordered += run
    return ordered


def better_host(
    own: HostOffer,
    others: Mapping[str, HostOffer],
    *,
    waited_s: float,
    rest_s: float | None,
    replica_wait_s: float,
    may_load: bool = True,
) -> str | None:
    """Where else a queued request should be served; `None` if nowhere.

    That is a host which has the model and a free slot, or one that would load it, if the wait here exceeds `replica_wait_s`;
    and only if it will probably have answered sooner, with what it has to read and its speed. `own` is what its present host
    offers, `rest_s` how long it will wait there, `None` if that is unknown. Without `may_load` no further load is begun.
    """
    comparison = _Comparison((own, *others.values()), 0.0, explain=False)
    ranked = [each for each in rank(others, replica_wait_s=0.0) if others[each.backend].available]
    totals = {each.backend: each.wait_s + comparison.answering_s(others[each.backend]) for each in ranked}
    ends_s = comparison.answering_s(own) + (max(_UNKNOWN_TURN_S, waited_s) if rest_s is None else rest_s)
    for each in ranked:
        if others[each.backend].distance.steps == 0 and totals[each.backend] < ends_s:
            return each.backend
    coming = own.phase == "loading" or any(each.distance.steps == 1 for each in others.values())
    exceeded = (waited_s if rest_s is None else rest_s) > replica_wait_s
    if not may_load or not exceeded or (coming and rest_s is None):
        return None
    for each in ranked:
        if needs_load(others[each.backend]) and (rest_s is None or totals[each.backend] < ends_s):
            return each.backend
    return None


def needs_load(offer: HostOffer) -> bool:
    """Whether the host has to load the model first."""
    return offer.distance.steps >= 2 and offer.phase in ("cold", "stopping")


def is_replica(backend: str, offers: Mapping[str, HostOffer]) -> bool:
    """Whether a model at this host is a replica: an earlier host has it loaded as well."""
    for name, offer in offers.items():
        if name == backend:
            return False
        if offer.phase == "ready" and offer.available:
            return True
    return False


class _Comparison:
    """What is compared between the hosts of one model."""

    def __init__(self, offers: Collection[HostOffer], replica_wait_s: float, *, explain: bool) -> None:
        self._explain = explain
        self._replica_wait_s = replica_wait_s
        self._load_s = min((each.load_s for each in offers if each.load_measured), default=None)
        self._read_before = max((each.read_before for each in offers), default=0)
        self._tokens = max((each.answer_tokens or 0.0 for each in offers), default=0.0)
        self._fastest = max((each.tokens_per_s or 0.0 for each in offers), default=0.0)
        self._reads = max((each.prompt_tokens_per_s or 0.0 for each in offers), default=0.0) or _PROMPT_TOKENS_PER_S
        waits = [self._wait_s(each) for each in offers if each.available and not needs_load(each)]
        self._shortest_wait_s = min(waits, default=math.inf)

    def rank(self, backend: str, offer: HostOffer) -> RankedHost:
        if not offer.available:
            return RankedHost(
                backend=backend, wait_s=math.inf, total_s=math.inf, deferred=False, reasons=("cannot serve it now",)
            )
        wait_s = self._wait_s(offer)
        deferred = needs_load(offer) and self._shortest_wait_s <= self._replica_wait_s
        return RankedHost(
            backend=backend,
            wait_s=wait_s,
            total_s=wait_s + self.answering_s(offer),
            deferred=deferred,
            reasons=tuple(self._reasons(offer, wait_s, deferred=deferred)) if self._explain else (),
        )

    def answering_s(self, offer: HostOffer) -> float:
        """The seconds to read what the host does not have in its cache, as far as others have, and to write the answer."""
        missing = self._read_before - offer.read_before
        reading_s = missing / _BYTES_PER_TOKEN / (offer.prompt_tokens_per_s or self._reads)
        speed = offer.tokens_per_s or self._fastest  # one that was not measured yet is tried
        # The slots of an engine share its speed.
        return reading_s + (self._tokens / speed * (1 + offer.distance.load) if speed else 0.0)

    def _wait_s(self, offer: HostOffer) -> float:
        distance = offer.distance
        if math.isinf(distance.wait_s):
            return _UNKNOWN_TURN_S * max(1.0, distance.load)
        if needs_load(offer) and not offer.load_measured and self._load_s is not None:
            # Another host has measured what is a guess here.
            return max(0.0, distance.wait_s - offer.load_s + self._load_s)
        return distance.wait_s

    def _reasons(self, offer: HostOffer, wait_s: float, *, deferred: bool) -> list[str]:
        steps, about = offer.distance.steps, f"about {wait_s:.1f} s"
        if steps == 0:
            reasons = ["loaded, with a free slot"]
        elif steps == 1:
            reasons = [f"loading: {about}"]
        elif not needs_load(offer):
            unknown = math.isinf(offer.distance.wait_s)
            reasons = [f"all slots taken: {'no answer was measured yet' if unknown else about}"]
        elif steps == 2:
            reasons = [f"has to load it: {about}"]
        else:
            reasons = [f"has to unload other models for it, which counts as {wait_s:.1f} s"]
        if deferred:
            reasons.append(f"not needed while the wait elsewhere is at most {self._replica_wait_s:g} s")
        if offer.read_before:
            reasons.append(f"has answered this conversation before ({offer.read_before} bytes)")
        if offer.tokens_per_s is not None:
            reasons.append(f"{offer.tokens_per_s:.0f} tokens/s")
        return reasons
