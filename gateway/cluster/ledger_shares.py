"""What this gateway may use of each budget without the store. It asks the store for nothing here, and reports nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from hostler.gateway.cluster.budget_books import ROUNDING, Book, Entry, Pair
from hostler.gateway.cluster.ledger_layout import GONE_S
from hostler.supervisor.state_store import JsonStore


class Held(msgspec.Struct, frozen=True, array_like=True):
    """This gateway's figures in a book when it last wrote them, and its share: what it may use beyond them without the store."""

    entry: Entry
    share: Pair


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What this gateway holds at least, over restarts: `written` in seconds since the epoch. `is_member`: the store knows it."""

    written: float = 0.0
    is_member: bool = False
    part: float = 0.0
    books: dict[str, Held] = {}


class Shares:
    """The shares of this gateway: for each book what is held there, and `part` of the limit in books of which nothing is known.

    The store keeps them from the other gateways. It may keep more than this gateway knows of, but never less: so a share is
    lowered here, and in the file, before it is lowered in the store, and raised here after it was raised there. `is_kept`: the
    store keeps them. A gateway of which the store has never known takes an equal part of what is left instead.
    """

    def __init__(self, file: Path | None, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._file = JsonStore(file, _Kept, contents="shares of budgets")
        kept = self._file.read() or _Kept()
        self.is_kept = kept.is_member and 0 <= wall() - kept.written < GONE_S
        self._kept = kept if self.is_kept else _Kept()
        self.part = self._kept.part if self.is_kept else 1.0
        self._books = dict(self._kept.books)
        self._offered: dict[str, int] = {}
        #: The part is being raised, from which moment on the store alone knows.
        self.is_raising = False

    @property
    def names(self) -> Sequence[str]:
        """The books of which shares are held."""
        return list(self._books)

    def room(self, book: Book, own: Entry, now: float) -> Pair:
        """What this gateway may use now, if `own` are its figures."""
        held = self._books.get(book.name)
        if held is None and self.is_raising:
            return 0.0, 0.0
        return _room(held, self.part, book, own, now)

    def hold(self, name: str, entry: Entry, share: Pair) -> None:
        """From now on this may be used beyond `entry`."""
        self._books[name] = Held(entry, share)
        self._offered.pop(name, None)

    def offer(self, name: str, entry: Entry, share: Pair) -> Held:
        """Hold this, and be ready to hold more beyond `entry` when the store says so."""
        self._offered[name] = entry.sequence
        self._books[name] = held = Held(entry, share)
        return held

    def accept(self, name: str, entry: Entry, share: Pair) -> None:
        """The store keeps this share, unless something was lowered since it was offered, or another answer is on its way."""
        if self._offered.get(name) == entry.sequence:
            self._books[name] = Held(entry, share)

    def take(self, book: Book, own: Entry, rest: Pair, gateways: int) -> None:
        """Take an equal part of what is left, once, unless the store keeps shares."""
        if not self.is_kept and book.name not in self._books:
            self.hold(book.name, own, (max(0.0, rest[0]) / gateways, max(0.0, rest[1]) / gateways))

    def clear(self) -> None:
        """Hold nothing any more, in no book; the store keeps that."""
        self.part, self.is_kept, self.is_raising = 0.0, True, False
        self._books.clear()
        self._offered.clear()

    def leave(self) -> None:
        """Hold nothing any more, since this gateway stops. It may start again while the store is away."""
        self.clear()
        self.is_kept = False
        self._kept = _Kept()
        self._file.write(lambda: self._kept)

    def forget(self, is_over: Callable[[str], bool]) -> None:
        """Forget books that are over."""
        for name in [name for name in self._books if is_over(name)]:
            del self._books[name]
            self._offered.pop(name, None)

    def keep_lowered(self, names: Iterable[str], books: Mapping[str, Book], now: float) -> None:
        """Write what was lowered below what is in the file: a process that is started again must not use more. The limits of
        books that are not in `books` are not known."""
        lowered = {}
        for name in names:
            held = self._books.get(name)
            if held is not None and self._is_lower(name, held, books.get(name), now):
                # Less than it is, so that it need not be written each time.
                lowered[name] = Held(_lasting(held.entry), (held.share[0] / 2, held.share[1] / 2))
        if lowered or self.part < self._kept.part:
            self._write({**self._kept.books, **lowered})

    def _is_lower(self, name: str, held: Held, book: Book | None, now: float) -> bool:
        kept = self._kept.books.get(name)
        if kept is not None:
            before, after = kept.entry.total(now), held.entry.total(now)
            most = before[0] + kept.share[0] - after[0], before[1] + kept.share[1] - after[1]
        elif book is None or max(book.limits) < 0:
            return True
        else:
            most = max(0.0, book.limits[0]) * self._kept.part, max(0.0, book.limits[1]) * self._kept.part
        return held.share[0] < most[0] - ROUNDING or held.share[1] < most[1] - ROUNDING

    def keep(self) -> None:
        """Write all."""
        self._write({name: Held(_lasting(held.entry), held.share) for name, held in self._books.items()})

    def _write(self, books: dict[str, Held]) -> None:
        if self.is_kept:
            part = 0.0 if self.is_raising else self.part
            self._kept = _Kept(written=self._wall(), is_member=True, part=part, books=books)
            self._file.write(lambda: self._kept)


def _room(held: Held | None, part: float, book: Book, own: Entry, now: float) -> Pair:
    before, after = (Entry() if held is None else held.entry).total(now), own.total(now)
    share = (max(0.0, book.limits[0]) * part, max(0.0, book.limits[1]) * part)
    if held is not None:
        share = (min(share[0], held.share[0]), min(share[1], held.share[1]))
    return max(0.0, before[0] + share[0] - after[0]), max(0.0, before[1] + share[1] - after[1])


def _lasting(entry: Entry) -> Entry:
    """The entry without what a process that is started again has not reserved."""
    return msgspec.structs.replace(entry, reserved_a=0.0, reserved_b=0.0)
