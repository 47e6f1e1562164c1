"""Brings to the store what it may have lost of the budgets, and learns from it what is not known here."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from hostler.gateway.cluster.budget_books import MINUTE_BOOKS, Book, read_entries
from hostler.gateway.cluster.ledger_layout import (
    ASKING,
    DAY_TTL_S,
    INDEX,
    LIFE,
    LOST,
    MINUTE_TTL_S,
    PARTS,
    SEEN,
    key_of,
)
from hostler.gateway.cluster.ledger_records import LedgerRecords
from hostler.gateway.cluster.ledger_scripts import NAMES, RESTORE
from hostler.gateway.cluster.ledger_shares import Shares
from hostler.gateway.cluster.store import BACKGROUND_LIMIT_S, Store, StoreAway

logger = logging.getLogger(__name__)

#: Books that are restored, or written, in one step.
CHUNK = 50
#: Stands in the store's life between the name of the server process and what is new whenever it has lost something.
_AFTER_SERVER: Final = "."


class StoreEmptied(StoreAway):
    """The store was emptied meanwhile."""


class LedgerRestore:
    """Restores the ledger of the gateway `own` after each connection; the first time it also learns what an earlier process of
    it had reported."""

    def __init__(self, store: Store, own: str, records: LedgerRecords, shares: Shares) -> None:
        self._store = store
        self._own = own
        self._records = records
        self._shares = shares
        self._was_restored = False
        self._server = ""

    async def run(self, books: Mapping[str, Book], *, is_lost: bool) -> None:
        """Restore all; `books` are those with known limits. `is_lost`: the store has lost entries. Raises
        `StoreAway` and `StoreEmptied`."""
        life, names = await self._store.run_script(NAMES, [INDEX, LIFE], limit_s=BACKGROUND_LIMIT_S)
        if not self._shares.is_kept:
            self._shares.clear()
        written_to = life.decode("utf-8", "replace").partition(_AFTER_SERVER)[0]
        self._server = await self._find_server(written_to or self._server)
        is_fresh = is_lost or written_to != self._server
        next_life = f"{self._server}{_AFTER_SERVER}{secrets.token_hex(4)}"
        known = [name.decode("utf-8", "replace") for name in names]
        used = self._records.used_books()
        every = list(dict.fromkeys([*used, *self._records.others, *self._shares.names, *known]))
        chunks = [every[start : start + CHUNK] for start in range(0, max(1, len(every)), CHUNK)]
        # A process that was just started first learns what it has reported before.
        steps = chunks if self._was_restored else [*chunks, *chunks]
        for number, chunk in enumerate(steps):
            self._was_restored = self._was_restored or number >= len(chunks)
            ask = {
                "id": self._own,
                "gateways": sorted(self._records.gateways - {self._own}),
                "part": self._shares.part,
                "asking": self._store.prefix + ASKING,
                "first": number == 0,
                "last": number == len(steps) - 1,
                "fresh": is_fresh,
                "life": life.decode("utf-8", "replace"),
                "next_life": next_life,
            }
            await self._restore_some(ask, chunk, {**books, **used})
        self._shares.is_raising = False
        self._shares.keep()

    async def _find_server(self, name: str) -> str:
        """The name of the server process. It is the one that was called so, to which the store's entries were written, if it knows a
        script by that name; another one, or one that was started again, may have lost the last ones, and gets a name."""
        sha = hashlib.sha1(_naming_script(name).encode(), usedforsecurity=False).hexdigest()
        [is_known] = await self._store.execute("SCRIPT EXISTS", sha, limit_s=BACKGROUND_LIMIT_S)
        if is_known:
            return name
        name = secrets.token_hex(8)
        # Not loaded, but run: Redis 6 passes scripts that are loaded on to its replicas, and to its file.
        await self._store.execute("EVAL", _naming_script(name), 0, limit_s=BACKGROUND_LIMIT_S)
        return name

    async def _restore_some(self, ask: dict[str, Any], names: Sequence[str], books: Mapping[str, Book]) -> None:
        records, asked, now = self._records, [], self._records.wall()
        for name in names:
            entries, share = records.to_restore(name), (0.0, 0.0)
            own = records.next_entry(name)
            if self._was_restored:
                entries[self._own] = own
            if (book := books.get(name)) is not None:
                share = self._shares.room(book, own, now)
            self._shares.hold(name, own, share)
            # A share goes together with the figures that it is beyond.
            sent_share = share if self._was_restored else None
            asked.append({"name": name, "entries": entries, "share": sent_share, "ttl": _ttl(name)})
        self._shares.keep_lowered(names, books, now)
        keys = [SEEN, INDEX, PARTS, LIFE, *(key_of(name) for name in names)]
        began = records.local_wall()
        answer = await self._store.run_script(
            RESTORE, keys, msgspec.json.encode({**ask, "books": asked}), limit_s=BACKGROUND_LIMIT_S
        )
        if answer[0] == LOST:
            log_damage(answer[1])
            raise StoreEmptied
        moment, found, damaged, dropped = answer
        records.follow(float(moment), began)
        log_damage(damaged)
        if dropped:
            self._shares.clear()
        for name, fields in zip(names, found, strict=True):
            known = read_entries(fields)
            own_entry = known.pop(self._own, None)
            if own_entry is not None:
                records.adopt(name, own_entry, figures=not self._was_restored)
            if known:
                records.learn(name, known)


def log_damage(names: Sequence[bytes]) -> None:
    """Say that these entries were not those of gateways, and have been removed."""
    for name in names:
        logger.warning("a damaged entry in the store was removed: %s", name.decode("utf-8", "replace"))


def _naming_script(server: str) -> str:
    return f"return '{server}'"


def _ttl(name: str) -> int:
    return MINUTE_TTL_S if name.startswith(MINUTE_BOOKS) else DAY_TTL_S
