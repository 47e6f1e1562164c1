"""What this gateway knows of the budgets of all gateways: its own figures, and the last ones of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import msgspec

from hostler.gateway.cluster.budget_books import MINUTE_BOOKS, MINUTE_S, Book, BookKeeper, Entry, Pair
from hostler.gateway.cluster.ledger_layout import GONE_S
from hostler.supervisor.state_store import JsonStore

#: Differences of the clocks up to this are those of the way, in seconds; entries should not move with them.
_SMALL_S = 0.1


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of all gateways, over restarts. `written` is when, in seconds since the epoch."""

    written: float = 0.0
    gateways: tuple[str, ...] = ()
    others: dict[str, dict[str, Entry]] = {}


class LedgerRecords:
    """The entries of all gateways. `own` is this gateway's id, `wall` its clock in seconds since the epoch.

    `gateways` are those that share the budgets, `others` the entries of the others by book, and `acknowledged` those of
    this gateway that the store has. `is_changed`: something is not in the file yet.
    """

    def __init__(self, own: str, file: Path | None, wall: Callable[[], float]) -> None:
        self._own = own
        self.local_wall = wall
        self._offset = 0.0
        self._file = JsonStore(file, _Kept, contents="the budgets of other gateways")
        kept = self._file.read() or _Kept()
        recent = abs(wall() - kept.written) < GONE_S
        self._keepers: dict[str, BookKeeper] = {}
        self._sequence = 0
        self.gateways = {own, *(kept.gateways if recent else ())}
        self.others: dict[str, dict[str, Entry]] = {name: dict(found) for name, found in kept.others.items()}
        self.acknowledged: dict[str, Entry] = {}
        self.is_changed = False

    def wall(self) -> float:
        """The store's time in seconds since the epoch, as far as it is known: the same at all gateways."""
        return self.local_wall() + self._offset

    def meet(self, gateways: Iterable[str]) -> None:
        """These gateways share the budgets, and this one. Kept at once: if the store is empty when this process is started
        again, nothing else says that others may use something without it."""
        found = {*gateways, self._own}
        if found != self.gateways:
            self.gateways = found
            self.keep()

    def follow(self, now: float, began: float) -> None:
        """Follow the store's clock; the answer was made somewhere between `began`, by the local one, and now."""
        offset = now - (began + self.local_wall()) / 2
        if abs(offset - self._offset) > _SMALL_S:
            self._offset = offset

    # This gateway's own figures

    def add_keeper(self, prefix: str, keeper: BookKeeper) -> None:
        """Have `keeper` asked for the entries of books whose names begin with `prefix` and a colon."""
        self._keepers[prefix] = keeper

    def keeper(self, name: str) -> BookKeeper | None:
        """What knows this gateway's figures of a book."""
        return self._keepers.get(name.partition(":")[0])

    def own_entry(self, name: str) -> Entry:
        """This gateway's figures."""
        keeper = self.keeper(name)
        return Entry() if keeper is None else keeper.entry(name)

    def next_entry(self, name: str) -> Entry:
        """This gateway's figures, to be written."""
        self._sequence = max(self._sequence + 1, int(self.local_wall() * 1000))
        return msgspec.structs.replace(self.own_entry(name), sequence=self._sequence)

    def used_books(self) -> dict[str, Book]:
        """The books that this gateway has used."""
        return {book.name: book for keeper in self._keepers.values() for book in keeper.books()}

    def acknowledged_at(self, name: str) -> int:
        """The sequence of what the store has of this gateway at least, while that counts."""
        entry = self.acknowledged.get(name, Entry())
        return entry.sequence if entry.counts(self.wall() - MINUTE_S) else 0

    def adopt(self, name: str, entry: Entry, *, figures: bool) -> None:
        """What the store has of this gateway: entries go on after it, and count at least its `figures` if they are not its own."""
        self._sequence = max(self._sequence, entry.sequence)
        if figures and (keeper := self.keeper(name)) is not None:
            keeper.adopt(name, entry)

    # Those of others

    def entries(self, name: str) -> dict[str, Entry]:
        """The entries of other gateways in a book, as they count now."""
        return {
            gateway: entry if gateway in self.gateways else entry.of_gone(name)
            for gateway, entry in self.others.get(name, {}).items()
        }

    def learn(self, name: str, entries: Mapping[str, Entry]) -> None:
        """Note entries of other gateways, unless newer ones are known: answers and messages overtake each other."""
        known = self.others.setdefault(name, {})
        for gateway, entry in entries.items():
            if gateway not in known or known[gateway].sequence < entry.sequence:
                known[gateway] = entry
                self.is_changed = True

    def counting(self, name: str) -> tuple[list[str], list[str]]:
        """The other gateways whose entries in a book count now, and so have to be in the store: and those whose entries only do
        while the store knows these gateways."""
        since, by_minute = self.wall() - MINUTE_S, name.startswith(MINUTE_BOOKS)
        found: tuple[list[str], list[str]] = [], []
        for gateway, entry in self.entries(name).items():
            if entry.counts(since):
                found[by_minute and not entry.is_recent(since)].append(gateway)
        return found

    def to_restore(self, name: str) -> dict[str, Entry]:
        """The entries of other gateways in a book that may still count."""
        strictly, loosely = self.counting(name)
        return {gateway: self.others[name][gateway] for gateway in (*strictly, *loosely)}

    def rest(self, book: Book, own: Entry, now: float) -> Pair:
        """What is left for all gateways, as far as it is known, if `own` are the figures of this one."""
        used = sum_of(entry.total(now) for entry in (own, *self.entries(book.name).values()))
        return book.limits[0] - used[0], book.limits[1] - used[1]

    # Over time

    def is_over(self) -> Callable[[str], bool]:
        """Whether a book is of another day, or of minutes that are over."""
        current = self.used_books()

        def is_over(name: str) -> bool:
            keeper = self.keeper(name)
            return name not in current and (keeper is None or not keeper.is_current(name))

        return is_over

    def forget(self, is_over: Callable[[str], bool]) -> None:
        """Forget books that are over."""
        forget(self.others, is_over)
        forget(self.acknowledged, is_over)
        since = self.wall() - MINUTE_S
        for name in [name for name in self.others if name.startswith(MINUTE_BOOKS)]:
            known = self.others[name]
            self.others[name] = {
                gateway: entry for gateway, entry in known.items() if gateway in self.gateways or entry.is_recent(since)
            }

    def keep(self) -> None:
        """Write what is known to the file."""
        self.is_changed = False
        self._file.write(
            lambda: _Kept(written=self.local_wall(), gateways=tuple(sorted(self.gateways)), others=self.others)
        )


def forget(known: MutableMapping[str, Any], is_over: Callable[[str], bool]) -> None:
    """Remove the books that are over."""
    for name in [name for name in known if is_over(name)]:
        del known[name]


def sum_of(pairs: Iterable[Pair]) -> Pair:
    """The sum of both measures."""
    first = second = 0.0
    for a, b in pairs:
        first, second = first + a, second + b
    return first, second
