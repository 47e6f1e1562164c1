"""A log in the cluster's store that all gateways write and follow: bounded, kept for a time, and read in the background."""

from __future__ import annotations

import logging
import re
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

import anyio
import msgspec

from hostler.gateway.cluster.membership import Signer
from hostler.gateway.cluster.store import BACKGROUND_LIMIT_S, Script, Store, StoreAway

logger = logging.getLogger(__name__)

#: How often a gateway writes and reads at most, in seconds.
EVERY_S: Final = 1.0
#: Entries of a batch, and their bytes, at most. Larger records were not written by a gateway, and are removed.
_BATCH_ENTRIES, _BATCH_BYTES, _RECORD_BYTES = 100, 48 * 1024, 64 * 1024
#: Bytes that one step reads, unless it is a single record, and steps in a row.
_STEP_BYTES, _MAX_STEPS = 256 * 1024, 200
#: Entries that wait to be written, at most; the oldest are dropped first.
_MAX_WAITING = 10_000
#: How long a gateway that stops may write what still waits, in seconds.
_LEAVING_S = 1.0
#: Writers whose last batch is remembered.
_MAX_WRITERS = 200
_CURSOR = re.compile(r"\d{1,20}-\d{1,20}")

# A record has its bytes in `r`, and in `t` those of all records up to it. What something else has written there is removed.
_STEP = Script(
    """
local log, record, cursor = KEYS[1], ARGV[1], ARGV[4]
local function parts(entry)
    local found, fields = {}, entry[2]
    for place = 1, #fields, 2 do found[fields[place]] = fields[place + 1] end
    local total = tonumber(found.t) or 0
    if not (total >= 0 and total < 1e15) then total = 0 end
    return found.r, total
end
if record ~= '' then
    local last, total = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1], #record
    if last then
        local _, before = parts(last)
        total = total + before
    end
    local function add() return redis.pcall('XADD', log, 'MAXLEN', '~', 100000, '*', 'r', record, 't', total) end
    local added = add()
    if type(added) == 'table' and added.err and string.find(added.err, 'exhausted', 1, true) then
        redis.call('DEL', log)
        added = add()
    end
    if type(added) == 'table' and added.err then return redis.error_reply(added.err) end
    for _ = 1, 1000 do
        local first = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
        local _, before = parts(first)
        local held = total - before
        if held >= 0 and held <= tonumber(ARGV[2]) then break end
        if first[1] == added then break end
        redis.call('XDEL', log, first[1])
    end
    redis.call('EXPIRE', log, ARGV[3])
    redis.call('PUBLISH', ARGV[7], '')
end
local found, bytes = {cursor, 0}, 0
if #redis.call('XRANGE', log, cursor, cursor) == 0 then cursor = '0-0' end
local read = redis.call('XREAD', 'COUNT', 100, 'STREAMS', log, cursor)
for _, entry in ipairs(read and read[1][2] or {}) do
    local content = parts(entry)
    if not content or #content > tonumber(ARGV[6]) then
        redis.call('XDEL', log, entry[1])
    else
        bytes = bytes + #content
        if #found > 2 and bytes > tonumber(ARGV[5]) then
            found[2] = 1
            break
        end
        found[#found + 1] = content
        found[1] = entry[1]
    end
end
if read and #read[1][2] == 100 then found[2] = 1 end
return found
""",
    types=("stream",),
)


class LogBatch(msgspec.Struct, frozen=True, array_like=True):
    """Entries of one gateway. `log` is where they belong, `number` counts the batches of this `start` of the `writer`."""

    log: str
    writer: str
    name: str
    start: str
    number: int
    entries: tuple[msgspec.Raw, ...]


class _Position(msgspec.Struct, frozen=True, array_like=True):
    """Where reading goes on, and the last batch of each writer's start."""

    cursor: str
    read: tuple[tuple[str, str, int], ...]


class SharedLog:
    """Adds entries, and passes on those of other gateways, each batch once. `run` until cancelled.

    Nothing waits for it: entries are written together, at most once per second, and read when something was written.
    While the store is away they wait; those that are dropped are counted, which is logged once the store has the others.
    Records are signed with the cluster's token. The store keeps `max_bytes` of them for `ttl_s`. `own` are the id and the name
    of this gateway.
    """

    scripts = (_STEP,)

    def __init__(
        self,
        store: Store,
        signer: Signer,
        own: tuple[str, str],
        log: str,
        *,
        max_bytes: int,
        ttl_s: int,
        on_batch: Callable[[LogBatch], None],
        every_s: float = EVERY_S,
    ) -> None:
        self._store = store
        self._signer = signer
        self._own_id, self._own_name = own
        self._log = log
        self._bounds = max_bytes, ttl_s
        self._on_batch = on_batch
        self._every_s = every_s
        self._start = secrets.token_hex(4)
        self._number = 0
        self._cursor = "0-0"
        self._read: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._waiting: deque[bytes] = deque(maxlen=_MAX_WAITING)
        self._record, self._in_record = b"", 0
        self._wake = anyio.Event()
        self._refused = False
        self._dropped = 0
        store.subscribe(log, self._on_written)
        store.on_connect(self._wake_up)

    def add(self, entry: bytes) -> None:
        """Write an entry, soon: one JSON value."""
        if len(entry) > _BATCH_BYTES:
            self._dropped += 1
        else:
            self._dropped += len(self._waiting) == self._waiting.maxlen
            self._waiting.append(entry)
        self._wake.set()

    @property
    def waiting(self) -> int:
        """The number of entries that are not yet in the store."""
        return len(self._waiting) + self._in_record

    @property
    def position(self) -> bytes:
        """Where reading goes on after what was passed on."""
        read = tuple((writer, start, number) for (writer, start), number in self._read.items())
        return msgspec.json.encode(_Position(self._cursor, read))

    def go_on_at(self, position: bytes) -> None:
        """Read from this position on; from the beginning, if it is none. To be called before `run`."""
        try:
            found = msgspec.json.decode(position, type=_Position)
        except (msgspec.MsgspecError, RecursionError):
            return
        if _CURSOR.fullmatch(found.cursor):
            self._cursor = found.cursor
            self._read = OrderedDict(((writer, start), number) for writer, start, number in found.read[-_MAX_WRITERS:])

    async def run(self) -> None:
        """Write and read until cancelled, and write at the end what waits, as far as there is time."""
        try:
            while True:
                await self._wake.wait()
                self._wake = anyio.Event()
                await self._steps()
                await anyio.sleep(self._every_s)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_LEAVING_S):
                if self.waiting:
                    await self._steps()
            self._report_dropped()

    async def _steps(self) -> None:
        try:
            for _ in range(_MAX_STEPS):
                if not self._store.connected or not await self._step():
                    return
        except StoreAway:
            if not self._store.connected:
                return
        self._wake.set()

    async def _step(self) -> bool:
        """Write a batch and read some; returns whether there is more to do."""
        if not self._record:
            self._record, self._in_record = self._next_record()
        max_bytes, ttl_s = self._bounds
        cursor, more, *records = await self._store.run_script(
            _STEP, [self._log], self._record, max_bytes, ttl_s, self._cursor, _STEP_BYTES, _RECORD_BYTES,
            self._store.prefix + self._log, limit_s=BACKGROUND_LIMIT_S,
        )  # fmt: skip
        self._record, self._in_record = b"", 0
        if not self._waiting:
            self._report_dropped()
        self._cursor = cursor.decode()
        for batch in map(self._opened, records):
            if batch is not None and self._is_new(batch):
                self._on_batch(batch)
        return bool(more or self._waiting)

    def _report_dropped(self) -> None:
        if self._dropped:
            logger.warning(
                "%d entries of the log of %s were dropped: other gateways do not see them; the store was away or slow for "
                "too long, or they were larger than %d bytes",
                self._dropped,
                self._log,
                _BATCH_BYTES,
            )
            self._dropped = 0

    def _next_record(self) -> tuple[bytes, int]:
        """The next batch, and its number of entries; it stays the same until the store has confirmed it."""
        if not self._waiting:
            return b"", 0
        entries, size = list[msgspec.Raw](), 0
        while self._waiting and len(entries) < _BATCH_ENTRIES and size + len(self._waiting[0]) <= _BATCH_BYTES:
            entry = self._waiting.popleft()
            entries.append(msgspec.Raw(entry))
            size += len(entry)
        self._number += 1
        batch = LogBatch(self._log, self._own_id, self._own_name, self._start, self._number, tuple(entries))
        return self._signer.signed(msgspec.json.encode(batch)), len(entries)

    def _opened(self, record: bytes) -> LogBatch | None:
        batch = self._signer.decoded(record, LogBatch)
        if batch is not None and batch.log == self._log:
            return batch
        if not self._refused:
            logger.warning(
                "something else than a gateway of the cluster has written to the log of %s; ignored", self._log
            )
        self._refused = True
        return None

    def _is_new(self, batch: LogBatch) -> bool:
        """Whether it is another gateway's, and was not read before: a batch may be written twice, and a log anew."""
        key = batch.writer, batch.start
        if batch.writer == self._own_id or batch.number <= self._read.get(key, 0):
            return False
        self._read[key] = batch.number
        self._read.move_to_end(key)
        while len(self._read) > _MAX_WRITERS:
            self._read.popitem(last=False)
        return True

    def _on_written(self, _: bytes) -> None:
        self._wake.set()

    def _wake_up(self) -> None:
        self._wake.set()
