"""History in SQLite, kept over restarts: requests (figures, no contents), switches, circuit breakers, samples. Bounded."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import anyio
import anyio.to_thread
import msgspec

from hostler.gateway.events import BreakerChanged, Event, RequestFinished, SwitchChanged
from hostler.gateway.state_files import state_file
from hostler.gateway.telemetry.history_figures import Bucket, RequestFigures, bucket_of
from hostler.gateway.telemetry.history_schema import is_damaged, make_private, open_database

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

HistoryKind = Literal["requests", "switches", "breakers"]
KINDS: tuple[HistoryKind, ...] = ("requests", "switches", "breakers")

#: Entries kept of each table; the oldest are deleted first.
LIMITS: Mapping[str, int] = {"requests": 10_000, "switches": 20_000, "breakers": 20_000, "moments": 20_000}

#: Events that wait to be written; more than this within a second only happen in a benchmark.
_MAX_PENDING = 20_000
_WRITE_INTERVAL_S = 1.0
#: Pending events that are written without waiting for more: they take a kilobyte each.
_FLUSH_AT = 500
#: Where what was taken over ends: rows of another kind than events.
_POSITIONS = "positions"
#: Requests per row, at most: a row costs twenty times as much as a request in it.
_PER_ROW = 100
_SAMPLE_INTERVAL_S = 15.0
#: Rows with later times are damaged, in seconds since the epoch.
_MAX_TIME = 1e12
#: Switches whose first answer may still come, at most.
_UNANSWERED = 200
#: Answers of a model whose times are used for estimates: earlier ones hardly count.
_RECENT = 20


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Waiting and running requests at one time, and the memory of each backend's models in bytes."""

    waiting: int
    serving: int
    memory: dict[str, int] = {}


class HistoryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An event: `at` in seconds since the epoch, `n` counts those of its kind."""

    n: int
    at: float
    event: msgspec.Raw


class _AnswerTime(msgspec.Struct):
    """The fields of a request that the time of its answer is computed from."""

    seconds: float
    outcome: str
    backend: str | None = None
    model: str | None = None
    queue_s: float = 0.0
    switch_s: float = 0.0
    attempts: list[msgspec.Raw] = []
    gateway: str | None = None


def default_file(environ: Mapping[str, str] = os.environ) -> Path:
    """The file where the configuration names none."""
    return state_file("history.sqlite3", environ)


class HistoryPeers(Protocol):
    """Other gateways, which keep these requests as well."""

    def added(self, request: bytes) -> None:
        """A request was added here."""
        ...


class History:
    """Pass every event to `on_event`; `run` writes about once a second, in another thread.

    Without a file it is kept in memory. A damaged file is moved aside and replaced, unreadable rows are skipped, a full
    disk is logged once: none of it raises. `sample` is called every 15 seconds. `gateway` is this gateway's name in its
    cluster, if there is one; `peers` get what is added here.
    """

    def __init__(
        self,
        file: Path | None,
        *,
        sample: Callable[[], Sample],
        limits: Mapping[str, int] = LIMITS,
        wall: Callable[[], float] = time.time,
        gateway: str | None = None,
    ) -> None:
        self.peers: HistoryPeers | None = None
        self._gateway = gateway
        self._file = file
        self._sample = sample
        self._limits = limits
        self._wall = wall
        self._database: sqlite3.Connection | None = None
        # Encoded at once: the bytes take a tenth of the memory of the event.
        self._pending: deque[tuple[str, float, bytes]] = deque(maxlen=_MAX_PENDING)
        self._limiter = anyio.CapacityLimiter(1)
        self._logged_error = False
        self._opened = anyio.Event()
        self._flush_due = anyio.Event()

    def on_event(self, event: Event) -> None:
        if isinstance(event, RequestFinished):
            # Without model lists and health checks: clients that poll would push everything else out.
            if event.backend is not None or event.outcome != "ok":
                self._add_request(event.at, body := _encode(event))
                if self.peers is not None:
                    self.peers.added(body)
        elif isinstance(event, SwitchChanged):
            if event.switch.phase in ("ready", "failed"):
                self._pending.append(("switches", self._wall(), _encode(event)))
        elif isinstance(event, BreakerChanged):
            self._pending.append(("breakers", self._wall(), _encode(event)))

    def take_over(self, requests: Iterable[RequestFinished], name: str, position: bytes) -> None:
        """Add requests of other gateways, and that `position` was reached in what is called `name`: either all of it is kept,
        or nothing."""
        for request in requests:
            self._add_request(request.at, _encode(request))
        self._pending.append((_POSITIONS, 0.0, _encode((name, position))))

    async def position(self, name: str) -> bytes:
        """The last position that was kept, empty if there is none. Waits for `run`."""
        await self.flush()
        return await self._in_thread(lambda: self._position(name)) or b""

    def _add_request(self, at: float, body: bytes) -> None:
        self._pending.append(("requests", at, body))
        if len(self._pending) >= _FLUSH_AT and not self._flush_due.is_set():
            self._flush_due.set()

    async def run(self) -> None:
        """Write until cancelled, and once more at the end."""
        await self._in_thread(self._open)
        self._opened.set()
        sampled = -_SAMPLE_INTERVAL_S
        try:
            while True:
                now = self._wall()
                if not 0 <= now - sampled < _SAMPLE_INTERVAL_S:
                    sampled = now
                    self._pending.append(("moments", now, _encode(self._sample())))
                await self.flush()
                with anyio.move_on_after(_WRITE_INTERVAL_S):
                    await self._flush_due.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await self.flush()
                await self._in_thread(self._close)

    async def flush(self) -> None:
        """Write pending events. Waits until `run` has opened the file."""
        await self._opened.wait()
        if self._pending:
            fresh = list(self._pending)
            self._pending.clear()
            self._flush_due = anyio.Event()
            await self._in_thread(lambda: self._write(fresh))

    async def entries(self, kind: HistoryKind, *, limit: int = 200, before: int | None = None) -> list[HistoryEntry]:
        """The latest entries of a kind, newest first; `before` is the `n` of the last entry of the previous page."""
        await self.flush()
        return await self._in_thread(lambda: self._entries(kind, limit, before)) or []

    async def figures(self, *, seconds: float, buckets: int) -> list[Bucket]:
        """The last `seconds` in buckets of equal length, the oldest first."""
        await self.flush()
        now = self._wall()
        return await self._in_thread(lambda: self._figures(now - seconds, seconds / buckets, buckets)) or []

    async def answer_times(self) -> dict[str, dict[str, list[float]]]:
        """Seconds that recent complete answers took, by backend and model, the oldest first; without queue and switch."""
        await self.flush()
        return await self._in_thread(self._answer_times) or {}

    async def _in_thread(self, work: Callable[[], _T]) -> _T | None:
        try:
            return await anyio.to_thread.run_sync(lambda: self._run(work), limiter=self._limiter)
        except (sqlite3.Error, OSError) as error:
            if not self._logged_error:
                logger.error("%s: cannot write history: %s", self._file or "memory", error)
            self._logged_error = True
            return None

    # In the other thread, one at a time.

    def _run(self, work: Callable[[], _T]) -> _T:
        """Run `work`, and once more with a new file if this one turns out to be damaged."""
        try:
            return work()
        except (sqlite3.DatabaseError, OverflowError) as error:
            if self._file is None or not is_damaged(error):
                raise
            self._close()
            aside = self._file.with_name(self._file.name + ".damaged")
            logger.error("%s: damaged (%s); moved to %s", self._file, error, aside)
            self._file.replace(aside)
            self._open()
            return work()

    def _open(self) -> None:
        if self._database is not None:
            return
        if self._file is None:
            self._database = open_database(":memory:")
            return
        make_private(self._file)
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
        positions = events.pop(_POSITIONS, [])
        with self._database:
            for _, body in positions:
                self._database.execute("INSERT OR REPLACE INTO positions VALUES (?, ?)", _decode_position(body))
            if "switches" in events:
                events["switches"] = _replace_switches(self._database, events["switches"])
            for table, values in events.items():
                together = _PER_ROW if table == "requests" else 1
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
        self._logged_error = False

    def _entries(self, kind: HistoryKind, limit: int, before: int | None) -> list[HistoryEntry]:
        if self._database is None:
            return []
        below = 2**62 if before is None else before
        newest = self._database.execute(f"SELECT max(n) FROM {kind}").fetchone()[0] or 0
        oldest = newest - self._limits[kind]
        entries: list[HistoryEntry] = []
        found = self._database.execute(
            f"SELECT n, at, body FROM {kind} WHERE n < ? ORDER BY n DESC", (min(below, 2**62) + _PER_ROW,)
        )
        for last, at, body in found:
            events, own = _read(_decode_events, body), _read(_decode_times, body)
            for n, event, its in zip(range(last, last - len(own), -1), reversed(events), reversed(own), strict=False):
                if oldest < n < below:
                    entries.append(HistoryEntry(n=n, at=at if its.at is None else its.at, event=event))
            if len(entries) >= limit:
                break
        return entries[:limit]

    def _position(self, name: str) -> bytes:
        if self._database is None:
            return b""
        row = self._database.execute("SELECT body FROM positions WHERE name = ?", (name,)).fetchone()
        return row[0] if row is not None and isinstance(row[0], bytes) else b""

    def _answer_times(self) -> dict[str, dict[str, list[float]]]:
        times: dict[str, dict[str, list[float]]] = {}
        if self._database is None:
            return times
        for (body,) in self._database.execute("SELECT body FROM requests ORDER BY n"):
            for each in _read(_decode_answer_times, body):
                if each.gateway not in (None, self._gateway):
                    continue  # whose backends of the same name may be others
                # Failed answers do not predict the next one, and of several attempts only the sum is known.
                if each.outcome == "ok" and each.backend and each.model and len(each.attempts) <= 1:
                    recent = times.setdefault(each.backend, {}).setdefault(each.model, [])
                    recent.append(max(0.0, each.seconds - each.queue_s - each.switch_s))
                    del recent[:-_RECENT]
        return times

    def _figures(self, since: float, width: float, count: int) -> list[Bucket]:
        requests: list[list[RequestFigures]] = [[] for _ in range(count)]
        switches: list[list[float]] = [[] for _ in range(count)]
        samples: list[Sample | None] = [None] * count
        if self._database is None:
            return []

        def index(at: float) -> int:
            return min(count - 1, int((at - since) / width))

        def rows(table: str) -> Iterable[tuple[int, bytes]]:
            found = self._database.execute(  # type: ignore[union-attr]  # it is open: asked above
                f"SELECT at, body FROM {table} WHERE at BETWEEN ? AND ? ORDER BY n",
                (since, _MAX_TIME),
            )
            for at, body in found:
                yield index(at), body

        for _, body in rows("requests"):
            for each in _read(_decode_figures, body):
                if each.at >= since:
                    requests[index(each.at)].append(each)
        for number, body in rows("switches"):
            switches[number] += [each.switch.elapsed_s for each in _read(_decode_switched, body)]
        for number, body in rows("moments"):
            samples[number] = next(iter(_read(_decode_samples, body)), samples[number])
        buckets = []
        for number, sample in enumerate(samples):
            memory = None if sample is None else sum(sample.memory.values())
            waiting = None if sample is None else sample.waiting
            at = since + number * width
            buckets.append(bucket_of(at, requests[number], switches[number], memory=memory, waiting=waiting))
        return buckets


class _At(msgspec.Struct):
    at: float | None = None


class _Moved(msgspec.Struct):
    id: str = ""
    elapsed_s: float = 0.0


class _Switched(msgspec.Struct):
    switch: _Moved
    backend: str = ""


_encode = msgspec.json.Encoder().encode
_decode_answer_times = msgspec.json.Decoder(list[_AnswerTime]).decode
_decode_figures = msgspec.json.Decoder(list[RequestFigures]).decode
_decode_switched = msgspec.json.Decoder(list[_Switched]).decode
_decode_samples = msgspec.json.Decoder(list[Sample]).decode
_decode_events = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_position = msgspec.json.Decoder(tuple[str, bytes]).decode
_decode_times = msgspec.json.Decoder(list[_At]).decode


def _read(decode: Callable[[bytes], list[_T]], body: object) -> list[_T]:
    """The events of a row: one, or a list whose last has the row's number and time. Empty if it cannot be read."""
    if not isinstance(body, bytes):
        return []
    try:
        return decode(body if body.startswith(b"[") else b"[%b]" % body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []


def _replace_switches(database: sqlite3.Connection, fresh: Iterable[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
    """Put switches that are reported again, with their first answer, in the place of their entries; return all others."""
    latest = database.execute(f"SELECT n, body FROM switches ORDER BY n DESC LIMIT {_UNANSWERED}").fetchall()
    kept = {key: n for n, body in latest for key in _switch_keys(body)}
    ended: dict[tuple[str, str], tuple[float, bytes]] = {}
    for at, body in fresh:
        for key in _switch_keys(body):
            if key in kept:
                database.execute("UPDATE switches SET body = ? WHERE n = ?", (body, kept[key]))
            else:
                ended[key] = (ended[key][0] if key in ended else at, body)
    return list(ended.values())


def _switch_keys(body: object) -> list[tuple[str, str]]:
    """What identifies the switches of a row over all backends."""
    return [(each.backend, each.switch.id) for each in _read(_decode_switched, body)]
