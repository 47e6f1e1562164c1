"""Today's costs of remote backends against the daily limit, kept on disk over restarts."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from hostler.adapters.canonical import Usage
from hostler.gateway.backend_settings import PriceSettings
from hostler.gateway.gateway_settings import SpendingSettings
from hostler.gateway.state_files import state_file
from hostler.profiles.file_reading import home_path
from hostler.supervisor.state_store import JsonStore

#: What is assumed for a backend of which nothing is known: the prices of a large model, in dollars for a million tokens.
_ASSUMED = PriceSettings(input=5.0, output=25.0)
#: The length of an answer that is assumed before it begins, in tokens.
_ASSUMED_ANSWER = 1000
#: A higher cost of one answer, in dollars, is a mistake of its backend.
_MOST_DOLLARS = 1000.0
#: How fast the highest cost seen is forgotten, by each later answer.
_FADING = 0.95
#: Sums of decimal fractions are off by less than this, in dollars.
ROUNDING = 1e-9
#: Backends' models whose highest cost is kept.
_MAX_HIGHEST = 1000


class DailySpending(msgspec.Struct, frozen=True, kw_only=True):
    """The costs of one day in US dollars, and the number of answers they are the sum of, by backend.

    `reserved` is for requests in progress, by backend; after a crash it counts as spent. `highest` is the highest cost of
    an answer lately, by backend and model; it outlasts the day.
    """

    day: str
    spent: dict[str, float] = {}
    answers: dict[str, int] = {}
    reserved: dict[str, float] = {}
    highest: dict[str, float] = {}


class Reservation(msgspec.Struct, frozen=True, eq=False):
    """Money set aside for one request, until its cost is known. `lone`: what such requests cost is not known at all, so
    only one is made at a time. `calls`: how often the request has reserved something before."""

    backend: str
    model: str
    amount: float
    lone: bool = False
    calls: int = 0


def cost_of(usage: Usage | None, price: PriceSettings | None, *, body: bytes | None, segments: int) -> float | None:
    """The cost of an answer in US dollars: as reported by the backend, else by `price`, else `None`.

    Without usage it is estimated from the request's `body` and the `segments` received: about four bytes are a token,
    and about one segment. `body` is `None` if there was no answer. Costs that no answer has count as not reported.
    """
    if usage is not None and usage.cost is not None and 0 <= usage.cost <= _MOST_DOLLARS:
        return usage.cost
    if price is None:
        return None
    if usage is not None:
        cost = price.cost(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
        if cost <= _MOST_DOLLARS:
            return cost
    return None if body is None else price.cost(len(body) // 4, 0, segments)


def spending_file(settings: SpendingSettings, environ: Mapping[str, str] = os.environ) -> Path:
    """The file as configured, or where such state is kept."""
    return home_path(settings.file) if settings.file else state_file("spending.json", environ)


class SpendingTracker:
    """Adds up the costs of answers, and reserves what requests in progress may cost, so that many at once stay within the
    limit. `wall` is in seconds since the epoch; a day ends at local midnight.

    A file that cannot be read or written is logged, and the sum is kept in memory: a full disk does not affect requests.
    """

    def __init__(self, file: Path | None, daily_limit: float | None, wall: Callable[[], float]) -> None:
        self._limit = daily_limit
        self._wall = wall
        # Not synced: a power failure may lose the last few cents, but no answer waits for a disk.
        self._store = JsonStore(file, DailySpending, contents="today's spending")
        self._day = _after_crash(self._store.read() or DailySpending(day=""))
        self._open: set[Reservation] = set()
        #: Called when anything has been reserved or spent.
        self.on_change: Callable[[], None] = _unnoticed

    @property
    def day(self) -> DailySpending:
        """Today's spending."""
        return self._current()

    @property
    def in_progress(self) -> float:
        """What requests in progress have reserved, in US dollars."""
        return sum(each.amount for each in self._open)

    @property
    def open_requests(self) -> int:
        """How many requests have reserved something."""
        return len(self._open)

    @property
    def today(self) -> float:
        """Today's costs so far, in US dollars."""
        return sum(self._current().spent.values())

    @property
    def limit(self) -> float | None:
        """The daily limit in US dollars, if there is one."""
        return self._limit

    @property
    def by_backend(self) -> Mapping[str, float]:
        """Today's costs by backend."""
        return self._current().spent

    @property
    def limit_reached(self) -> bool:
        """Whether the daily limit is reached."""
        return self._limit is not None and self.today >= self._limit

    def resumes_in(self) -> float:
        """Seconds until the next day begins."""
        now = datetime.datetime.fromtimestamp(self._wall()).astimezone()
        tomorrow = datetime.datetime.combine(now.date() + datetime.timedelta(days=1), datetime.time()).astimezone()
        return max(1.0, (tomorrow - now).total_seconds())

    def estimate(
        self, backend: str, model: str, price: PriceSettings | None, size: int, *, calls: int = 0
    ) -> Reservation:
        """What a request of `size` bytes may cost: as much as the highest answer lately, and at least its prompt."""
        highest = self._current().highest.get(_place(backend, model))
        if highest is not None:
            prompt = 0.0 if price is None else price.cost(size // 4, 0, 0)
            return Reservation(backend, model, max(highest, prompt), calls=calls)
        return Reservation(backend, model, (price or _ASSUMED).cost(size // 4, 0, _ASSUMED_ANSWER), True, calls)

    async def try_reserve(self, wanted: Reservation) -> bool:
        """As `reserve`, which is a call to another process where that counts the costs."""
        return self.reserve(wanted)

    def reserve(self, wanted: Reservation) -> bool:
        """Set the money aside, if the limit allows it together with all that is spent and set aside already."""
        if not self.allows(wanted):
            return False
        self._set_aside(wanted)
        return True

    def _set_aside(self, wanted: Reservation) -> None:
        day = self._current()
        if self._limit is not None:
            reserved = day.reserved.get(wanted.backend, 0.0) + wanted.amount
            self._save(msgspec.structs.replace(day, reserved={**day.reserved, wanted.backend: reserved}))
        self._open.add(wanted)
        self.on_change()

    def allows(self, wanted: Reservation) -> bool:
        """Whether `reserve` would succeed now."""
        if self._limit is None:
            return True
        if wanted.lone:
            return not self.open_requests and not self.limit_reached
        return self.today + self.in_progress + wanted.amount <= self._limit + ROUNDING

    def exhausted_for(self, wanted: Reservation) -> bool:
        """Whether the limit refuses this request even once all requests in progress have ended at no cost."""
        if self._limit is None or wanted.lone:
            return self.limit_reached
        return self.today + wanted.amount > self._limit + ROUNDING

    def settle(self, reserved: Reservation, cost: float | None, *, answered: bool = True) -> None:
        """The request has ended. An answer of unknown cost (its client disconnected) counts as the day's mean, or as what
        was reserved. Without an answer it has cost nothing: `answered` includes prompts that may have been read."""
        if reserved not in self._open:
            return
        self._open.discard(reserved)
        day = self._current()
        if self._limit is not None:
            rest = sum(each.amount for each in self._open if each.backend == reserved.backend)
            kept = {**day.reserved, reserved.backend: rest} if rest else _without(day.reserved, reserved.backend)
            day = msgspec.structs.replace(day, reserved=kept)
        if cost is not None or answered:
            day = self._with_answer(day, reserved, cost)
        if day is not self._day:
            self._save(day)
        self.on_change()

    def _with_answer(self, day: DailySpending, reserved: Reservation, cost: float | None) -> DailySpending:
        backend, place = reserved.backend, _place(reserved.backend, reserved.model)
        spent, answers = day.spent.get(backend, 0.0), day.answers.get(backend, 0)
        highest = day.highest
        if cost is None:
            cost = spent / answers if answers else reserved.amount
        else:
            highest = {**highest, place: max(cost, highest.get(place, 0.0) * _FADING)}
            if len(highest) > _MAX_HIGHEST:
                del highest[next(iter(highest))]
        return msgspec.structs.replace(
            day,
            spent={**day.spent, backend: spent + cost},
            answers={**day.answers, backend: answers + 1},
            highest=highest,
        )

    def _add_unknown(self, dollars: float) -> None:
        """Count what was spent before, at backends that are not known any more."""
        day = self._current()
        self._save(msgspec.structs.replace(day, spent={**day.spent, "": day.spent.get("", 0.0) + dollars}))

    def _save(self, day: DailySpending) -> None:
        self._day = day
        self._store.write(lambda: self._day)

    def _current(self) -> DailySpending:
        today = datetime.datetime.fromtimestamp(self._wall()).strftime("%Y-%m-%d")
        if self._day.day != today:
            self._day = DailySpending(day=today, reserved=self._day.reserved, highest=self._day.highest)
        return self._day


def _unnoticed() -> None:
    """Nothing else shows what is spent."""


def _after_crash(day: DailySpending) -> DailySpending:
    """What was set aside when the process ended without settling it is spent, as far as anybody can know."""
    spent, answers = dict(day.spent), dict(day.answers)
    for backend, amount in day.reserved.items():
        spent[backend] = spent.get(backend, 0.0) + amount
        answers[backend] = answers.get(backend, 0) + 1
    return msgspec.structs.replace(day, spent=spent, answers=answers, reserved={})


def _place(backend: str, model: str) -> str:
    return f"{backend} {model}"


def _without(values: Mapping[str, float], name: str) -> dict[str, float]:
    return {each: value for each, value in values.items() if each != name}
