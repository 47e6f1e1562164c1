"""This gateway's steps in the ledger: what each writes and asks for, and what follows from the store's answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from hostler.gateway.cluster.budget_books import Book, Entry, Pair, read_entries
from hostler.gateway.cluster.ledger_layout import ASKING, CHANNEL, INDEX, LOST, PARTS, SEEN, key_of
from hostler.gateway.cluster.ledger_records import LedgerRecords, forget
from hostler.gateway.cluster.ledger_restore import CHUNK, log_damage
from hostler.gateway.cluster.ledger_scripts import RAISE
from hostler.gateway.cluster.ledger_shares import Held, Shares
from hostler.gateway.cluster.ledger_step_script import ASKED, STEP
from hostler.gateway.cluster.ledger_wants import Want
from hostler.gateway.cluster.store import BACKGROUND_LIMIT_S, Store, StoreAway

#: A share is written again if it differs from an equal one by this fraction. One that was given up is not raised for so many
#: seconds.
_UNFAIR, _GIVEN_S = 0.05, 1.0


class LedgerSteps:
    """`changed` are the books to be written, `books` all with known limits, `news` those of which others have reported something.
    `absent` is what gateways that are away may use of a book, `spare` the part of all limits that no other one has, or less
    than 0 while that is not known.

    `report_soon` has another step made soon; `on_lost` and `bring_back` are called when the store has lost something: entries, or
    that this gateway is there.
    """

    def __init__(
        self,
        store: Store,
        own: str,
        records: LedgerRecords,
        shares: Shares,
        *,
        clock: Callable[[], float],
        report_soon: Callable[[], None],
        on_lost: Callable[[Sequence[bytes], bool], None],
        bring_back: Callable[[], None],
    ) -> None:
        self._store = store
        self._own = own
        self._records = records
        self._shares = shares
        self._clock = clock
        self._report_soon = report_soon
        self._on_lost = on_lost
        self._bring_back = bring_back
        self._given: dict[str, tuple[float, Pair]] = {}
        self.books: dict[str, Book] = {}
        self.changed: dict[str, Book] = {}
        self.news: dict[str, Book] = {}
        self.absent: dict[str, Pair] = {}
        self.spare = -1.0

    def give(self, book: Book, share: Pair) -> None:
        """Give up what is more than this share, since another gateway needs it."""
        now, own = self._records.wall(), self._records.own_entry(book.name)
        room = self._shares.room(book, own, now)
        self._shares.hold(book.name, own, (min(room[0], share[0]), min(room[1], share[1])))
        self._given[book.name] = self._clock() + _GIVEN_S, share
        self.changed[book.name] = self.books.setdefault(book.name, book)

    def forget(self, is_over: Callable[[str], bool]) -> None:
        """Forget books that are over."""
        for known in (self.absent, self.books, self.news, self._given):
            forget(known, is_over)

    async def make(self, wants: Sequence[Want], limit_s: float) -> None:
        """Write what has changed, and decide what waits. Raises `StoreAway`."""
        books = {part.book.name: part.book for want in wants for part in (*want.required, *want.optional)}
        changed, self.changed = self.changed, {}
        for name, book in changed.items():
            if len(books) < CHUNK:
                books.setdefault(name, book)
            else:
                self.changed[name] = book
                self._report_soon()
        self.books |= books
        places = {name: place for place, name in enumerate(books)}
        offers = {name: self._offer(book) for name, book in books.items()}
        self._shares.keep_lowered(books, books, self._records.wall())
        counting = {name: self._records.counting(name) for name in books}
        ask = {
            "id": self._own,
            "channel": self._store.prefix + CHANNEL,
            "asking": self._store.prefix + ASKING,
            "part": 1.0 if self._shares.is_raising else self._shares.part,
            "books": [
                {
                    "name": book.name, "entry": offers[book.name].entry, "share": offers[book.name].share,
                    "limits": book.limits, "by_minute": book.by_minute, "ttl": book.ttl, "rules": book.rules.decode(),
                    "known": counting[book.name][0], "holding": counting[book.name][1],
                    "acknowledged": self._records.acknowledged_at(book.name), "most": self._most(book),
                }
                for book in books.values()
            ],
            "wants": [want.to_step(places) for want in wants],
        }  # fmt: skip
        began = self._records.local_wall()
        try:
            keys = [SEEN, INDEX, PARTS, *(key_of(name) for name in books)]
            answer = await self._store.run_script(STEP, keys, msgspec.json.encode(ask), limit_s=limit_s)
            if answer[0] == LOST:
                self._on_lost(answer[1], answer[2] == b"marked")
                raise StoreAway
        except BaseException:
            self.changed = {**books, **self.changed}
            for want in wants:
                want.done.set()
            raise
        self._take(answer, list(books.values()), wants, began)

    def _offer(self, book: Book) -> Held:
        """This gateway's figures, and what it holds beyond them from now on: no more than is fair."""
        now, own = self._records.wall(), self._records.next_entry(book.name)
        share = self._shares.room(book, own, now)
        if self.spare >= 0:  # else others may have used more than is known
            fair = self._fair(book, own, now)
            share = min(share[0], fair[0]), min(share[1], fair[1])
        return self._shares.offer(book.name, own, share)

    def _most(self, book: Book) -> Pair:
        """What the share may be raised to, in respect of what another gateway has asked for."""
        until, share = self._given.get(book.name, (0.0, book.limits))
        if self._clock() < until:
            return share
        self._given.pop(book.name, None)
        return book.limits

    def _fair(self, book: Book, own: Entry, now: float) -> Pair:
        rest = self._records.rest(book, own, now)
        return self._shares.part * max(0.0, rest[0]), self._shares.part * max(0.0, rest[1])

    def _take(self, answer: Any, books: Sequence[Book], wants: Sequence[Want], began: float) -> None:
        now, gateways, results, found, damaged, spare = answer
        log_damage(damaged)
        self._records.follow(float(now), began)
        self._records.meet(each.decode() for each in gateways)
        if self.spare < 0 <= float(spare):
            self.news |= self.books
        self.spare = float(spare)
        if self._shares.part > 1 / len(self._records.gateways) + 1e-9:
            self._shares.part = 1 / len(self._records.gateways)
            self.news |= self.books
            self._report_soon()
        asked: dict[tuple[str, str], Pair] = {}
        for book, (own, share, absent, others, waited) in zip(books, found, strict=True):
            entry = msgspec.json.decode(own, type=Entry)
            self._records.acknowledged[book.name] = entry
            self._shares.accept(book.name, entry, msgspec.json.decode(share, type=tuple[float, float]))
            self.absent[book.name] = msgspec.json.decode(absent, type=tuple[float, float])
            self._records.learn(book.name, read_entries(others))
            for id_, most in zip(waited[::2], waited[1::2], strict=True):
                asked[book.name, id_.decode()] = msgspec.json.decode(most, type=tuple[float, float])
        for want, result in zip(wants, results, strict=True):
            want.result = result
            if result == ASKED:
                names = {part.book.name for part in (*want.required, *want.optional)}
                want.asked = {each: most for each, most in asked.items() if each[0] in names}
            elif result and want.abandoned:
                self.changed |= {part.book.name: part.book for part in (*want.required, *want.optional)}
            elif result:
                want.apply(result == 2)
            want.done.set()
        self._records.is_changed = self._records.is_changed or bool(books)

    async def raise_part(self) -> None:
        """Have a larger part, now that others have a smaller one or have left."""
        self._shares.is_raising = True
        self._shares.keep()
        ask = {"id": self._own, "prefix": self._store.prefix + key_of("")}
        keys = [SEEN, INDEX, PARTS]
        part, names = await self._store.run_script(RAISE, keys, msgspec.json.encode(ask), limit_s=BACKGROUND_LIMIT_S)
        if float(part) < 0:
            self._bring_back()
            return
        known = set(self._shares.names)
        for name in (each.decode("utf-8", "replace") for each in names):
            if name not in known:
                self._shares.hold(name, self._records.own_entry(name), (0.0, 0.0))
        self._shares.part, self._shares.is_raising = float(part), False
        self._shares.keep()
        self.news |= self.books

    def look_for_unfair_shares(self) -> None:
        """Write books anew in which this gateway's share is not what is fair, since others have used something."""
        now = self._records.wall()
        news, self.news = self.news, {name: self.books[name] for name in self._given if name in self.books}
        for name, book in news.items():
            own = self._records.own_entry(name)
            fair = self._fair(book, own, now)
            for held, should, most in zip(self._shares.room(book, own, now), fair, self._most(book), strict=True):
                if held > should + _UNFAIR * should + 1e-9 or held < min(should - _UNFAIR * should, most) - 1e-9:
                    self.changed.setdefault(name, book)
