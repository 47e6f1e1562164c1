"""What all gateways together have used of budgets: each writes its own figures, and one step in the store adds all and checks.

The store only holds copies: every gateway knows the figures of all, so that a store that comes back empty is filled again,
and nothing is counted twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import msgspec

from hostler.gateway.cluster.budget_books import (
    MINUTE_S,
    Book,
    BookKeeper,
    Charge,
    Others,
    Pair,
    read_entry,
    read_gateway,
    read_share,
)
from hostler.gateway.cluster.ledger_layout import ASKING, CHANNEL, GONE_S, MINUTE_TTL_S, PARTS, SEEN
from hostler.gateway.cluster.ledger_records import LedgerRecords, sum_of
from hostler.gateway.cluster.ledger_restore import LedgerRestore, StoreEmptied, log_damage
from hostler.gateway.cluster.ledger_scripts import LEAVE, NAMES, RAISE, RESTORE
from hostler.gateway.cluster.ledger_shares import Shares
from hostler.gateway.cluster.ledger_step_script import ASKED, STEP
from hostler.gateway.cluster.ledger_steps import LedgerSteps
from hostler.gateway.cluster.ledger_wants import Want
from hostler.gateway.cluster.store import BACKGROUND_LIMIT_S, REQUEST_LIMIT_S, Store, StoreAway

logger = logging.getLogger(__name__)

#: How often a gateway without requests reports that it is there, and what it has not yet reported, in seconds.
_TICK_S, _LAZY_S = 1.0, 0.25
#: How often books are written though nothing has changed, before the store forgets them, in seconds.
_REFRESH_S = MINUTE_TTL_S / 3
#: After a pause of this length the store may soon have given this gateway's share to the others, in seconds.
_FROZEN_S = GONE_S / 2


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
        self._steps = LedgerSteps(
            store,
            own,
            self._records,
            self.shares,
            clock=clock,
            report_soon=self._report_soon,
            on_lost=self._on_lost,
            bring_back=self._on_connect,
        )
        self._asking: list[Want] = []
        self._more_calls = 0
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
            withheld=self._beyond_share(book, now) if away else self._steps.absent.get(book.name, (0.0, 0.0)),
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
            self._steps.changed[book.name] = book
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
                await self._steps.make(wants, max(self._limit_s / 2, self._limit_s - before_s))
            except StoreAway:
                self._give_up()
            except Exception:  # no request depends on it, and so no gateway
                self._begin_anew()
                for want in wants:
                    want.done.set()
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
                        self._steps.changed = self._records.used_books() | self._steps.changed
                        self._records.is_changed = True  # files of long ago say nothing of other gateways
                    self._steps.look_for_unfair_shares()
                    await self._until_decided()
                    await self._steps.make((), BACKGROUND_LIMIT_S)
                    if (
                        self.shares.is_raising
                        or self.shares.part < min(1 / len(self._records.gateways), self._steps.spare) - 1e-9
                    ):
                        await self._steps.raise_part()
            except StoreAway:
                pass
            except Exception:  # as above
                self._begin_anew()
            self._keep()

    def _begin_anew(self) -> None:
        """Leave the store out until all was brought to it again, after an error that is none of the connection."""
        logger.exception("unhandled exception in a step of the budgets; going on with local values")
        self._restored = False

    async def _until_decided(self) -> None:
        """Entries that are written now would lack what a step is about to reserve."""
        while not self._decided.is_set():
            await self._decided.wait()

    async def _leave(self, *, was_connected: bool) -> None:
        try:
            if was_connected:
                await self._steps.make((), BACKGROUND_LIMIT_S)
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

    # What the store may have lost

    def _on_connect(self) -> None:
        self._restored = False
        self._report_soon()

    def _on_lost(self, damaged: Sequence[bytes], is_marked: bool) -> None:
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
        self._steps.spare = -1.0
        try:
            await self._restore.run(self._steps.books, is_lost=self._lost)
        except StoreEmptied:
            self._on_connect()
            raise
        self._steps.changed |= self._records.used_books()
        self._lost = False
        self._restored = True

    def _forget_old(self) -> None:
        """Forget books of other days, and minutes that are over."""
        is_over = self._records.is_over()
        self._records.forget(is_over)
        self.shares.forget(is_over)
        self._steps.forget(is_over)

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
        self._steps.news[book.name] = self._steps.books.setdefault(book.name, book)
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
            self._steps.give(book, share)
            self._report_soon()

    def _keep(self, *, now: bool = False) -> None:
        """Write what is known to the files, now and then."""
        at = self._clock()
        if now or (self._records.is_changed and at - self._written_at >= _TICK_S):
            self._written_at = at
            self._forget_old()
            self.shares.keep()
            self._records.keep()
