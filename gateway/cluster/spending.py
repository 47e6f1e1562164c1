"""The daily spending limit over all gateways of a cluster."""

from __future__ import annotations

from pathlib import Path

from hostler.gateway.backends.cost import ROUNDING, Reservation, SpendingTracker
from hostler.gateway.cluster.budget_books import NO_LIMIT, Book, Charge, Entry, Others
from hostler.gateway.cluster.ledger import Ledger
from hostler.gateway.cluster.store import StoreAway

_PREFIX = "spending"
#: How often a request calls the store at most.
MAX_CALLS = 2


class SharedSpending(SpendingTracker):
    """This gateway's costs, held against the limit together with those of all other gateways.

    While the store is away, this gateway's share of what was left may be spent.
    """

    def __init__(self, file: Path, daily_limit: float | None, ledger: Ledger) -> None:
        super().__init__(file, daily_limit, ledger.wall)
        self._ledger = ledger
        ledger.add_keeper(_PREFIX, self)

    @property
    def today(self) -> float:
        """Today's costs of all gateways so far, in US dollars."""
        return super().today + self._ledger.others(self._book()).used[0]

    @property
    def limit_reached(self) -> bool:
        return self._limit is not None and self._spent() >= self._limit - ROUNDING

    def _spent(self) -> float:
        """What is spent, or may be by gateways that are away."""
        return self.today + self._ledger.others(self._book()).withheld[0]

    def allows(self, wanted: Reservation) -> bool:
        return self._fits(wanted, self._ledger.others(self._book()))

    def _fits(self, wanted: Reservation, others: Others) -> bool:
        if self._limit is None:
            return True
        spent = super().today + others.used[0] + others.withheld[0]
        if wanted.lone:
            return not self._open and (others.away or not others.in_progress) and spent < self._limit - ROUNDING
        total = spent + sum(each.amount for each in self._open) + others.reserved[0]
        return total + wanted.amount <= self._limit + ROUNDING or (others.away and total < self._limit - ROUNDING)

    def exhausted_for(self, wanted: Reservation) -> bool:
        if self._limit is None or wanted.lone or self._ledger.others(self._book()).away:
            return self.limit_reached
        return self._spent() + wanted.amount > self._limit + ROUNDING

    async def try_reserve(self, wanted: Reservation) -> bool:
        """Reserve in one step at the store, unless the request has called it often enough."""
        if self._limit is None or wanted.calls >= MAX_CALLS:
            return self.reserve(wanted)
        charge = Charge(book=self._book(), rules=("lone" if wanted.lone else "fit", ""), amounts=(wanted.amount, 0))
        try:
            return await self._ledger.reserve([charge], (), lambda _: self._set_aside(wanted)) > 0
        except StoreAway:
            return self.reserve(wanted)
        except BaseException:
            self.settle(wanted, None, answered=False)  # if it was reserved at the moment when the client left
            raise

    def reserve(self, wanted: Reservation) -> bool:
        """Of this gateway's share alone."""
        if self._limit is None:
            return super().reserve(wanted)
        reserved = self._fits(wanted, self._ledger.others(self._book(), by_share=True))
        if reserved:
            self._set_aside(wanted)
            self._ledger.changed([self._book()], soon=False)
        return reserved

    def settle(self, reserved: Reservation, cost: float | None, *, answered: bool = True) -> None:
        if reserved in self._open:
            super().settle(reserved, cost, answered=answered)
            if self._limit is not None:
                # What a failed attempt has reserved is reported with what the request does next.
                soon = reserved.calls == 0 and (answered or cost is not None)
                self._ledger.changed([self._book()], soon=soon)

    def _book(self) -> Book:
        limit = NO_LIMIT if self._limit is None else self._limit
        return Book(name=f"{_PREFIX}:{self._current().day}", limits=(limit, NO_LIMIT))

    # What the ledger asks

    def entry(self, book: str) -> Entry:
        day = self._current()
        if not self.is_current(book):
            return Entry()
        return Entry(
            used_a=sum(day.spent.values()), reserved_a=sum(each.amount for each in self._open), open=len(self._open)
        )

    def books(self) -> list[Book]:
        return [self._book()] if self._limit is not None else []

    def is_current(self, book: str) -> bool:
        return book == f"{_PREFIX}:{self._current().day}"

    def adopt(self, book: str, entry: Entry) -> None:
        missing = entry.used_a + entry.reserved_a - sum(self._current().spent.values())
        if missing > 0 and self.is_current(book):
            self._add_unknown(missing)
