"""What keys with limits have used, kept in a file over restarts, and whether one more request fits their limits."""

from __future__ import annotations

import datetime
import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import anyio
import msgspec

from hostler.adapters.errors import RateLimited
from hostler.adapters.rate_limits import RateLimit
from hostler.gateway.backends.cost import ROUNDING
from hostler.gateway.context import KeyRules
from hostler.gateway.gateway_settings import GatewaySettings
from hostler.gateway.state_files import state_file
from hostler.profiles.file_reading import home_path
from hostler.supervisor.state_store import JsonStore

_MINUTE_S = 60.0
#: Requests within this time count as one entry of the last minute, in seconds.
_ENTRY_S = 1.0
#: The length of an answer while nothing is known of a key's, in tokens, and the weight of a new one in the average.
_FIRST_ANSWER_TOKENS = 1000.0
_WEIGHT = 0.2
#: More tokens are no count that a backend could have meant.
_MOST_TOKENS = 10**9
#: When a request in progress may free what it has reserved, in seconds.
_SOON_S = 1.0
#: How often changes are written, in seconds. What is reserved is written at once.
_WRITE_INTERVAL_S = 1.0


class KeyFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a key has used on a day, and what its requests in progress have reserved, which counts as used after a crash.

    `recent` are the requests of the last minute: when, how many, and their tokens. `answer` is the usual length of an
    answer in tokens.
    """

    day: str = ""
    requests: int = 0
    tokens: int = 0
    dollars: float = 0.0
    reserved_tokens: int = 0
    reserved_dollars: float = 0.0
    recent: tuple[tuple[float, int, int], ...] = ()
    answer: float = _FIRST_ANSWER_TOKENS


class KeyReservation(msgspec.Struct, frozen=True, kw_only=True):
    """What a request may use, set aside until it is known what it has used."""

    id: int
    key: str
    tokens: int
    dollars: float


class KeyAdmission(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a request fits the limits of its key: without a `reservation`, `refused` says why not, and `retry_after_s`
    when it may.

    `local_only`: only local backends, which cost nothing. `limits` is what is left of the key's limits.
    """

    limits: tuple[RateLimit, ...] = ()
    reservation: KeyReservation | None = None
    local_only: bool = False
    refused: str = ""
    retry_after_s: float = 0.0


class KeyAccounts(Protocol):
    """Where requests of keys with limits are counted: in this process, or in another one."""

    async def admit(
        self, key: str, rules: KeyRules, *, prompt_tokens: int, dollars: float, has_local: bool
    ) -> KeyAdmission:
        """Count a request, and set aside what it may use. `dollars` is what it may cost at the dearest backend,
        `has_local` whether a local one could answer it, which is then left when the money does not suffice."""
        ...

    def settle(self, reservation: KeyReservation, *, prompt_tokens: int, answer_tokens: int, dollars: float) -> None:
        """The request has ended, and has used so much. Only the first call for a reservation counts."""
        ...


def usage_file(settings: GatewaySettings, environ: Mapping[str, str] = os.environ) -> Path:
    """The file as configured, or where such state is kept."""
    if settings.key_usage_file is not None:
        return home_path(settings.key_usage_file)
    return state_file("key-usage.json", environ)


def read_figures(file: Path, wall: float) -> dict[str, KeyFigures]:
    """Today's figures by the names of keys, as they are in the file."""
    found = JsonStore(file, dict[str, KeyFigures], contents="the usage of keys").read() or {}
    return {name: _on_day(each, _day(wall)) for name, each in found.items()}


class KeyUsage:
    """Counts for keys with limits. `wall` is in seconds since the epoch; a day ends at local midnight.

    A request is admitted as long as something of each limit is left, and reserves what it will probably use; so many at
    once exceed a limit by no more than one answer. Money is only spent as far as the estimate fits.
    """

    def __init__(self, file: Path | None, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._store = JsonStore(file, dict[str, KeyFigures], contents="the usage of keys")
        self._keys = {name: _after_crash(each, wall()) for name, each in (self._store.read() or {}).items()}
        self._open: set[int] = set()
        self._ids = itertools.count(1)
        self._changed = False

    async def run(self) -> None:
        """Write changes until cancelled."""
        try:
            while True:
                await anyio.sleep(_WRITE_INTERVAL_S)
                self.write()
        finally:
            self.write()

    def write(self) -> None:
        """Write what has changed."""
        if self._changed:
            self._changed = not self._store.write(lambda: self._keys)

    def figures(self) -> dict[str, KeyFigures]:
        """Today's figures by the names of keys."""
        return {name: self._current(name) for name in self._keys}

    async def admit(
        self, key: str, rules: KeyRules, *, prompt_tokens: int, dollars: float, has_local: bool
    ) -> KeyAdmission:
        """See `KeyAccounts`."""
        local_only = has_local and not self.allows_cost(key, rules, dollars)
        try:
            reservation = self.reserve(key, rules, prompt_tokens=prompt_tokens, dollars=0.0 if local_only else dollars)
        except RateLimited as error:
            return KeyAdmission(
                limits=self.limits(key, rules), refused=error.message, retry_after_s=error.retry_after_s or 0.0
            )
        return KeyAdmission(limits=self.limits(key, rules), reservation=reservation, local_only=local_only)

    def reserve(self, key: str, rules: KeyRules, *, prompt_tokens: int, dollars: float) -> KeyReservation:
        """Count a request, and set aside what it may use. Raises `RateLimited`."""
        tokens = self._check(key, rules, prompt_tokens=prompt_tokens, dollars=dollars)
        return self._set_aside(key, tokens, dollars)

    def _check(self, key: str, rules: KeyRules, *, prompt_tokens: int, dollars: float) -> int:
        """The tokens to set aside for a request that fits all limits. Raises `RateLimited`."""
        now, used = self._wall(), self._total(key, rules)
        if (limit := rules.requests_per_minute) is not None:
            excess = sum(requests for _, requests, _ in used.recent) + 1 - limit
            if excess > 0:
                wait_s = _until_freed(((at, requests) for at, requests, _ in used.recent), excess, now)
                raise _refusal(f"{limit} requests per minute", wait_s)
        tokens = self._expected_tokens(used, prompt_tokens)
        for left, text, wait_s in self._token_limits(used, rules, now):
            if left <= 0:
                raise _refusal(text, _SOON_S if left + used.reserved_tokens > 0 else wait_s)
            tokens = min(tokens, left)
        if not self.allows_cost(key, rules, dollars):
            raise _refusal(f"{rules.dollars_per_day:g} US dollars per day", self._wait_for_money(used, rules, now))
        return tokens

    @staticmethod
    def _expected_tokens(used: KeyFigures, prompt_tokens: int) -> int:
        return min(_MOST_TOKENS, prompt_tokens + round(used.answer))

    def _set_aside(self, key: str, tokens: int, dollars: float) -> KeyReservation:
        used = self._current(key)
        reservation = KeyReservation(id=next(self._ids), key=key, tokens=tokens, dollars=dollars)
        self._open.add(reservation.id)
        self._keys[key] = msgspec.structs.replace(
            used,
            requests=used.requests + 1,
            recent=_with_entry(used.recent, self._wall(), 1, 0),
            reserved_tokens=used.reserved_tokens + tokens,
            reserved_dollars=used.reserved_dollars + dollars,
        )
        self._changed = True
        self.write()
        return reservation

    def allows_cost(self, key: str, rules: KeyRules, dollars: float) -> bool:
        """Whether a request that may cost so much fits the day's limit. The first one of a day does, if it is alone."""
        if rules.dollars_per_day is None or dollars <= 0:
            return True
        used = self._total(key, rules)
        spent = used.dollars + used.reserved_dollars
        return spent + dollars <= rules.dollars_per_day + ROUNDING or (spent <= 0 and rules.dollars_per_day > 0)

    def settle(self, reservation: KeyReservation, *, prompt_tokens: int, answer_tokens: int, dollars: float) -> None:
        """See `KeyAccounts`."""
        if reservation.id not in self._open:
            return
        self._open.discard(reservation.id)
        used = self._current(reservation.key)
        prompt, answer = (min(max(0, tokens), _MOST_TOKENS) for tokens in (prompt_tokens, answer_tokens))
        self._keys[reservation.key] = msgspec.structs.replace(
            used,
            tokens=used.tokens + prompt + answer,
            dollars=used.dollars + max(0.0, dollars),
            recent=_with_entry(used.recent, self._wall(), 0, prompt + answer),
            reserved_tokens=max(0, used.reserved_tokens - reservation.tokens),
            reserved_dollars=max(0.0, used.reserved_dollars - reservation.dollars),
            answer=used.answer if not answer else used.answer + _WEIGHT * (answer - used.answer),
        )
        self._changed = True

    def limits(self, key: str, rules: KeyRules) -> tuple[RateLimit, ...]:
        """What is left of the key's limits on requests and on tokens. Of two on tokens it is the one that ends first."""
        now, used = self._wall(), self._total(key, rules)
        found = []
        if (limit := rules.requests_per_minute) is not None:
            left = limit - sum(requests for _, requests, _ in used.recent)
            found.append(
                RateLimit(kind="requests", limit=limit, remaining=max(0, left), reset_s=_until_empty(used, now))
            )
        tokens = []
        if (limit := rules.tokens_per_minute) is not None:
            left = limit - sum(count for _, _, count in used.recent) - used.reserved_tokens
            tokens.append(
                RateLimit(kind="tokens", limit=limit, remaining=max(0, left), reset_s=_until_empty(used, now))
            )
        if (limit := rules.tokens_per_day) is not None:
            left = limit - used.tokens - used.reserved_tokens
            tokens.append(RateLimit(kind="tokens", limit=limit, remaining=max(0, left), reset_s=_until_midnight(now)))
        if tokens:
            found.append(min(tokens, key=lambda each: each.remaining))
        return tuple(found)

    def _token_limits(self, used: KeyFigures, rules: KeyRules, now: float) -> list[tuple[int, str, float]]:
        """For each limit on tokens what is left of it, its words, and the seconds until there is more."""
        found = []
        if (limit := rules.tokens_per_minute) is not None:
            left = limit - sum(tokens for _, _, tokens in used.recent) - used.reserved_tokens
            wait_s = _until_freed(((at, tokens) for at, _, tokens in used.recent), 1 - left, now)
            found.append((left, f"{limit} tokens per minute", wait_s))
        if (limit := rules.tokens_per_day) is not None:
            left = limit - used.tokens - used.reserved_tokens
            found.append((left, f"{limit} tokens per day", _until_midnight(now)))
        return found

    def _wait_for_money(self, used: KeyFigures, rules: KeyRules, now: float) -> float:
        return (
            _SOON_S
            if used.reserved_dollars > 0 and used.dollars < (rules.dollars_per_day or 0)
            else _until_midnight(now)
        )

    def _total(self, key: str, rules: KeyRules) -> KeyFigures:
        """What counts against the key's limits."""
        return self._current(key)

    def _today(self) -> str:
        return _day(self._wall())

    def _current(self, key: str) -> KeyFigures:
        """The key's figures of today and of the last minute."""
        now = self._wall()
        used = _on_day(self._keys.get(key, KeyFigures()), _day(now))
        # A clock that was set back must not keep entries of the future.
        latest = now + _ENTRY_S
        recent = tuple(
            (min(at, latest), requests, tokens) for at, requests, tokens in used.recent if now - at < _MINUTE_S
        )
        if recent != used.recent:
            used = self._keys[key] = msgspec.structs.replace(used, recent=recent)
        return used


def _refusal(limit: str, retry_after_s: float) -> RateLimited:
    return RateLimited(f"this API key has reached its limit of {limit}", retry_after_s=max(1.0, retry_after_s))


def _with_entry(
    recent: tuple[tuple[float, int, int], ...], now: float, requests: int, tokens: int
) -> tuple[tuple[float, int, int], ...]:
    """The entries with one more. Those of the same second are one, at its end, so that none counts for less than a minute."""
    end = (now // _ENTRY_S + 1) * _ENTRY_S
    if recent and recent[-1][0] == end:
        _, earlier_requests, earlier_tokens = recent[-1]
        return (*recent[:-1], (end, earlier_requests + requests, earlier_tokens + tokens))
    return (*recent, (end, requests, tokens))


def _until_freed(entries: Iterable[tuple[float, int]], excess: int, now: float) -> float:
    """Seconds until entries with so much in them are a minute old."""
    for at, count in entries:
        excess -= count
        if excess <= 0:
            return at + _MINUTE_S - now
    return _MINUTE_S


def _until_empty(used: KeyFigures, now: float) -> float:
    return max(0.0, used.recent[-1][0] + _MINUTE_S - now) if used.recent else 0.0


def _until_midnight(now: float) -> float:
    local = datetime.datetime.fromtimestamp(now).astimezone()
    tomorrow = datetime.datetime.combine(local.date() + datetime.timedelta(days=1), datetime.time()).astimezone()
    return max(1.0, (tomorrow - local).total_seconds())


def _day(wall: float) -> str:
    return datetime.datetime.fromtimestamp(wall).strftime("%Y-%m-%d")


def _on_day(used: KeyFigures, day: str) -> KeyFigures:
    return used if used.day == day else msgspec.structs.replace(used, day=day, requests=0, tokens=0, dollars=0.0)


def _after_crash(used: KeyFigures, now: float) -> KeyFigures:
    """What was reserved when the process ended without settling it has been used, as far as can be known, until now."""
    if used.reserved_tokens > 0:
        used = msgspec.structs.replace(used, recent=_with_entry(used.recent, now, 0, used.reserved_tokens))
    return msgspec.structs.replace(
        used,
        tokens=used.tokens + used.reserved_tokens,
        dollars=used.dollars + used.reserved_dollars,
        reserved_tokens=0,
        reserved_dollars=0.0,
    )
