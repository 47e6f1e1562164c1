"""The books of budgets that gateways share: what is written in them, and what a request is charged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal, Protocol

import msgspec

from hostler.gateway.cluster.ledger_layout import DAY_TTL_S, MINUTE_TTL_S

Pair = tuple[float, float]
#: How a request has to fit the limit of a measure: with its amount, if anything is left, with its amount or as the first one,
#: or as the only one; or not at all.
Rule = Literal["", "fit", "some", "alone", "lone"]
#: A limit that there is not.
NO_LIMIT = -1.0
#: Sums of shares are off by less than this.
ROUNDING = 1e-9
#: How long a window is, in seconds.
MINUTE_S = 60.0


#: How the names of books begin whose figures are those of the last minute.
MINUTE_BOOKS = "minute:"


#: What gateways are called. `is_id` in the scripts is the same.
_GATEWAY: Final = re.compile(rb"[A-Za-z0-9_-]{1,64}")


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One gateway's figures of a book, which has two measures. `window` are those of the last minute, each with its moment."""

    sequence: int = 0
    used_a: float = 0.0
    used_b: float = 0.0
    reserved_a: float = 0.0
    reserved_b: float = 0.0
    open: int = 0
    window: tuple[tuple[float, float, float], ...] = ()

    @property
    def used(self) -> Pair:
        return self.used_a, self.used_b

    @property
    def reserved(self) -> Pair:
        return self.reserved_a, self.reserved_b

    def total(self, now: float) -> Pair:
        """All of it that counts now."""
        window = [part for part in self.window if part[0] > now - MINUTE_S]
        return (
            self.used_a + self.reserved_a + sum(part[1] for part in window),
            self.used_b + self.reserved_b + sum(part[2] for part in window),
        )

    def counts(self, since: float) -> bool:
        """Whether it holds anything that still counts: of its window only what is later than `since`."""
        return any((*self.used, *self.reserved, self.open)) or self.is_recent(since)

    def is_recent(self, since: float) -> bool:
        """Whether its window has anything that is later."""
        return any(at > since for at, _, _ in self.window)

    def of_gone(self, book: str) -> Entry:
        """What it counts for once its gateway is gone: what was reserved is used, or no more than a minute ago."""
        (used_a, used_b), (reserved_a, reserved_b) = (
            self.used,
            (0.0, 0.0) if book.startswith(MINUTE_BOOKS) else self.reserved,
        )
        return msgspec.structs.replace(
            self, used_a=used_a + reserved_a, used_b=used_b + reserved_b, reserved_a=0.0, reserved_b=0.0
        )


def read_entries(fields: Sequence[bytes]) -> dict[str, Entry]:
    """The entries of a book by gateway, without their shares."""
    found = {}
    for id_, value in zip(fields[::2], fields[1::2], strict=True):
        if (gateway := read_gateway(id_)) is not None and (entry := read_entry(value)) is not None:
            found[gateway] = entry
    return found


def read_gateway(value: bytes) -> str | None:
    """The id of a gateway; `None` for what none is called."""
    return value.decode() if _GATEWAY.fullmatch(value) else None


def read_entry(value: bytes) -> Entry | None:
    """`None` for what no gateway of this release has written."""
    try:
        return msgspec.json.decode(value, type=Entry)
    except (msgspec.MsgspecError, RecursionError):
        return None


def read_share(value: bytes) -> Pair | None:
    """`None` for what no gateway of this release has written."""
    try:
        return msgspec.json.decode(value, type=tuple[float, float])
    except (msgspec.MsgspecError, RecursionError):
        return None


class Book(msgspec.Struct, frozen=True, kw_only=True):
    """Figures with the same limits. `by_minute`: its first measure counts when a request begins."""

    name: str
    limits: Pair
    by_minute: bool = False

    @property
    def rules(self) -> bytes:
        """All but the name, for other gateways."""
        return msgspec.json.encode((*self.limits, self.by_minute))

    @staticmethod
    def read(name: bytes, rules: bytes) -> Book | None:
        """The book that another gateway has reported; `None` for what no gateway of this release has written."""
        try:
            a, b, by_minute = msgspec.json.decode(rules, type=tuple[float, float, bool])
            return Book(name=name.decode(), limits=(a, b), by_minute=by_minute)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return None

    @property
    def ttl(self) -> int:
        """How long the store keeps it, in seconds."""
        return MINUTE_TTL_S if self.by_minute else DAY_TTL_S


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """What a request would use of one book."""

    book: Book
    rules: tuple[Rule, Rule]
    amounts: Pair


class Others(msgspec.Struct, frozen=True, kw_only=True):
    """What other gateways have used of a book. `withheld` is what they may use without the store: those that do not have it
    now, or all of them if this gateway has to go by its share, as without the store (`away`). `open` are all requests that they
    have counted, `in_progress` those of gateways that may still serve them."""

    used: Pair
    reserved: Pair
    open: int
    in_progress: int
    window: tuple[tuple[float, float, float], ...]
    withheld: Pair
    away: bool


class BookKeeper(Protocol):
    """What knows this gateway's figures of the books whose names begin in one way."""

    def entry(self, book: str) -> Entry:
        """The figures of a book."""
        ...

    def books(self) -> Sequence[Book]:
        """The books in use."""
        ...

    def is_current(self, book: str) -> bool:
        """Whether a book still counts."""
        ...

    def adopt(self, book: str, entry: Entry) -> None:
        """Count at least what an earlier process of this gateway had reported."""
        ...
