"""What all gateways together have used of budgets: each writes its own figures, and one step in the store adds all and checks.

The store only holds copies: every gateway knows the figures of all, so that a store that comes back empty is filled again,
and nothing is counted twice.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
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
)
from hostler.gateway.cluster.ledger_scripts import (
    ASKED,
    DAY_TTL_S,
    GONE_S,
    LEAVE,
    LOST,
    MINUTE_TTL_S,
    NAMES,
    RAISE,
    RESTORE,
    STEP,
)
from hostler.gateway.cluster.ledger_shares import Held, Shares
from hostler.gateway.cluster.store import BACKGROUND_LIMIT_S, REQUEST_LIMIT_S, Store, StoreAway
from hostler.supervisor.state_store import JsonStore

logger = logging.getLogger(__name__)

_CHANNEL, _ASKING = "budgets", "budgets:asking"
_SEEN, _INDEX, _PARTS, _LIFE = "budgets:seen", "budgets:index", "budgets:parts", "budgets:life"
#: How often a gateway without requests reports that it is there, and what it has not yet reported, in seconds.
_TICK_S, _LAZY_S = 1.0, 0.25
#: Books that are restored, or written, in one step.
_CHUNK = 50
#: How often books are written though nothing has changed, before the store forgets them, in seconds.
_REFRESH_S = MINUTE_TTL_S / 3
#: After a pause of this length the store may soon have given this gateway's share to the others, in seconds.
_FROZEN_S = GONE_S / 2
#: How far a share is off what is fair before that is mended, and how long one that was given up is not raised, in seconds.
_UNFAIR, _GIVEN_S = 0.05, 1.0


class _Want:
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


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of all gateways, over restarts. `written` is when, in seconds since the epoch."""

    written: float = 0.0
    gateways: tuple[str, ...] = ()
    others: dict[str, dict[str, Entry]] = {}


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
        self._offset = 0.0
        self._file = JsonStore(file, _Kept, contents="the budgets of other gateways")
        kept = self._file.read() or _Kept()
        recent = abs(wall() - kept.written) < GONE_S
        self._gateways = {own, *(kept.gateways if recent else ())}
        self._others: dict[str, dict[str, Entry]] = {name: dict(found) for name, found in kept.others.items()}
        self.shares = Shares(None if file is None else file.with_name(f"{file.stem}-shares.json"), wall)
        self._absent: dict[str, Pair] = {}
        self._acknowledged: dict[str, Entry] = {}
        self._asked_at: dict[str, int] = {}
        self._books: dict[str, Book] = {}
        self._news: dict[str, Book] = {}
        self._given: dict[str, tuple[float, Pair]] = {}
        self._asking: list[_Want] = []
        self._more_calls = 0
        self._spare = -1.0
        self._keepers: dict[str, BookKeeper] = {}
        self._changed: dict[str, Book] = {}
        self._waiting: list[_Want] = []
        self._wake, self._hurry = anyio.Event(), anyio.Event()
        self._wanted, self._decided = anyio.Event(), anyio.Event()
        self._decided.set()
        self._restored = self._was_restored = False
        self._unwritten, self._written_at = False, 0.0
        self._sequence = 0
        self._lost = False
        self._ran_at, self._refreshed_at = (clock(), wall()), clock()
        store.on_connect(self._on_connect)
        store.subscribe(_CHANNEL, self._on_message)
        store.subscribe(_ASKING, self._on_asked)

    def wall(self) -> float:
        """The store's time in seconds since the epoch, as far as it is known: the same at all gateways."""
        return self._local_wall() + self._offset

    def add_keeper(self, prefix: str, keeper: BookKeeper) -> None:
        """Have `keeper` asked for the entries of books whose names begin with `prefix` and a colon. To be called before `run`."""
        self._keepers[prefix] = keeper

    @property
    def gateways(self) -> int:
        """How many gateways share the budgets, as far as is known."""
        return len(self._gateways)

    @property
    def connected(self) -> bool:
        """Whether the store decides."""
        return self._store.connected and self._restored

    def others(self, book: Book, *, by_share: bool = False) -> Others:
        """What other gateways have used, as far as it is known. `by_share`: as without the store."""
        now, known = self.wall(), self._others.get(book.name, {}).values()
        window = tuple(part for entry in known for part in entry.window if part[0] > now - MINUTE_S)
        used = _sum(each.used for each in known)
        reserved = _sum(each.reserved for each in known)
        away = by_share or not self.connected
        return Others(
            used=used,
            reserved=reserved,
            open=sum(each.open for each in known),
            window=window,
            withheld=self._beyond_share(book, now) if away else self._absent.get(book.name, (0.0, 0.0)),
            away=away,
        )

    def names(self, prefix: str) -> list[str]:
        """The books of which other gateways have figures, and whose names begin so."""
        return [name for name in self._others if name.startswith(prefix)]

    def _beyond_share(self, book: Book, now: float) -> Pair:
        """What is left of a book, but not for this gateway."""
        self._notice_pause()
        own = self._own_entry(book.name)
        rest = self._rest(book, own, now)
        self.shares.take(book, own, rest, len(self._gateways))
        room = self.shares.room(book, own, now)
        return max(0.0, rest[0] - room[0]), max(0.0, rest[1] - room[1])

    def _rest(self, book: Book, own: Entry, now: float) -> Pair:
        """What is left for all gateways, as far as it is known."""
        used = _sum(entry.total(now) for entry in (own, *self._others.get(book.name, {}).values()))
        return book.limits[0] - used[0], book.limits[1] - used[1]

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
        want = _Want(required, optional, apply)
        began = self._clock()
        await self._ask(want)
        if want.result == ASKED:
            await self._wait_for_others(want, began + self._limit_s - self._clock())
            await self._ask(want)
        if want.result is None:
            raise StoreAway
        return want.result

    async def _ask(self, want: _Want) -> None:
        want.done, want.result, want.abandoned = anyio.Event(), None, False
        self._waiting.append(want)
        self._wanted.set()
        try:
            await want.done.wait()
        finally:
            want.abandoned = True

    async def _wait_for_others(self, want: _Want, seconds: float) -> None:
        """Wait until the gateways that were asked have given up their shares."""
        want.again = True
        self._more_calls += 1
        self._asking.append(want)
        try:
            with anyio.move_on_after(seconds):
                await want.answered.wait()
        finally:
            self._asking.remove(want)

    def changed(self, books: Sequence[Book], *, soon: bool) -> None:
        """Report what has changed in these books: at once if `soon`, else with the next step."""
        for book in books:
            self._changed[book.name] = book
        self._unwritten = True
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
            self._give_up()
            with anyio.CancelScope(shield=True):
                await self._leave()

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
                    if not self._restored:
                        await self._restore()
                    if self._clock() - self._refreshed_at >= _REFRESH_S:
                        self._refreshed_at = self._clock()
                        self._changed = self._kept_books() | self._changed
                    self._look_for_unfair_shares()
                    # Entries that are written now would lack what is being reserved.
                    await self._decided.wait()
                    await self._step((), BACKGROUND_LIMIT_S)
                    if self.shares.is_raising or self.shares.part < min(1 / len(self._gateways), self._spare) - 1e-9:
                        await self._raise_part()
            except StoreAway:
                pass
            self._keep()

    async def _leave(self) -> None:
        try:
            if self.connected:
                await self._step((), BACKGROUND_LIMIT_S)
                self.shares.leave()
                asking = self._store.prefix + _ASKING
                await self._store.run_script(LEAVE, [_SEEN, _PARTS], self._own, asking, limit_s=BACKGROUND_LIMIT_S)
        except StoreAway:
            pass
        self._keep(now=True)

    def _give_up(self) -> None:
        """What waits is decided here."""
        waiting, self._waiting = self._waiting, []
        for want in waiting:
            want.done.set()

    # Steps

    async def _step(self, wants: Sequence[_Want], limit_s: float) -> None:
        books = {part.book.name: part.book for want in wants for part in (*want.required, *want.optional)}
        changed, self._changed = self._changed, {}
        for name, book in changed.items():
            if len(books) < _CHUNK:
                books.setdefault(name, book)
            else:
                self._changed[name] = book
                self._report_soon()
        self._books |= books
        places = {name: place for place, name in enumerate(books)}
        offers = {name: self._offer(book) for name, book in books.items()}
        self.shares.keep_lowered(books, books, self.wall())
        ask = {
            "id": self._own,
            "channel": self._store.prefix + _CHANNEL,
            "asking": self._store.prefix + _ASKING,
            "part": 1.0 if self.shares.is_raising else self.shares.part,
            "books": [
                {
                    "name": book.name, "entry": offers[book.name].entry, "share": offers[book.name].share,
                    "limits": book.limits, "by_minute": book.by_minute, "ttl": book.ttl, "rules": book.rules.decode(),
                    "known": self._counting(book.name), "acknowledged": self._acknowledged_at(book.name),
                    "most": self._most(book),
                }
                for book in books.values()
            ],
            "wants": [
                {
                    "required": _asked(want.required, places), "optional": _asked(want.optional, places),
                    "again": want.again,
                }
                for want in wants
            ],
        }  # fmt: skip
        began = self._local_wall()
        try:
            keys = [_SEEN, _INDEX, _PARTS, *(_key(name) for name in books)]
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
        now, own = self.wall(), self._entry(book.name)
        share = self.shares.room(book, own, now)
        if self._spare >= 0:  # else others may have used more than is known
            fair = self._fair(book, own, now)
            share = min(share[0], fair[0]), min(share[1], fair[1])
        self.shares.hold(book.name, own, share)
        self._asked_at[book.name] = own.sequence
        return Held(own, share)

    def _most(self, book: Book) -> Pair:
        """What the share may be raised to, in respect of what another gateway has asked for."""
        until, share = self._given.get(book.name, (0.0, book.limits))
        if self._clock() < until:
            return share
        self._given.pop(book.name, None)
        return book.limits

    def _fair(self, book: Book, own: Entry, now: float) -> Pair:
        rest = self._rest(book, own, now)
        return self.shares.part * max(0.0, rest[0]), self.shares.part * max(0.0, rest[1])

    def _take(self, answer: Any, books: Sequence[Book], wants: Sequence[_Want], began: float) -> None:
        now, gateways, results, found, damaged, spare = answer
        _report_damage(damaged)
        self._follow(float(now), began)
        self._gateways = {each.decode() for each in gateways} | {self._own}
        if self._spare < 0 <= float(spare):
            self._news |= self._books
        self._spare = float(spare)
        if self.shares.part > 1 / len(self._gateways) + 1e-9:
            self.shares.part = 1 / len(self._gateways)
            self._news |= self._books
            self._report_soon()
        asked: set[tuple[str, str]] = set()
        for book, (own, share, absent, others, waited) in zip(books, found, strict=True):
            entry = msgspec.json.decode(own, type=Entry)
            self._acknowledged[book.name] = entry
            # Unless something has been lowered since it was asked for, or another answer is on its way.
            if self._asked_at.get(book.name) == entry.sequence:
                self.shares.hold(book.name, entry, msgspec.json.decode(share, type=tuple[float, float]))
            self._absent[book.name] = msgspec.json.decode(absent, type=tuple[float, float])
            self._learn(book.name, read_entries(others))
            asked |= {(book.name, each.decode()) for each in waited}
        for want, result in zip(wants, results, strict=True):
            want.result = result
            if result == ASKED:
                names = {part.book.name for part in (*want.required, *want.optional)}
                want.asked = {each for each in asked if each[0] in names}
            elif result and want.abandoned:
                self._changed |= {part.book.name: part.book for part in (*want.required, *want.optional)}
            elif result:
                want.apply(result == 2)
            want.done.set()
        self._unwritten = self._unwritten or bool(books)

    async def _raise_part(self) -> None:
        """Have a larger part, now that others have a smaller one or have left."""
        self.shares.is_raising = True
        self.shares.keep()
        ask = {"id": self._own, "prefix": self._store.prefix + _key("")}
        keys = [_SEEN, _INDEX, _PARTS]
        part, names = await self._store.run_script(RAISE, keys, msgspec.json.encode(ask), limit_s=BACKGROUND_LIMIT_S)
        if float(part) < 0:
            self._on_connect()
            return
        known = set(self.shares.names)
        for name in (each.decode("utf-8", "replace") for each in names):
            if name not in known:
                self.shares.hold(name, self._own_entry(name), (0.0, 0.0))
        self.shares.part, self.shares.is_raising = float(part), False
        self.shares.keep()
        self._news |= self._books

    def _look_for_unfair_shares(self) -> None:
        """Write books anew in which this gateway's share is not what is fair, since others have used something."""
        now = self.wall()
        news, self._news = self._news, {name: self._books[name] for name in self._given if name in self._books}
        for name, book in news.items():
            own = self._own_entry(name)
            fair = self._fair(book, own, now)
            for held, should, most in zip(self.shares.room(book, own, now), fair, self._most(book), strict=True):
                if held > should + _UNFAIR * should + 1e-9 or held < min(should - _UNFAIR * should, most) - 1e-9:
                    self._changed.setdefault(name, book)

    def _learn(self, name: str, entries: Mapping[str, Entry]) -> None:
        """Note entries of other gateways, unless newer ones are known: answers and messages overtake each other."""
        known = self._others.setdefault(name, {})
        for gateway, entry in entries.items():
            if gateway not in known or known[gateway].sequence < entry.sequence:
                known[gateway] = entry
                self._unwritten = True

    def _follow(self, now: float, began: float) -> None:
        """Follow the store's clock; the answer was made somewhere between `began` and now."""
        offset = now - (began + self._local_wall()) / 2
        # Small differences are those of the way; entries should not move with them.
        if abs(offset - self._offset) > 0.1:
            self._offset = offset

    def _counting(self, name: str) -> list[str]:
        """The other gateways whose entries in a book count now, and so have to be in the store."""
        now = self.wall()
        return [gateway for gateway, entry in self._others.get(name, {}).items() if entry.counts(now - MINUTE_S)]

    def _acknowledged_at(self, name: str) -> int:
        """The sequence of what the store has of this gateway at least, while that counts."""
        entry = self._acknowledged.get(name, Entry())
        return entry.sequence if entry.counts(self.wall() - MINUTE_S) else 0

    def _entry(self, name: str) -> Entry:
        """This gateway's figures, to be written."""
        self._sequence = max(self._sequence + 1, int(self._local_wall() * 1000))
        return msgspec.structs.replace(self._own_entry(name), sequence=self._sequence)

    def _own_entry(self, name: str) -> Entry:
        keeper = self._keeper(name)
        return Entry() if keeper is None else keeper.entry(name)

    def _kept_books(self) -> dict[str, Book]:
        """The books that this gateway has used."""
        return {book.name: book for keeper in self._keepers.values() for book in keeper.books()}

    def _keeper(self, name: str) -> BookKeeper | None:
        return self._keepers.get(name.partition(":")[0])

    # What the store may have lost

    def _on_connect(self) -> None:
        self._restored = False
        self._report_soon()

    def _on_lost(self, damaged: Sequence[bytes], *, is_marked: bool) -> None:
        """The store was emptied, or has dropped an entry, while it was in use; or another gateway has noticed that
        (`is_marked`)."""
        _report_damage(damaged)
        if not is_marked:
            self._lost = True
            logger.warning("the store has lost budgets; they are brought back")
        self._on_connect()

    async def _restore(self) -> None:
        """Bring all that is known to the store, and learn what is not."""
        life, names = await self._store.run_script(NAMES, [_INDEX, _LIFE], limit_s=BACKGROUND_LIMIT_S)
        if not self.shares.is_kept:
            self.shares.clear()
        self._forget_old()
        is_fresh = self._lost or not await self._is_this_life(life)
        next_life = secrets.token_hex(8)
        await self._store.execute("SCRIPT LOAD", _life_script(next_life), limit_s=BACKGROUND_LIMIT_S)
        self._spare = -1.0
        books = self._kept_books()
        known = [name.decode("utf-8", "replace") for name in names]
        every = list(dict.fromkeys([*books, *self._others, *self.shares.names, *known]))
        chunks = [every[start : start + _CHUNK] for start in range(0, max(1, len(every)), _CHUNK)]
        # A process that was just started first learns what it has reported before.
        steps = chunks if self._was_restored else [*chunks, *chunks]
        for number, chunk in enumerate(steps):
            self._was_restored = self._was_restored or number >= len(chunks)
            ask = {
                "id": self._own,
                "gateways": sorted(self._gateways - {self._own}),
                "part": self.shares.part,
                "asking": self._store.prefix + _ASKING,
                "first": number == 0,
                "last": number == len(steps) - 1,
                "fresh": is_fresh,
                "life": life.decode("utf-8", "replace"),
                "next_life": next_life,
            }
            await self._restore_some(ask, chunk, books)
        self._changed |= books
        self._lost = False
        self.shares.is_raising = False
        self.shares.keep()
        self._restored = True

    async def _is_this_life(self, life: bytes) -> bool:
        """Whether the server that holds the store's entries is the process that they were written to: then it knows a script
        that is named in them. Another one, or one that was started again, may have lost the last ones."""
        sha = hashlib.sha1(_life_script(life.decode("utf-8", "replace")).encode(), usedforsecurity=False).hexdigest()
        [found] = await self._store.execute("SCRIPT EXISTS", sha, limit_s=BACKGROUND_LIMIT_S)
        return bool(found)

    async def _restore_some(self, ask: dict[str, Any], names: Sequence[str], books: Mapping[str, Book]) -> None:
        asked, now = [], self.wall()
        for name in names:
            entries, share = dict(self._others.get(name, {})), (0.0, 0.0)
            own = self._entry(name)
            if self._was_restored:
                entries[self._own] = own
            if (book := books.get(name) or self._books.get(name)) is not None:
                share = self.shares.room(book, own, now)
            self.shares.hold(name, own, share)
            self._asked_at[name] = 0
            asked.append({"name": name, "entries": entries, "share": share, "ttl": _ttl(name)})
        self.shares.keep_lowered(names, books, now)
        keys = [_SEEN, _INDEX, _PARTS, _LIFE, *(_key(name) for name in names)]
        began = self._local_wall()
        answer = await self._store.run_script(
            RESTORE, keys, msgspec.json.encode({**ask, "books": asked}), limit_s=BACKGROUND_LIMIT_S
        )
        if answer[0] == LOST:
            self._on_lost(answer[1], is_marked=True)
            raise StoreAway
        moment, found, damaged, dropped = answer
        self._follow(float(moment), began)
        _report_damage(damaged)
        if dropped:
            self.shares.clear()
        for name, fields in zip(names, found, strict=True):
            known = read_entries(fields)
            own_entry = known.pop(self._own, None)
            if own_entry is not None:
                self._sequence = max(self._sequence, own_entry.sequence)
                if not self._was_restored and (keeper := self._keeper(name)) is not None:
                    keeper.adopt(name, own_entry)
            if known:
                self._learn(name, known)

    def _forget_old(self) -> None:
        """Forget books of other days, and minutes that are over."""
        current = self._kept_books()

        def is_over(name: str) -> bool:
            return name not in current and not self._is_current(name)

        known: tuple[dict[str, Any], ...] = (
            self._others, self._absent, self._acknowledged, self._asked_at, self._books, self._news, self._given
        )  # fmt: skip
        for each in known:
            for name in [name for name in each if is_over(name)]:
                del each[name]
        self.shares.forget(is_over)

    def _is_current(self, name: str) -> bool:
        keeper = self._keeper(name)
        return keeper is not None and keeper.is_current(name)

    def _on_message(self, message: bytes) -> None:
        """Another gateway's figures have changed."""
        words = message.split(b" ", 4)
        if len(words) < 5 or words[0] == self._own.encode():
            return
        own, value, _, rules, name = words
        entry, book = read_entry(value), Book.read(name, rules)
        if entry is None or book is None:
            return
        id_ = own.decode("ascii", "replace")
        self._learn(book.name, {id_: entry})
        self._news[book.name] = self._books.setdefault(book.name, book)
        self._wake.set()
        for want in self._asking:
            want.asked.discard((book.name, id_))
            if not want.asked:
                want.answered.set()

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
            now, own = self.wall(), self._own_entry(book.name)
            room = self.shares.room(book, own, now)
            self.shares.hold(book.name, own, (min(room[0], share[0]), min(room[1], share[1])))
            self._asked_at[book.name] = 0
            self._given[book.name] = self._clock() + _GIVEN_S, share
            self._changed[book.name] = self._books.setdefault(book.name, book)
            self._report_soon()

    def _keep(self, *, now: bool = False) -> None:
        """Write what is known to the file, now and then."""
        at = self._clock()
        if now or (self._unwritten and at - self._written_at >= _TICK_S):
            self._unwritten, self._written_at = False, at
            self._forget_old()
            self.shares.keep()
            self._file.write(
                lambda: _Kept(written=self._local_wall(), gateways=tuple(sorted(self._gateways)), others=self._others)
            )


def _report_damage(names: Sequence[bytes]) -> None:
    for name in names:
        logger.warning("a damaged entry in the store was removed: %s", name.decode("utf-8", "replace"))


def _asked(parts: Sequence[Charge], places: Mapping[str, int]) -> list[dict[str, object]]:
    return [{"book": places[part.book.name], "rules": part.rules, "amounts": part.amounts} for part in parts]


def _sum(pairs: Iterable[Pair]) -> Pair:
    first = second = 0.0
    for a, b in pairs:
        first, second = first + a, second + b
    return first, second


def _key(name: str) -> str:
    return f"budget:{name}"


def _life_script(life: str) -> str:
    return f"return '{life}'"


def _ttl(name: str) -> int:
    return MINUTE_TTL_S if name.startswith("minute:") else DAY_TTL_S
