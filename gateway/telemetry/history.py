"""What happened, kept over restarts in SQLite: figures of requests (no contents), switches, breakers, moments. Bounded."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeVar

import anyio
import anyio.to_thread
import msgspec

from hostler.gateway.events import BreakerChanged, Event, RequestFinished, SwitchChanged
from hostler.gateway.telemetry.history_file import is_damaged, open_database

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

Kind = Literal["requests", "switches", "breakers"]
KINDS: tuple[Kind, ...] = ("requests", "switches", "breakers")

#: As many of each are kept; the oldest go first.
LIMITS: Mapping[str, int] = {"requests": 10_000, "switches": 20_000, "breakers": 20_000, "moments": 20_000}

#: Events that wait to be written; more than this within a second only happens to a benchmark.
_MOST_PENDING = 20_000
_WRITE_EVERY_S = 1.0
#: So many are written without waiting for more: they take a kilobyte each.
_MANY = 500
#: As many requests share a row at most: a row costs twenty times what a request in it does.
_TOGETHER = 100
_MOMENT_EVERY_S = 15.0
#: Nothing has happened later, in seconds since the epoch.
_LATEST = 1e12
#: Of how many answers of a model it is told how long they took: earlier ones hardly count.
_LAST = 20


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """How things were at one time: who waits, who is served, and what the models of each backend take, in bytes."""

    waiting: int
    serving: int
    memory: dict[str, int] = {}


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """A thing that happened: `at` in seconds since the epoch, `n` grows with every one of its kind."""

    n: int
    at: float
    event: msgspec.Raw


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time in figures; `None` where nothing happened. Times in seconds, memory in bytes."""

    at: float
    requests: int = 0
    failed: int = 0
    first_token_s: float | None = None
    first_token_p95_s: float | None = None
    tokens_per_s: float | None = None
    queue_s: float | None = None
    switches: int = 0
    switch_s: float | None = None
    memory: int | None = None
    waiting: int | None = None


class _Served(msgspec.Struct):
    """The part of a kept request that tells how long a model was at work for it."""

    seconds: float
    outcome: str
    backend: str | None = None
    model: str | None = None
    queue_s: float = 0.0
    switch_s: float = 0.0
    attempts: list[msgspec.Raw] = []


class _Figures(msgspec.Struct):
    """The part of a kept request that figures are made of."""

    at: float
    seconds: float
    outcome: str
    queue_s: float = 0.0
    switch_s: float = 0.0
    first_token_s: float | None = None
    completion_tokens: int = 0


def default_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Where it is kept when the configuration names no file."""
    if directory := environ.get("STATE_DIRECTORY"):  # systemd's; several are joined by colons
        return Path(directory.partition(":")[0]) / "history.sqlite3"
    base = environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "hostler" / "history.sqlite3"


class History:
    """Listens to events, writes them about once a second from another thread, and answers questions.

    Without a file it is kept in memory. A file that is damaged is put aside, whenever that shows, and rows that cannot be
    read are left out; a disk that is full is reported once. None of it stops anything.
    """

    def __init__(
        self,
        file: Path | None,
        *,
        moment: Callable[[], Moment],
        limits: Mapping[str, int] = LIMITS,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._file = file
        self._moment = moment
        self._limits = limits
        self._wall = wall
        self._database: sqlite3.Connection | None = None
        # Written out at once: the bytes of an event take a tenth of the memory that its parts do.
        self._pending: deque[tuple[str, float, bytes]] = deque(maxlen=_MOST_PENDING)
        self._one_at_a_time = anyio.CapacityLimiter(1)
        self._complained = False
        self._opened = anyio.Event()
        self._many = anyio.Event()

    def hear(self, event: Event) -> None:
        """A listener for the bus."""
        if isinstance(event, RequestFinished):
            # Probes are no requests: clients that ask every few seconds would push everything else out.
            if event.backend is not None or event.outcome != "ok":
                self._pending.append(("requests", event.at, _encode(event)))
                if len(self._pending) >= _MANY and not self._many.is_set():
                    self._many.set()
        elif isinstance(event, SwitchChanged):
            if event.switch.phase in ("ready", "failed"):
                self._pending.append(("switches", self._wall(), _encode(event)))
        elif isinstance(event, BreakerChanged):
            self._pending.append(("breakers", self._wall(), _encode(event)))

    async def run(self) -> None:
        """Write until cancelled, and once more then."""
        await self._in_thread(self._open)
        self._opened.set()
        noted = -_MOMENT_EVERY_S
        try:
            while True:
                now = self._wall()
                if not 0 <= now - noted < _MOMENT_EVERY_S:
                    noted = now
                    self._pending.append(("moments", now, _encode(self._moment())))
                await self.flush()
                with anyio.move_on_after(_WRITE_EVERY_S):
                    await self._many.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await self.flush()
                await self._in_thread(self._close)

    async def flush(self) -> None:
        """Write what has happened so far. Waits for `run` to have opened the file."""
        await self._opened.wait()
        if self._pending:
            fresh = list(self._pending)
            self._pending.clear()
            self._many = anyio.Event()
            await self._in_thread(lambda: self._write(fresh))

    async def past(self, kind: Kind, *, limit: int = 200, before: int | None = None) -> list[Past]:
        """The last things of a kind, the newest first; `before` a number, for the page after."""
        await self.flush()
        return await self._in_thread(lambda: self._past(kind, limit, before)) or []

    async def figures(self, *, seconds: float, buckets: int) -> list[Bucket]:
        """The last `seconds` in so many stretches of equal length, the oldest first."""
        await self.flush()
        now = self._wall()
        return await self._in_thread(lambda: self._figures(now - seconds, seconds / buckets, buckets)) or []

    async def answers(self) -> dict[str, dict[str, list[float]]]:
        """How long the last whole answers of each model took, by backend, the oldest first: without the waiting."""
        await self.flush()
        return await self._in_thread(self._answers) or {}

    async def _in_thread(self, work: Callable[[], _T]) -> _T | None:
        try:
            return await anyio.to_thread.run_sync(lambda: self._saved(work), limiter=self._one_at_a_time)
        except (sqlite3.Error, OSError) as error:
            if not self._complained:
                logger.error("%s: history cannot be kept: %s", self._file or "memory", error)
            self._complained = True
            return None

    # In the other thread, one at a time.

    def _saved(self, work: Callable[[], _T]) -> _T:
        """Do it; once more with a new file if this one turns out to be damaged, at its beginning or further in."""
        try:
            return work()
        except (sqlite3.DatabaseError, OverflowError) as error:
            if self._file is None or not is_damaged(error):
                raise
            self._close()
            aside = self._file.with_name(self._file.name + ".damaged")
            logger.error("%s: is damaged (%s); it is put aside as %s", self._file, error, aside)
            self._file.replace(aside)
            self._open()
            return work()

    def _open(self) -> None:
        if self._database is not None:
            return
        if self._file is None:
            self._database = open_database(":memory:")
            return
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._database = open_database(str(self._file))

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _write(self, fresh: Iterable[tuple[str, float, bytes]]) -> None:
        if self._database is None:
            return
        events: dict[str, list[tuple[float, bytes]]] = {}
        for table, at, body in fresh:
            events.setdefault(table, []).append((at, body))
        with self._database:
            for table, values in events.items():
                together = _TOGETHER if table == "requests" else 1
                last = self._database.execute(f"SELECT max(n) FROM {table}").fetchone()[0] or 0
                rows = []
                for start in range(0, len(values), together):
                    part = values[start : start + together]
                    body = b"[%b]" % b",".join([body for _, body in part]) if len(part) > 1 else part[0][1]
                    rows.append((last + start + len(part), max(at for at, _ in part), body))
                self._database.executemany(f"INSERT INTO {table} (n, at, body) VALUES (?, ?, ?)", rows)
                self._database.execute(
                    f"DELETE FROM {table} WHERE n <= (SELECT max(n) FROM {table}) - ?",
                    (self._limits[table],),
                )
        self._complained = False

    def _past(self, kind: Kind, limit: int, before: int | None) -> list[Past]:
        if self._database is None:
            return []
        below = 2**62 if before is None else before
        newest = self._database.execute(f"SELECT max(n) FROM {kind}").fetchone()[0] or 0
        oldest = newest - self._limits[kind]
        past: list[Past] = []
        found = self._database.execute(
            f"SELECT n, at, body FROM {kind} WHERE n < ? ORDER BY n DESC", (min(below, 2**62) + _TOGETHER,)
        )
        for last, at, body in found:
            events, own = _read(_decode_events, body), _read(_decode_times, body)
            for n, event, its in zip(range(last, last - len(own), -1), reversed(events), reversed(own), strict=False):
                if oldest < n < below:
                    past.append(Past(n=n, at=at if its.at is None else its.at, event=event))
            if len(past) >= limit:
                break
        return past[:limit]

    def _answers(self) -> dict[str, dict[str, list[float]]]:
        known: dict[str, dict[str, list[float]]] = {}
        if self._database is None:
            return known
        for (body,) in self._database.execute("SELECT body FROM requests ORDER BY n"):
            for each in _read(_decode_served, body):
                # What failed says little of the next one, and of several attempts only the sum is known.
                if each.outcome == "ok" and each.backend and each.model and len(each.attempts) <= 1:
                    took = known.setdefault(each.backend, {}).setdefault(each.model, [])
                    took.append(max(0.0, each.seconds - each.queue_s - each.switch_s))
                    del took[:-_LAST]
        return known

    def _figures(self, since: float, width: float, count: int) -> list[Bucket]:
        requests: list[list[_Figures]] = [[] for _ in range(count)]
        switches: list[list[float]] = [[] for _ in range(count)]
        moments: list[Moment | None] = [None] * count
        if self._database is None:
            return []

        def place(at: float) -> int:
            return min(count - 1, int((at - since) / width))

        def rows(table: str) -> Iterable[tuple[int, bytes]]:
            found = self._database.execute(  # type: ignore[union-attr]  # it is open: asked above
                f"SELECT at, body FROM {table} WHERE at BETWEEN ? AND ? ORDER BY n",
                (since, _LATEST),
            )
            for at, body in found:
                yield place(at), body

        for _, body in rows("requests"):
            for each in _read(_decode_figures, body):
                if each.at >= since:
                    requests[place(each.at)].append(each)
        for number, body in rows("switches"):
            switches[number] += [each.switch.elapsed_s for each in _read(_decode_switched, body)]
        for number, body in rows("moments"):
            moments[number] = next(iter(_read(_decode_moments, body)), moments[number])
        return [
            _bucket(since + number * width, requests[number], switches[number], moments[number])
            for number in range(count)
        ]


class _At(msgspec.Struct):
    at: float | None = None


class _Elapsed(msgspec.Struct):
    elapsed_s: float = 0.0


class _Switched(msgspec.Struct):
    switch: _Elapsed


_encode = msgspec.json.Encoder().encode
_decode_served = msgspec.json.Decoder(list[_Served]).decode
_decode_figures = msgspec.json.Decoder(list[_Figures]).decode
_decode_switched = msgspec.json.Decoder(list[_Switched]).decode
_decode_moments = msgspec.json.Decoder(list[Moment]).decode
_decode_events = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_times = msgspec.json.Decoder(list[_At]).decode


def _read(decode: Callable[[bytes], list[_T]], body: object) -> list[_T]:
    """The events of a row: one, or a list of them. The row has the number and the time of the last.

    Nothing, if it cannot be read: a damaged disk, or another version, must not keep the gateway from starting.
    """
    if not isinstance(body, bytes):
        return []
    try:
        return decode(body if body.startswith(b"[") else b"[%b]" % body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []


def _bucket(at: float, requests: list[_Figures], switches: list[float], moment: Moment | None) -> Bucket:
    first_words = [each.first_token_s for each in requests if each.first_token_s is not None]
    speeds = [
        (each.completion_tokens - 1) / (each.seconds - each.first_token_s)
        for each in requests
        if each.first_token_s is not None and each.completion_tokens > 1 and each.seconds > each.first_token_s
    ]
    return Bucket(
        at=at,
        requests=len(requests),
        failed=sum(each.outcome in ("failed", "broken") for each in requests),
        first_token_s=_percentile(first_words, 0.5),
        first_token_p95_s=_percentile(first_words, 0.95),
        tokens_per_s=_percentile(speeds, 0.5),
        queue_s=max((each.queue_s for each in requests), default=None),
        switches=len(switches),
        switch_s=max(switches, default=None),
        memory=None if moment is None else sum(moment.memory.values()),
        waiting=None if moment is None else moment.waiting,
    )


def _percentile(values: list[float], share: float) -> float | None:
    if not values:
        return None
    values.sort()
    return round(values[min(len(values) - 1, int(share * len(values)))], 4)
