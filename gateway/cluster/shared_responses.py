"""Stored responses at all gateways of a cluster: a conversation may go on at another gateway than the one that answered."""

from __future__ import annotations

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Collection, Container

import anyio
import msgspec

from hostler.adapters.stored_response import StoredResponse
from hostler.gateway.cluster.announcements import Announcements
from hostler.gateway.cluster.membership import Signer
from hostler.gateway.cluster.store import BACKGROUND_LIMIT_S, REQUEST_LIMIT_S, Script, Store, StoreAway
from hostler.gateway.response_store import ResponseStore

_DELETED = "responses-deleted"
#: Responses of one client in the store, and their bytes, each, at most.
_MAX_OF_CLIENT = 200
MAX_BYTES = 128 * 1024
#: Bytes that one step reads, unless it is a single response, and how many steps a request makes, at most. One that read
#: everything would be late, and so would be what others ask the store for at that moment.
_STEP_BYTES, _MAX_STEPS = MAX_BYTES, 16
#: Responses that wait to be written, and deletions, at most: a response may get lost, a deletion should not.
_MAX_ADDED, _MAX_DELETED = 200, 10_000

# A client's hash has for each response `r:ID` (its record), `p:ID` (the one before) and `n:ID` (its items), and for each
# item `i:ITEM` (its response).
_REMOVE = """
local function remove(hash, id)
    for item in string.gmatch(redis.call('HGET', hash, 'n:' .. id) or '', '[^\\n]+') do
        if redis.call('HGET', hash, 'i:' .. item) == id then redis.call('HDEL', hash, 'i:' .. item) end
    end
    redis.call('HDEL', hash, 'r:' .. id, 'p:' .. id, 'n:' .. id)
end
"""
_ADD = Script(
    _REMOVE
    + """
local hash, order, id = KEYS[1], KEYS[2], ARGV[1]
remove(hash, id)
redis.call('HSET', hash, 'r:' .. id, ARGV[2], 'p:' .. id, ARGV[3], 'n:' .. id, ARGV[4])
for item in string.gmatch(ARGV[4], '[^\\n]+') do redis.call('HSET', hash, 'i:' .. item, id) end
redis.call('ZADD', order, ARGV[5], id)
local old = ARGV[5] - ARGV[6]
for _, each in ipairs(redis.call('ZRANGEBYSCORE', order, '-inf', old)) do remove(hash, each) end
redis.call('ZREMRANGEBYSCORE', order, '-inf', old)
while redis.call('ZCARD', order) > tonumber(ARGV[7]) do remove(hash, redis.call('ZPOPMIN', order)[1]) end
redis.call('EXPIRE', hash, ARGV[6])
redis.call('EXPIRE', order, ARGV[6])
return 1
""",
    types=("hash", "zset"),
)
_DELETE = Script(
    _REMOVE + "remove(KEYS[1], ARGV[1]) redis.call('ZREM', KEYS[2], ARGV[1]) return 1", types=("hash", "zset")
)
#: The records of responses, or of those that have an item, and of all before them.
_READ = Script(
    """
local hash, found, seen, bytes = KEYS[1], {}, {}, 0
for place = 2, #ARGV do
    local id = ARGV[place]
    if redis.call('HEXISTS', hash, 'r:' .. id) == 0 then id = redis.call('HGET', hash, 'i:' .. id) or '' end
    while id and id ~= '' and not seen[id] do
        seen[id] = true
        local record = redis.call('HGET', hash, 'r:' .. id)
        if not record then break end
        bytes = bytes + #record
        if #found > 0 and bytes > tonumber(ARGV[1]) then return found end
        found[#found + 1] = record
        id = redis.call('HGET', hash, 'p:' .. id)
    end
end
return found
""",
    types=("hash",),
)


_Key = tuple[str, str]


class _Record(msgspec.Struct, frozen=True, array_like=True):
    client: str
    response: StoredResponse


class SharedResponses:
    """Writes what is stored and deleted here to the cluster's store, and reads what others have stored. `run` until cancelled.

    Records are signed with the cluster's token. Large responses stay at their own gateway.
    """

    scripts = (_ADD, _DELETE, _READ)

    def __init__(
        self, store: Store, signer: Signer, announcements: Announcements, responses: ResponseStore, *, max_age_s: float
    ) -> None:
        self._store = store
        self._signer = signer
        self._announcements = announcements
        self._responses = responses
        self._ttl_s = max(1, int(max_age_s))
        self._added: OrderedDict[_Key, None] = OrderedDict()
        self._deleted: OrderedDict[_Key, None] = OrderedDict()
        #: For each request that reads, what was deleted meanwhile.
        self._deleted_meanwhile: dict[int, set[_Key]] = {}
        self._numbers = itertools.count()
        self._wake = anyio.Event()
        responses.peers = self
        announcements.listen(_DELETED, self._on_deleted)
        store.on_connect(self._on_connect)

    def added(self, client: str, response: StoredResponse) -> None:
        """A response was stored here."""
        key = client, response.id
        self._deleted.pop(key, None)
        _put(self._added, key, _MAX_ADDED)
        self._wake.set()

    def deleted(self, client: str, response_id: str) -> None:
        """A response was deleted here."""
        key = client, response_id
        self._added.pop(key, None)
        _put(self._deleted, key, _MAX_DELETED)
        self._note_deleted(key)
        self._wake.set()

    async def fetch(self, client: str, ids: Collection[str]) -> None:
        """Take over responses that others have stored, by their ids or those of their items, with all before them."""
        ids = [each for each in ids if (client, each) not in self._deleted]
        if not ids:
            return
        number, deleted = next(self._numbers), set(self._deleted)
        self._deleted_meanwhile[number] = deleted
        try:
            await self._read(client, ids, deleted)
        except StoreAway:
            return
        finally:
            del self._deleted_meanwhile[number]

    async def _read(self, client: str, ids: Collection[str], deleted: Container[_Key]) -> None:
        seen: set[str] = set()
        for _ in range(_MAX_STEPS):
            found = await self._store.run_script(
                _READ, [self._keys(client)[0]], _STEP_BYTES, *ids, limit_s=REQUEST_LIMIT_S
            )
            before = []
            for value in found:
                record = self._signer.decoded(value, _Record)
                if record is None or record.client != client:
                    continue
                response = record.response
                seen |= {response.id, *response.output}
                if (client, response.id) not in deleted:
                    self._responses.take_over(client, response)
                    before += [response.previous] if response.previous is not None else []
            rest = (each for each in (*ids, *before) if each not in seen and self._responses.find(client, each) is None)
            ids = list(dict.fromkeys(rest))
            if not found or not ids:
                return

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            try:
                while self._deleted and self._store.connected:
                    await self._write_deletion()
                while self._added and not self._deleted and self._store.connected:
                    await self._write_response()
            except StoreAway:
                continue

    async def _write_deletion(self) -> None:
        client, response_id = key = next(iter(self._deleted))
        await self._store.run_script(_DELETE, self._keys(client), response_id, limit_s=BACKGROUND_LIMIT_S)
        self._announcements.send(_DELETED, key)
        self._deleted.pop(key, None)

    async def _write_response(self) -> None:
        client, response_id = key = next(iter(self._added))
        response = self._responses.find(client, response_id)
        if response is not None and _bytes_of(response) <= MAX_BYTES:
            record = self._signer.signed(msgspec.json.encode(_Record(client, response)))
            if len(record) <= MAX_BYTES:
                items = "\n".join(each for each in response.output if "\n" not in each)
                await self._store.run_script(
                    _ADD, self._keys(client), response_id, record, response.previous or "", items, response.at,
                    self._ttl_s, _MAX_OF_CLIENT, limit_s=BACKGROUND_LIMIT_S,
                )  # fmt: skip
        if self._responses.find(client, response_id) is response:
            self._added.pop(key, None)

    def _note_deleted(self, key: _Key) -> None:
        for deleted in self._deleted_meanwhile.values():
            deleted.add(key)

    def _on_connect(self) -> None:
        self._wake.set()

    def _on_deleted(self, _: str, message: bytes) -> None:
        try:
            client, response_id = msgspec.json.decode(message, type=tuple[str, str])
        except (msgspec.MsgspecError, RecursionError):
            return
        self._note_deleted((client, response_id))
        self._responses.forget(client, response_id)

    @staticmethod
    def _keys(client: str) -> tuple[str, str]:
        name = hashlib.sha256(client.encode("utf-8", "surrogateescape")).hexdigest()
        return f"responses:{name}", f"responses-order:{name}"


def _put(keys: OrderedDict[_Key, None], key: _Key, most: int) -> None:
    keys[key] = None
    keys.move_to_end(key)
    if len(keys) > most:
        keys.popitem(last=False)


def _bytes_of(response: StoredResponse) -> int:
    """How long its record is at least."""
    return sum(len(bytes(each)) for each in (response.body, *response.input, *response.output.values()))
