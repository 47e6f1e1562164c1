"""Requests that wait to be admitted to the budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import anyio

from hostler.gateway.cluster.budget_books import ROUNDING, Charge, Pair


class Want:
    """A request that waits to be admitted. `apply` notes what has been reserved for it, before anything else is written."""

    def __init__(self, required: Sequence[Charge], optional: Sequence[Charge], apply: Callable[[bool], None]) -> None:
        self.required = required
        self.optional = optional
        self.apply = apply
        self.done = anyio.Event()
        self.abandoned = False
        #: 0: refused; 1: what is required is reserved; 2: what is optional as well; `ASKED`; `None`: the store is away.
        self.result: int | None = None
        #: Whether others have been asked before, and what those may keep that have not answered, by book and gateway.
        self.again = False
        self.asked: dict[tuple[str, str], Pair] = {}
        self.answered = anyio.Event()

    def gave_up(self, book: str, gateway: str, share: Pair) -> None:
        """A gateway has this share now, which may be the one that it had before it was asked."""
        most = self.asked.get((book, gateway))
        if most is not None and share[0] <= most[0] + ROUNDING and share[1] <= most[1] + ROUNDING:
            del self.asked[book, gateway]
            if not self.asked:
                self.answered.set()

    def to_step(self, places: Mapping[str, int]) -> dict[str, object]:
        """It for the step in the store; `places` are those of the books there."""

        def parts(charges: Sequence[Charge]) -> list[dict[str, object]]:
            return [{"book": places[each.book.name], "rules": each.rules, "amounts": each.amounts} for each in charges]

        return {"required": parts(self.required), "optional": parts(self.optional), "again": self.again}
