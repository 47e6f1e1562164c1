"""What the clouds have cost today, kept on disk, so that a restart forgets nothing. Who may still spend is asked here."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

logger = logging.getLogger(__name__)


class Day(msgspec.Struct, frozen=True, kw_only=True):
    """One day's sum in US dollars, by backend, and of how many answers it is made."""

    day: str
    spent: dict[str, float] = {}
    answers: dict[str, int] = {}


def default_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the sum is kept when the configuration names no file."""
    if directory := environ.get("STATE_DIRECTORY"):  # systemd's; several are joined by colons
        return Path(directory.partition(":")[0]) / "spending.json"
    base = environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "hostler" / "spending.json"


class Spending:
    """Adds up what backends say that they cost. One writer: the gateway.

    `wall` is the clock on the wall, in seconds since the epoch; a day ends at local midnight. A file that cannot be
    read or written is reported, and the sum is kept in memory: a full disk stops no answer.
    """

    def __init__(self, file: Path, daily_limit: float | None, wall: Callable[[], float]) -> None:
        self._file = file
        self._limit = daily_limit
        self._wall = wall
        self._complained = False
        self._day = self._read()

    @property
    def today(self) -> float:
        """What today has cost so far, in US dollars."""
        return sum(self._current().spent.values())

    @property
    def limit(self) -> float | None:
        """What a day may cost, if there is a limit."""
        return self._limit

    @property
    def by_backend(self) -> Mapping[str, float]:
        """What each backend has cost today."""
        return self._current().spent

    @property
    def reached(self) -> bool:
        """Whether no more may be spent today."""
        return self._limit is not None and self.today >= self._limit

    def resumes_in(self) -> float:
        """Seconds until the next day begins."""
        now = datetime.datetime.fromtimestamp(self._wall()).astimezone()
        tomorrow = datetime.datetime.combine(now.date() + datetime.timedelta(days=1), datetime.time()).astimezone()
        return max(1.0, (tomorrow - now).total_seconds())

    def add(self, backend: str, cost: float | None) -> None:
        """An answer of `backend` has ended. One whose cost was never told (its client left) counts as the day's mean."""
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
        self._day = Day(
            day=day.day,
            spent={**day.spent, backend: spent + cost},
            answers={**day.answers, backend: answers},
        )
        self._write()

    def _current(self) -> Day:
        today = datetime.datetime.fromtimestamp(self._wall()).strftime("%Y-%m-%d")
        if self._day.day != today:
            self._day = Day(day=today)
        return self._day

    def _read(self) -> Day:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Day)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            logger.error("%s: cannot be read, so today's spending begins at 0: %s", self._file, error)
        return Day(day="")

    def _write(self) -> None:
        # Not synced: a power cut may lose the last answers' cents, and an answer need not wait for a disk.
        temporary = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary.write_bytes(msgspec.json.encode(self._day))
            temporary.replace(self._file)
            self._complained = False
        except OSError as error:
            if not self._complained:
                logger.error("%s: cannot be written, so a restart would forget today's spending: %s", self._file, error)
            self._complained = True
