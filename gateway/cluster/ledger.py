"""What all gateways together have used of budgets: each writes its own figures, and one step in the store adds all and checks.

The store only holds copies: every gateway knows the figures of all, so that a store that comes back empty is filled again,
and nothing is counted twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec

from hostler.gateway.cluster.budget_books import (
    MINUTE_S,
    Book,
    BookKeeper,
    Charge,
    Entry,
    Others,
    Pair,
    read_entries,
    read_entry,
    read_gateway,
    read_share,
)
from hostler.gateway.cluster.ledger_records import LedgerRecords, forget, sum_of
from hostler.gateway.cluster.ledger_restore import CHUNK, LedgerRestore, StoreEmptied, log_damage
from hostler.gateway.cluster.ledger_scripts import (
    ASKED,
    ASKING,
    CHANNEL,
    GONE_S,
    INDEX,
    LEAVE,
    LOST,
    MINUTE_TTL_S,
    NAMES,
    PARTS,
    RAISE,
    RESTORE,
    SEEN,
    STEP,
    key_of,
)
from hostler.gateway.cluster.ledger_shares import Held, Shares
from hostler.gateway.cluster.ledger_wants import Want
from hostler.gateway.cluster.store import BACKGROUND_LIMIT_S, REQUEST_LIMIT_S, Store, StoreAway

logger = logging.getLogger(__name__)

#: How often a gateway without requests reports that it is there, and what it has not yet reported, in seconds.
_TICK_S, _LAZY_S = 1.0, 0.25
#: How often books are written though nothing has changed, before the store forgets them, in seconds.
_REFRESH_S = MINUTE_TTL_S / 3
#: After a pause of this length the store may soon have given this gateway's share to the others, in seconds.
_FROZEN_S = GONE_S / 2
#: A share is written again if it differs from an equal one by this fraction. One that was given up is not raised for so many
#: seconds.
_UNFAIR, _GIVEN_S = 0.05, 1.0


class _Asked(msgspec.Struct, frozen=True):
    """Gateways are asked to keep no larger shares of a book than these. Without a name their parts have changed."""

    name: str = ""
    rules: str = ""
    shares: dict[str, Pair] = {}


class Ledger:
    """The books of a cluster. `run` until cancelled.

    `own` is this gateway's id, `wall` its clock in seconds since the epoch; `self.wall` follows the store's clock. A request
    waits for the store for `limit_s` at most.
    """

    scripts = (STEP, RESTORE, RAISE, NAMES, LEAVE)

    def __init__(
        self,
        store: Store,
        own: str,
        *,
        file: Path | None,
        clock: Callable[[], float],
        wall: Callable[[], float],
        limit_s: float = REQUEST_LIMIT_S,
    ) -> None:
        self._store = store
        self._own = own
        self._clock = clock
        self._local_wall = wall
        self._limit_s = limit_s
        self._records = LedgerRecords(own, file, wall)
        self.shares = Shares(None if file is None else file.with_name(f"{file.stem}-shares.json"), wall)
        self._restore = LedgerRestore(store, own, self._records, self.shares)
        self._absent: dict[str, Pair] = {}
        self._books: dict[str, Book] = {}
        self._news: dict[str, Book] = {}
        self._given: dict[str, tuple[float, Pair]] = {}
        self._asking: list[Want] = []
        self._more_calls = 0
        self._spare = -1.0
        self._changed: dict[str, Book] = {}
        self._waiting: list[Want] = []
        self._wake, self._hurry = anyio.Event(), anyio.Event()
        self._wanted, self._decided = anyio.Event(), anyio.Event()
        self._decided.set()
        self._restored = self._lost = False
        self._written_at = 0.0
        self._ran_at, self._refreshed_at = (clock(), wall()), clock()
        store.on_connect(self._on_connect)
        store.subscribe(CHANNEL, self._on_message)
        store.subscribe(ASKING, self._on_asked)

    def wall(self) -> float:
        """The store's time in seconds since the epoch, as far as it is known: the same at all gateways."""
        return self._records.wall()

    def add_keeper(self, prefix: str, keeper: BookKeeper) -> None:
        """Have `keeper` asked for the entries of books whose names begin with `prefix` and a colon. To be called before `run`."""
        self._records.add_keeper(prefix, keeper)

    @property
    def gateways(self) -> int:
        """How many gateways share the budgets, as far as is known."""
        return len(self._records.gateways)

    @property
    def connected(self) -> bool:
        """Whether the store decides."""
        return self._store.connected and self._restored

    def others(self, book: Book, *, by_share: bool = False) -> Others:
        """What other gateways have used, as far as it is known. `by_share`: as without the store."""
        now, entries = self.wall(), self._records.entries(book.name)
        known = entries.values()
        window = tuple(part for entry in known for part in entry.window if part[0] > now - MINUTE_S)
        used = sum_of(each.used for each in known)
        reserved = sum_of(each.reserved for each in known)
        away = by_share or not self.connected
        return Others(
            used=used,
            reserved=reserved,
            open=sum(each.open for each in known),
            in_progress=sum(entries[each].open for each in entries.keys() & self._records.gateways),
            window=window,
            withheld=self._beyond_share(book, now) if away else self._absent.get(book.name, (0.0, 0.0)),
            away=away,
        )

    def names(self, prefix: str) -> list[str]:
        """The books of which other gateways have figures, and whose names begin so."""
        return [name for name in self._records.others if name.startswith(prefix)]

    def _beyond_share(self, book: Book, now: float) -> Pair:
        """What is left of a book, but not for this gateway."""
        self._notice_pause()
        own = self._records.own_entry(book.name)
        rest = self._records.rest(book, own, now)
        self.shares.take(book, own, rest, len(self._records.gateways))
        room = self.shares.room(book, own, now)
        return max(0.0, rest[0] - room[0]), max(0.0, rest[1] - room[1])

    def _notice_pause(self) -> None:
        """After a pause the store may have given this gateway's share to the others."""
        now = self._clock(), self._local_wall()  # a machine that sleeps may stop the one of them
        if max(now[0] - self._ran_at[0], now[1] - self._ran_at[1]) > _FROZEN_S:
            self.shares.clear()
        self._ran_at = now

    async def reserve(
        self, required: Sequence[Charge], optional: Sequence[Charge], apply: Callable[[bool], None]
    ) -> int:
        """Reserve what a request may use, together with all that wait at the moment: 0 if it is refused, 1 if only what is
        required is reserved, and 2 if what is optional is, too. `apply` is called with whether that is so, unless it is
        refused. Raises `StoreAway`.
        """
        if not self.connected:
            self._store.calls["away"] += 1
            raise StoreAway
        want = Want(required, optional, apply)
        began = self._clock()
        await self._ask(want)
        if want.result == ASKED:
            await self._wait_for_others(want, began + self._limit_s - self._clock())
            await self._ask(want)
        if want.result is None:
            raise StoreAway
        return want.result

    async def _ask(self, want: Want) -> None:
        want.done, want.result, want.abandoned = anyio.Event(), None, False
        self._waiting.append(want)
        self._wanted.set()
        try:
            await want.done.wait()
        finally:
            want.abandoned = True

    async def _wait_for_others(self, want: Want, seconds: float) -> None:
        """Wait until the gateways that were asked have given up their shares."""
        want.again = True
        self._more_calls += 1
        self._asking.append(want)
        try:
            with anyio.move_on_after(seconds if want.asked else 0):
                await want.answered.wait()
        finally:
            self._asking.remove(want)

    def changed(self, books: Sequence[Book], *, soon: bool) -> None:
        """Report what has changed in these books: at once if `soon`, else with the next step."""
        for book in books:
            self._changed[book.name] = book
        self._records.is_changed = True
        if soon and self._more_calls:
            self._more_calls -= 1  # A request that has asked twice has made its two calls.
        elif soon:
            self._report_soon()
        else:
            self._wake.set()

    def _report_soon(self) -> None:
        self._wake.set()
        self._hurry.set()

    async def run(self) -> None:
        """Report and decide until cancelled, and then leave this gateway's share to the others."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._decide)
                tasks.start_soon(self._report)
        finally:
            was_connected, self._restored = self.connected, False
            self._give_up()
            with anyio.CancelScope(shield=True):
                await self._leave(was_connected=was_connected)

    async def _decide(self) -> None:
        """Send what waits, one step after the other: each begins with what the one before has reserved."""
        before_s = 0.0
        while True:
            await self._wanted.wait()
            self._wanted = anyio.Event()
            wants = [want for want in self._waiting if not want.abandoned]
            if not wants or not self.connected:
                self._give_up()
                continue
            self._waiting = []
            self._decided = anyio.Event()
            began = self._clock()
            try:
                await self._step(wants, max(self._limit_s / 2, self._limit_s - before_s))
            except StoreAway:
                self._give_up()
            finally:
                self._decided.set()
            # What waits by now has waited for this.
            before_s = self._clock() - began if self._waiting else 0.0

    async def _report(self) -> None:
        """Report that this gateway is there, and what has changed."""
        while True:
            with anyio.move_on_after(_TICK_S):
                await self._wake.wait()
                with anyio.move_on_after(_LAZY_S):
                    await self._hurry.wait()
            self._wake, self._hurry = anyio.Event(), anyio.Event()
            self._notice_pause()
            try:
                if self._store.connected:
                    await self._until_decided()
                    if not self._restored:
                        await self._bring_back()
                    if self._clock() - self._refreshed_at >= _REFRESH_S:
                        self._refreshed_at = self._clock()
                        self._changed = self._records.used_books() | self._changed
                    self._look_for_unfair_shares()
                    await self._until_decided()
                    await self._step((), BACKGROUND_LIMIT_S)
                    if (
                        self.shares.is_raising
                        or self.shares.part < min(1 / len(self._records.gateways), self._spare) - 1e-9
                    ):
                        await self._raise_part()
            except StoreAway:
                pass
            self._keep()

    async def _until_decided(self) -> None:
        """Entries that are written now would lack what a step is about to reserve."""
        while not self._decided.is_set():
            await self._decided.wait()

    async def _leave(self, *, was_connected: bool) -> None:
        try:
            if was_connected:
                await self._step((), BACKGROUND_LIMIT_S)
                self.shares.leave()
                asking = self._store.prefix + ASKING
                await self._store.run_script(LEAVE, [SEEN, PARTS], self._own, asking, limit_s=BACKGROUND_LIMIT_S)
        except StoreAway:
            pass
        self._keep(now=True)

    def _give_up(self) -> None:
        """What waits is decided here."""
        waiting, self._waiting = self._waiting, []
        for want in waiting:
            want.done.set()

    # Steps

    async def _step(self, wants: Sequence[Want], limit_s: float) -> None:
        books = {part.book.name: part.book for want in wants for part in (*want.required, *want.optional)}
        changed, self._changed = self._changed, {}
        for name, book in changed.items():
            if len(books) < CHUNK:
                books.setdefault(name, book)
            else:
                self._changed[name] = book
                self._report_soon()
        self._books |= books
        places = {name: place for place, name in enumerate(books)}
        offers = {name: self._offer(book) for name, book in books.items()}
        self.shares.keep_lowered(books, books, self.wall())
        counting = {name: self._records.counting(name) for name in books}
        ask = {
            "id": self._own,
            "channel": self._store.prefix + CHANNEL,
            "asking": self._store.prefix + ASKING,
            "part": 1.0 if self.shares.is_raising else self.shares.part,
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
        began = self._local_wall()
        try:
            keys = [SEEN, INDEX, PARTS, *(key_of(name) for name in books)]
            answer = await self._store.run_script(STEP, keys, msgspec.json.encode(ask), limit_s=limit_s)
            if answer[0] == LOST:
                self._on_lost(answer[1], is_marked=answer[2] == b"marked")
                raise StoreAway
        except BaseException:
            self._changed = {**books, **self._changed}
            for want in wants:
                want.done.set()
            raise
        self._take(answer, list(books.values()), wants, began)

    def _offer(self, book: Book) -> Held:
        """This gateway's figures, and what it holds beyond them from now on: no more than is fair."""
        now, own = self.wall(), self._records.next_entry(book.name)
        share = self.shares.room(book, own, now)
        if self._spare >= 0:  # else others may have used more than is known
            fair = self._fair(book, own, now)
            share = min(share[0], fair[0]), min(share[1], fair[1])
        return self.shares.offer(book.name, own, share)

    def _most(self, book: Book) -> Pair:
        """What the share may be raised to, in respect of what another gateway has asked for."""
        until, share = self._given.get(book.name, (0.0, book.limits))
        if self._clock() < until:
            return share
        self._given.pop(book.name, None)
        return book.limits

    def _fair(self, book: Book, own: Entry, now: float) -> Pair:
        rest = self._records.rest(book, own, now)
        return self.shares.part * max(0.0, rest[0]), self.shares.part * max(0.0, rest[1])

    def _take(self, answer: Any, books: Sequence[Book], wants: Sequence[Want], began: float) -> None:
        now, gateways, results, found, damaged, spare = answer
        log_damage(damaged)
        self._records.follow(float(now), began)
        self._records.gateways = {each.decode() for each in gateways} | {self._own}
        if self._spare < 0 <= float(spare):
            self._news |= self._books
        self._spare = float(spare)
        if self.shares.part > 1 / len(self._records.gateways) + 1e-9:
            self.shares.part = 1 / len(self._records.gateways)
            self._news |= self._books
            self._report_soon()
        asked: dict[tuple[str, str], Pair] = {}
        for book, (own, share, absent, others, waited) in zip(books, found, strict=True):
            entry = msgspec.json.decode(own, type=Entry)
            self._records.acknowledged[book.name] = entry
            self.shares.accept(book.name, entry, msgspec.json.decode(share, type=tuple[float, float]))
            self._absent[book.name] = msgspec.json.decode(absent, type=tuple[float, float])
            self._records.learn(book.name, read_entries(others))
            for id_, most in zip(waited[::2], waited[1::2], strict=True):
                asked[book.name, id_.decode()] = msgspec.json.decode(most, type=tuple[float, float])
        for want, result in zip(wants, results, strict=True):
            want.result = result
            if result == ASKED:
                names = {part.book.name for part in (*want.required, *want.optional)}
                want.asked = {each: most for each, most in asked.items() if each[0] in names}
            elif result and want.abandoned:
                self._changed |= {part.book.name: part.book for part in (*want.required, *want.optional)}
            elif result:
                want.apply(result == 2)
            want.done.set()
        self._records.is_changed = self._records.is_changed or bool(books)

    async def _raise_part(self) -> None:
        """Have a larger part, now that others have a smaller one or have left."""
        self.shares.is_raising = True
        self.shares.keep()
        ask = {"id": self._own, "prefix": self._store.prefix + key_of("")}
        keys = [SEEN, INDEX, PARTS]
        part, names = await self._store.run_script(RAISE, keys, msgspec.json.encode(ask), limit_s=BACKGROUND_LIMIT_S)
        if float(part) < 0:
            self._on_connect()
            return
        known = set(self.shares.names)
        for name in (each.decode("utf-8", "replace") for each in names):
            if name not in known:
                self.shares.hold(name, self._records.own_entry(name), (0.0, 0.0))
        self.shares.part, self.shares.is_raising = float(part), False
        self.shares.keep()
        self._news |= self._books

    def _look_for_unfair_shares(self) -> None:
        """Write books anew in which this gateway's share is not what is fair, since others have used something."""
        now = self.wall()
        news, self._news = self._news, {name: self._books[name] for name in self._given if name in self._books}
        for name, book in news.items():
            own = self._records.own_entry(name)
            fair = self._fair(book, own, now)
            for held, should, most in zip(self.shares.room(book, own, now), fair, self._most(book), strict=True):
                if held > should + _UNFAIR * should + 1e-9 or held < min(should - _UNFAIR * should, most) - 1e-9:
                    self._changed.setdefault(name, book)

    # What the store may have lost

    def _on_connect(self) -> None:
        self._restored = False
        self._report_soon()

    def _on_lost(self, damaged: Sequence[bytes], *, is_marked: bool) -> None:
        """The store was emptied, or has dropped an entry, while it was in use; or another gateway has noticed that
        (`is_marked`)."""
        log_damage(damaged)
        if not is_marked:
            self._lost = True
            logger.warning("the store has lost budgets; they are brought back")
        self._on_connect()

    async def _bring_back(self) -> None:
        """Bring all that is known to the store, and learn what is not."""
        self._forget_old()
        self._spare = -1.0
        try:
            await self._restore.run(self._books, is_lost=self._lost)
        except StoreEmptied:
            self._on_connect()
            raise
        self._changed |= self._records.used_books()
        self._lost = False
        self._restored = True

    def _forget_old(self) -> None:
        """Forget books of other days, and minutes that are over."""
        is_over = self._records.is_over()
        self._records.forget(is_over)
        self.shares.forget(is_over)
        for known in (self._absent, self._books, self._news, self._given):
            forget(known, is_over)

    def _on_message(self, message: bytes) -> None:
        """Another gateway's figures have changed."""
        words = message.split(b" ", 4)
        if len(words) < 5 or words[0] == self._own.encode():
            return
        gateway, value, share, rules, name = words
        id_, entry, kept, book = read_gateway(gateway), read_entry(value), read_share(share), Book.read(name, rules)
        if id_ is None or entry is None or kept is None or book is None:
            return
        self._records.learn(book.name, {id_: entry})
        self._news[book.name] = self._books.setdefault(book.name, book)
        self._wake.set()
        for want in self._asking:
            want.gave_up(book.name, id_, kept)

    def _on_asked(self, message: bytes) -> None:
        """Another gateway needs what this one could use without the store; or the parts of gateways have changed."""
        try:
            asked = msgspec.json.decode(message, type=_Asked)
        except (msgspec.MsgspecError, RecursionError):
            return
        share, book = asked.shares.get(self._own), Book.read(asked.name.encode(), asked.rules.encode())
        if not asked.name:
            self._report_soon()
        elif share is not None and book is not None and self.connected:
            now, own = self.wall(), self._records.own_entry(book.name)
            room = self.shares.room(book, own, now)
            self.shares.hold(book.name, own, (min(room[0], share[0]), min(room[1], share[1])))
            self._given[book.name] = self._clock() + _GIVEN_S, share
            self._changed[book.name] = self._books.setdefault(book.name, book)
            self._report_soon()

    def _keep(self, *, now: bool = False) -> None:
        """Write what is known to the files, now and then."""
        at = self._clock()
        if now or (self._records.is_changed and at - self._written_at >= _TICK_S):
            self._written_at = at
            self._forget_old()
            self.shares.keep()
            self._records.keep()
