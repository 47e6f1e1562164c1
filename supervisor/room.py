"""A host's rule: which models may live side by side, and who has to go for one more. Stops nobody."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from hostler.supervisor.contract import SupervisorError
from hostler.supervisor.member import Member
from hostler.supervisor.memory import Claim, cannot_fit, fits, make_room


class Room:
    """`exclusive`: one model at a time, pinned ones beside it. Else as many as fit into `budget` bytes (`None`: any number)."""

    def __init__(self, *, exclusive: bool, budget: int | None) -> None:
        self.exclusive = exclusive
        self.budget = budget

    def victims(self, wanted: Member, others: Sequence[Member], evict: Collection[str]) -> list[Member]:
        """Who of `others`, which are all alive, is to be stopped before `wanted` starts.

        The gateway has named and drained those of `evict`. Beyond them idle ones go, the longest unused first, and if
        that is not enough those that are at work; pinned ones never. Raises `SupervisorError` if it cannot fit even then.
        """
        if self.exclusive:
            return [other for other in others if other.name in evict or not (other.pinned or wanted.pinned)]
        names = {other.name for other in others if other.name in evict}
        need = wanted.need
        if self.budget is None or wanted.process.standing:
            pass
        elif not fits(need, budget=self.budget, used=sum(each.need.total for each in others if each.name not in names)):
            # What is on its way out holds its memory until it is gone, which is waited for only if it is needed.
            names.update(other.name for other in others if not other.process.standing)
            staying = [other for other in others if other.name not in names]
            claims = [
                Claim(
                    name=other.name,
                    bytes=other.need.total,
                    idle_since=other.idle_since,
                    busy=other.busy,
                    pinned=other.pinned,
                )
                for other in staying
            ]
            chosen = make_room(need, claims, self.budget)
            if chosen is None:
                chosen = make_room(need, [msgspec.structs.replace(claim, busy=False) for claim in claims], self.budget)
            if chosen is None:
                pinned = [claim for claim in claims if claim.pinned]
                beside = [] if not fits(need, budget=self.budget) else [claim.name for claim in pinned]
                raise SupervisorError(cannot_fit(wanted.profile, need, self.budget, beside=beside))
            names.update(chosen)
        return [other for other in others if other.name in names]

    def in_the_way(self, wanted: Member, others: Sequence[Member], evict: Collection[str]) -> bool:
        """Whether somebody has to be stopped although `wanted` is ready."""
        return any(
            other.process.standing
            and (other.name in evict or (self.exclusive and not other.pinned and not wanted.pinned))
            for other in others
        )
