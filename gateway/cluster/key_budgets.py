"""Limits of keys over all gateways of a cluster: each counts its own requests, and the ledger adds all."""

from __future__ import annotations

from pathlib import Path

import msgspec

from hostler.adapters.errors import RateLimited
from hostler.gateway.backends.cost import ROUNDING
from hostler.gateway.cluster.budget_books import NO_LIMIT, Book, Charge, Entry, Rule
from hostler.gateway.cluster.ledger import Ledger
from hostler.gateway.cluster.store import StoreAway
from hostler.gateway.context import KeyRules
from hostler.gateway.key_usage import KeyAdmission, KeyFigures, KeyReservation, KeyUsage

_DAY, _MINUTE = "day", "minute"


class SharedKeyUsage(KeyUsage):
    """This gateway's counts, held against the limits together with those of all other gateways.

    While the store is away a key may use this gateway's share of what was left: an equal part for each gateway, and for its
    last request more than is left of that. `has_daily_limit`: requests may reserve money of all keys as well.
    """

    def __init__(self, file: Path | None, ledger: Ledger, *, has_daily_limit: bool) -> None:
        super().__init__(file, ledger.wall)
        self._ledger = ledger
        self._has_daily_limit = has_daily_limit
        self._rules: dict[str, KeyRules] = {}
        ledger.add_keeper(_DAY, self)
        ledger.add_keeper(_MINUTE, self)

    async def admit(
        self, key: str, rules: KeyRules, *, prompt_tokens: int, dollars: float, has_local: bool
    ) -> KeyAdmission:
        """Reserve in one step at the store."""
        self._rules[key] = rules
        day, minute = self._books(key, rules)
        tokens = self._expected_tokens(self._current(key), prompt_tokens)
        required = [
            Charge(
                book=minute,
                rules=(_rule(rules.requests_per_minute, "fit"), _rule(rules.tokens_per_minute, "some")),
                amounts=(1, tokens),
            ),
            Charge(book=day, rules=(_rule(rules.tokens_per_day, "some"), ""), amounts=(tokens, 0)),
        ]
        optional: list[Charge] = []
        if dollars > 0:
            costs = Charge(book=day, rules=("", _rule(rules.dollars_per_day, "alone")), amounts=(0, dollars))
            (optional if has_local else required).append(costs)
        reserved: list[KeyReservation] = []
        try:
            result = await self._ledger.reserve(
                required,
                optional,
                lambda affordable: reserved.append(self._set_aside(key, tokens, dollars if affordable else 0.0)),
            )
        except StoreAway:
            return await super().admit(key, rules, prompt_tokens=prompt_tokens, dollars=dollars, has_local=has_local)
        except BaseException:
            for each in reserved:  # at the moment when the client left
                self.settle(each, prompt_tokens=0, answer_tokens=0, dollars=0.0)
            raise
        if not reserved:
            return self._refused(key, rules, prompt_tokens=prompt_tokens, dollars=0.0 if has_local else dollars)
        return KeyAdmission(limits=self.limits(key, rules), reservation=reserved[0], local_only=result == 1)

    def _refused(self, key: str, rules: KeyRules, *, prompt_tokens: int, dollars: float) -> KeyAdmission:
        """Why the store has refused a request."""
        refusal = RateLimited("this API key has reached one of its limits", retry_after_s=1.0)
        try:
            self._check(key, rules, prompt_tokens=prompt_tokens, dollars=dollars)
        except RateLimited as error:
            refusal = error
        return KeyAdmission(
            limits=self.limits(key, rules), refused=refusal.message, retry_after_s=refusal.retry_after_s or 0.0
        )

    def reserve(self, key: str, rules: KeyRules, *, prompt_tokens: int, dollars: float) -> KeyReservation:
        reservation = super().reserve(key, rules, prompt_tokens=prompt_tokens, dollars=dollars)
        self._ledger.changed(self._books(key, rules), soon=False)
        return reservation

    def settle(self, reservation: KeyReservation, *, prompt_tokens: int, answer_tokens: int, dollars: float) -> None:
        super().settle(reservation, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens, dollars=dollars)
        key = reservation.key
        # A request that has reserved money as well has made its two calls.
        soon = not (reservation.dollars > 0 and self._has_daily_limit)
        self._ledger.changed(self._books(key, self._rules.get(key, KeyRules())), soon=soon)

    def allows_cost(self, key: str, rules: KeyRules, dollars: float) -> bool:
        if super().allows_cost(key, rules, dollars):
            return True
        assert rules.dollars_per_day is not None, "costs without a limit are allowed"
        used = self._total(key, rules)
        # Without the store anything that is left of the share suffices, since shares are small.
        return self._ledger.others(self._books(key, rules)[0]).away and (
            used.dollars + used.reserved_dollars < rules.dollars_per_day - ROUNDING
        )

    def figures(self) -> dict[str, KeyFigures]:
        """Today's figures of all gateways by the names of keys."""
        prefix = f"{_DAY}:{self._today()}:"
        keys = dict.fromkeys([*self._keys, *(name.removeprefix(prefix) for name in self._ledger.names(prefix))])
        return {key: self._with_others(key, self._rules.get(key, KeyRules()), withheld=False) for key in keys}

    def _total(self, key: str, rules: KeyRules) -> KeyFigures:
        return self._with_others(key, rules, withheld=True)

    def _with_others(self, key: str, rules: KeyRules, *, withheld: bool) -> KeyFigures:
        own = self._current(key)
        day, minute = (self._ledger.others(book) for book in self._books(key, rules))
        recent = [*own.recent, *((at, int(requests), int(tokens)) for at, requests, tokens in minute.window)]
        tokens, dollars = day.used
        if withheld:
            tokens, dollars = tokens + day.withheld[0], dollars + day.withheld[1]
            if any(minute.withheld):
                recent.append((self._wall(), int(minute.withheld[0]), int(minute.withheld[1])))
        return msgspec.structs.replace(
            own,
            requests=own.requests + day.open,
            tokens=own.tokens + int(tokens),
            dollars=own.dollars + dollars,
            reserved_tokens=own.reserved_tokens + int(max(day.reserved[0], minute.reserved[1])),
            reserved_dollars=own.reserved_dollars + day.reserved[1],
            recent=tuple(sorted(recent)),
        )

    def _books(self, key: str, rules: KeyRules) -> tuple[Book, Book]:
        return (
            Book(
                name=f"{_DAY}:{self._today()}:{key}",
                limits=(_limit(rules.tokens_per_day), _limit(rules.dollars_per_day)),
            ),
            Book(
                name=f"{_MINUTE}:{key}",
                limits=(_limit(rules.requests_per_minute), _limit(rules.tokens_per_minute)),
                by_minute=True,
            ),
        )

    # What the ledger asks

    def entry(self, book: str) -> Entry:
        kind, _, rest = book.partition(":")
        if kind == _MINUTE:
            used = self._current(rest)
            window = tuple((at, float(requests), float(tokens)) for at, requests, tokens in used.recent)
            return Entry(reserved_b=used.reserved_tokens, window=window)
        day, _, key = rest.partition(":")
        used = self._current(key)
        if used.day != day:
            return Entry()
        return Entry(
            used_a=used.tokens,
            used_b=used.dollars,
            reserved_a=used.reserved_tokens,
            reserved_b=used.reserved_dollars,
            open=used.requests,
        )

    def books(self) -> list[Book]:
        return [book for key in self._keys for book in self._books(key, self._rules.get(key, KeyRules()))]

    def is_current(self, book: str) -> bool:
        return book.startswith((f"{_MINUTE}:", f"{_DAY}:{self._today()}:"))

    def adopt(self, book: str, entry: Entry) -> None:
        kind, _, rest = book.partition(":")
        key = rest if kind == _MINUTE else rest.partition(":")[2]
        used = self._current(key)
        if kind == _MINUTE:
            if not used.recent:
                recent = tuple((at, int(requests), int(tokens)) for at, requests, tokens in entry.window)
                if entry.reserved_b > 0:
                    recent = (*recent, (self._wall(), 0, int(entry.reserved_b)))
                self._keys[key] = msgspec.structs.replace(used, recent=recent)
        elif self.is_current(book):
            self._keys[key] = msgspec.structs.replace(
                used,
                requests=max(used.requests, entry.open),
                tokens=max(used.tokens, int(entry.used_a + entry.reserved_a) - used.reserved_tokens),
                dollars=max(used.dollars, entry.used_b + entry.reserved_b - used.reserved_dollars),
            )


def _rule(limit: float | None, rule: Rule) -> Rule:
    return "" if limit is None else rule


def _limit(limit: float | None) -> float:
    return NO_LIMIT if limit is None else float(limit)
