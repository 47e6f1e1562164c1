"""What all gateways together have used of budgets: each writes its own figures, and one step in the store adds all and checks.

The store only holds copies: every gateway knows the figures of all, so that a store that comes back empty is filled again,
and nothing is counted twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec

from hostler.gateway.cluster.budget_books import (
    Book,
    BookKeeper,
    Charge,
    Entry,
    Others,
    Pair,
    read_entries,
    read_entry,
)
from hostler.gateway.cluster.ledger_scripts import DAY_TTL_S, GONE_S, LEAVE, LOST, MINUTE_TTL_S, NAMES, RESTORE, STEP
from hostler.gateway.cluster.store import BACKGROUND_LIMIT_S, REQUEST_LIMIT_S, Store, StoreAway
from hostler.supervisor.state_store import JsonStore

logger = logging.getLogger(__name__)

_CHANNEL = "budgets"
_SEEN, _INDEX = "budgets:seen", "budgets:index"
_MINUTE_S = 60.0
#: How often a gateway without requests reports that it is there, and what it has not yet reported, in seconds.
_TICK_S, _LAZY_S = 1.0, 0.25
#: Books that are restored, or written, in one step.
_CHUNK = 50


class _Want:
    """A request that waits to be admitted. `apply` notes what has been reserved for it, before anything else is written."""

    def __init__(self, required: Sequence[Charge], optional: Sequence[Charge], apply: Callable[[bool], None]) -> None:
        self.required = required
        self.optional = optional
        self.apply = apply
        self.done = anyio.Event()
        self.abandoned = False
        #: 0: refused; 1: what is required is reserved; 2: what is optional as well; `None`: the store is away.
        self.result: int | None = None


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of all gateways, over restarts. `written` is when, in seconds since the epoch."""

    written: float = 0.0
    gateways: tuple[str, ...] = ()
    others: dict[str, dict[str, Entry]] = {}
    sent: dict[str, Entry] = {}


class Ledger:
    """The books of a cluster. `run` until cancelled.

    `own` is this gateway's id, `wall` its clock in seconds since the epoch; `self.wall` follows the store's clock. A request
    waits for the store for `limit_s` at most.
    """

    scripts = (STEP, RESTORE, NAMES, LEAVE)

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
        self._sent: dict[str, Entry] = dict(kept.sent)
        self._withheld: dict[str, Pair] = {}
        self._keepers: dict[str, BookKeeper] = {}
        self._changed: dict[str, Book] = {}
        self._waiting: list[_Want] = []
        self._wake, self._wanted, self._decided = anyio.Event(), anyio.Event(), anyio.Event()
        self._decided.set()
        self._restored = self._was_restored = False
        self._unwritten, self._written_at = False, 0.0
        self._sequence = 0
        store.on_connect(self._on_connect)
        store.subscribe(_CHANNEL, self._on_message)

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

    def others(self, book: Book) -> Others:
        """What other gateways have used, as far as it is known."""
        now, entries = self.wall(), self._others.get(book.name, {}).values()
        window = tuple(part for entry in entries for part in entry.window if part[0] > now - _MINUTE_S)
        used = _sum(each.used for each in entries)
        reserved = _sum(each.reserved for each in entries)
        away = not self.connected
        if away:
            withheld = self._shares_of_others(book, used, reserved, window, now)
        else:
            withheld = self._withheld.get(book.name, (0.0, 0.0))
        return Others(
            used=used,
            reserved=reserved,
            open=sum(each.open for each in entries),
            window=window,
            withheld=withheld,
            away=away,
        )

    def names(self, prefix: str) -> list[str]:
        """The books of which other gateways have figures, and whose names begin so."""
        return [name for name in self._others if name.startswith(prefix)]

    def _shares_of_others(
        self, book: Book, used: Pair, reserved: Pair, window: Sequence[tuple[float, float, float]], now: float
    ) -> Pair:
        """Without the store each gateway may use an equal part of what was left when all knew of each other the last time."""
        sent = self._sent.get(book.name, Entry())
        rest = self._rest(book, used, reserved, (*window, *(part for part in sent.window if part[0] > now - _MINUTE_S)))
        gateways = len(self._gateways)
        left = (
            max(0.0, rest[0] - sent.used_a - sent.reserved_a) * (gateways - 1) / gateways,
            max(0.0, rest[1] - sent.used_b - sent.reserved_b) * (gateways - 1) / gateways,
        )
        return (float(int(left[0])) if book.whole[0] else left[0], float(int(left[1])) if book.whole[1] else left[1])

    @staticmethod
    def _rest(book: Book, used: Pair, reserved: Pair, window: Sequence[tuple[float, float, float]]) -> Pair:
        return (
            book.limits[0] - used[0] - reserved[0] - sum(part[1] for part in window),
            book.limits[1] - used[1] - reserved[1] - sum(part[2] for part in window),
        )

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
        self._waiting.append(want)
        self._wanted.set()
        try:
            await want.done.wait()
        finally:
            want.abandoned = True
        if want.result is None:
            raise StoreAway
        return want.result

    def changed(self, books: Sequence[Book], *, soon: bool) -> None:
        """Report what has changed in these books: at once if `soon`, else with the next step."""
        for book in books:
            self._changed[book.name] = book
        self._unwritten = True
        if soon:
            self._wake.set()

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
            with anyio.move_on_after(_LAZY_S if self._changed else _TICK_S):
                await self._wake.wait()
            self._wake = anyio.Event()
            try:
                if self._store.connected:
                    if not self._restored:
                        await self._restore()
                    # Entries that are written now would lack what is being reserved.
                    await self._decided.wait()
                    await self._step((), BACKGROUND_LIMIT_S)
            except StoreAway:
                pass
            self._keep()

    async def _leave(self) -> None:
        try:
            if self.connected:
                await self._step((), BACKGROUND_LIMIT_S)
                await self._store.run_script(LEAVE, [_SEEN], self._own, limit_s=BACKGROUND_LIMIT_S)
        except StoreAway:
            pass
        self._written_at = 0.0
        self._keep()

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
                self._wake.set()
        places = {name: place for place, name in enumerate(books)}
        ask = {
            "id": self._own,
            "channel": self._store.prefix + _CHANNEL,
            "books": [
                {
                    "name": book.name, "entry": self._entry(book.name), "limits": book.limits, "whole": book.whole,
                    "by_minute": book.by_minute, "ttl": book.ttl, "known": self._counting(book.name),
                }
                for book in books.values()
            ],
            "wants": [
                {"required": _asked(want.required, places), "optional": _asked(want.optional, places)}
                for want in wants
            ],
        }  # fmt: skip
        began = self._local_wall()
        try:
            keys = [_SEEN, _INDEX, *(_key(name) for name in books)]
            answer = await self._store.run_script(STEP, keys, msgspec.json.encode(ask), limit_s=limit_s)
            if answer[0] == LOST:
                self._on_lost(answer[1])
                raise StoreAway
        except BaseException:
            self._changed = {**books, **self._changed}
            for want in wants:
                want.done.set()
            raise
        self._take(answer, list(books.values()), wants, began)

    def _take(self, answer: Any, books: Sequence[Book], wants: Sequence[_Want], began: float) -> None:
        now, gateways, results, found, damaged = answer
        _report_damage(damaged)
        self._follow(float(now), began)
        self._gateways = {each.decode() for each in gateways} | {self._own}
        for book, (own, withheld, others) in zip(books, found, strict=True):
            self._sent[book.name] = msgspec.json.decode(own, type=Entry)
            self._withheld[book.name] = msgspec.json.decode(withheld, type=tuple[float, float])
            self._learn(book.name, read_entries(others))
        for want, result in zip(wants, results, strict=True):
            want.result = result
            if result and want.abandoned:
                self._changed |= {part.book.name: part.book for part in (*want.required, *want.optional)}
            elif result:
                want.apply(result == 2)
            want.done.set()
        self._unwritten = self._unwritten or bool(books)

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
        return [gateway for gateway, entry in self._others.get(name, {}).items() if entry.counts(now - _MINUTE_S)]

    def _entry(self, name: str) -> Entry:
        self._sequence = max(self._sequence + 1, int(self._local_wall() * 1000))
        keeper = self._keeper(name)
        return msgspec.structs.replace(Entry() if keeper is None else keeper.entry(name), sequence=self._sequence)

    def _keeper(self, name: str) -> BookKeeper | None:
        return self._keepers.get(name.partition(":")[0])

    # What the store may have lost

    def _on_connect(self) -> None:
        self._restored = False
        self._wake.set()

    def _on_lost(self, damaged: Sequence[bytes]) -> None:
        """The store was emptied, or has dropped an entry, while it was in use."""
        _report_damage(damaged)
        logger.warning("the store has lost budgets; they are brought back")
        self._on_connect()

    async def _restore(self) -> None:
        """Bring all that is known to the store, and learn what is not."""
        names: list[bytes] = await self._store.run_script(NAMES, [_INDEX], limit_s=BACKGROUND_LIMIT_S)
        self._forget_old()
        books = {book.name: book for keeper in self._keepers.values() for book in keeper.books()}
        every = list(dict.fromkeys([*books, *self._others, *(name.decode("utf-8", "replace") for name in names)]))
        for start in range(0, max(1, len(every)), _CHUNK):
            await self._restore_some(every[start : start + _CHUNK], books, first=not start)
        self._changed |= books
        self._restored = self._was_restored = True

    async def _restore_some(self, names: Sequence[str], books: Mapping[str, Book], *, first: bool) -> None:
        others = len(self._gateways) - 1
        asked = []
        for name in names:
            entries, share = dict(self._others.get(name, {})), (0.0, 0.0)
            if (book := books.get(name)) is not None:
                if others:
                    withheld = self.others(book).withheld
                    share = (withheld[0] / others, withheld[1] / others)
                if self._was_restored:
                    entries[self._own] = self._entry(name)
            asked.append({"name": name, "entries": entries, "share": share, "ttl": _ttl(name)})
        ask = {
            "id": self._own,
            "gateways": sorted(self._gateways),
            "returns": self._was_restored and first,
            "books": asked,
        }
        keys = [_SEEN, _INDEX, *(_key(name) for name in names)]
        began = self._local_wall()
        now, found, damaged = await self._store.run_script(
            RESTORE, keys, msgspec.json.encode(ask), limit_s=BACKGROUND_LIMIT_S
        )
        self._follow(float(now), began)
        _report_damage(damaged)
        for name, fields in zip(names, found, strict=True):
            known = read_entries(fields)
            own = known.pop(self._own, None)
            if own is not None:
                self._sequence = max(self._sequence, own.sequence)
                if not self._was_restored and (keeper := self._keeper(name)) is not None:
                    keeper.adopt(name, own)
            if known:
                self._learn(name, known)

    def _forget_old(self) -> None:
        """Forget books of other days, and minutes that are over."""
        current = {book.name for keeper in self._keepers.values() for book in keeper.books()}
        for known in (self._others, self._sent, self._withheld):
            for name in [name for name in known if name not in current and not self._is_current(name)]:
                del known[name]

    def _is_current(self, name: str) -> bool:
        keeper = self._keeper(name)
        return keeper is not None and keeper.is_current(name)

    def _on_message(self, message: bytes) -> None:
        """Another gateway's figures have changed."""
        own, _, rest = message.partition(b" ")
        value, _, name = rest.partition(b" ")
        id_ = own.decode("ascii", "replace")
        if id_ == self._own:
            return
        entry = read_entry(value)
        if entry is not None:
            self._learn(name.decode("utf-8", "replace"), {id_: entry})

    def _keep(self) -> None:
        """Write what is known to the file, now and then."""
        now = self._clock()
        if self._unwritten and now - self._written_at >= _TICK_S:
            self._unwritten, self._written_at = False, now
            self._forget_old()
            self._file.write(
                lambda: _Kept(
                    written=self._local_wall(),
                    gateways=tuple(sorted(self._gateways)),
                    others=self._others,
                    sent=self._sent,
                )
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


def _ttl(name: str) -> int:
    return MINUTE_TTL_S if name.startswith("minute:") else DAY_TTL_S
