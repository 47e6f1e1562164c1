"""Requests that wait to be admitted to the budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import anyio

from hostler.gateway.cluster.budget_books import Charge


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
        #: Whether others have been asked before, and those that have not answered: each a book and a gateway.
        self.again = False
        self.asked: set[tuple[str, str]] = set()
        self.answered = anyio.Event()

    def to_step(self, places: Mapping[str, int]) -> dict[str, object]:
        """It for the step in the store; `places` are those of the books there."""

        def parts(charges: Sequence[Charge]) -> list[dict[str, object]]:
            return [{"book": places[each.book.name], "rules": each.rules, "amounts": each.amounts} for each in charges]

        return {"required": parts(self.required), "optional": parts(self.optional), "again": self.again}
