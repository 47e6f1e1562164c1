"""Today's costs of remote backends against the daily limit, kept on disk over restarts."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from hostler.adapters.canonical import Usage
from hostler.gateway.config import PriceSettings
from hostler.supervisor.state_store import JsonStore


class DailySpending(msgspec.Struct, frozen=True, kw_only=True):
    """The costs of one day in US dollars, and the number of answers they are the sum of, by backend."""

    day: str
    spent: dict[str, float] = {}
    answers: dict[str, int] = {}


def cost_of(usage: Usage | None, price: PriceSettings | None, *, body: bytes | None, segments: int) -> float | None:
    """The cost of an answer in US dollars: as reported by the backend, else by `price`, else `None`.

    Without usage it is estimated from the request's `body` and the `segments` received: about four bytes are a token,
    and about one segment. `body` is `None` if there was no answer.
    """
    if usage is not None and usage.cost is not None:
        return usage.cost
    if price is None:
        return None
    if usage is not None:
        return price.cost(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
    return None if body is None else price.cost(len(body) // 4, 0, segments)


def default_file(environ: Mapping[str, str] = os.environ) -> Path:
    """The file used when the configuration names none."""
    if directory := environ.get("STATE_DIRECTORY"):  # set by systemd; several directories are joined by colons
        return Path(directory.partition(":")[0]) / "spending.json"
    base = environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "hostler" / "spending.json"


class SpendingTracker:
    """Adds up the costs of answers. `wall` is in seconds since the epoch; a day ends at local midnight.

    A file that cannot be read or written is logged, and the sum is kept in memory: a full disk does not affect requests.
    """

    def __init__(self, file: Path, daily_limit: float | None, wall: Callable[[], float]) -> None:
        self._limit = daily_limit
        self._wall = wall
        # Not synced: a power failure may lose the last few cents, but no answer waits for a disk.
        self._store = JsonStore(file, DailySpending, contents="today's spending")
        self._day = self._store.read() or DailySpending(day="")

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

    def add(self, backend: str, cost: float | None) -> None:
        """An answer of `backend` has ended. One of unknown cost (its client disconnected) counts as the day's mean."""
        day = self._current()
        spent, answers = day.spent.get(backend, 0.0), day.answers.get(backend, 0)
        if cost is None:
            if not answers:
                return
            cost = spent / answers
        else:
            answers += 1
        if not 0 <= cost < float("inf"):
            return
        self._day = DailySpending(
            day=day.day,
            spent={**day.spent, backend: spent + cost},
            answers={**day.answers, backend: answers},
        )
        self._store.write(lambda: self._day)

    def _current(self) -> DailySpending:
        today = datetime.datetime.fromtimestamp(self._wall()).strftime("%Y-%m-%d")
        if self._day.day != today:
            self._day = DailySpending(day=today)
        return self._day
