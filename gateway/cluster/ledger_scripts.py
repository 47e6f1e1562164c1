"""The steps in Lua by which gateways come and go in the ledger of budgets. Each runs in the store as a whole, on its clock."""

from __future__ import annotations

from typing import Final

from hostler.gateway.cluster.ledger_layout import COMMON, DAY_TTL_S, SILENT_S
from hostler.gateway.cluster.store import Script

#: Brings entries back to a store that may have lost them, with what this gateway holds, and returns those of other gateways.
#: KEYS are those of a step, with the store's life before the books. If the store has lost anything, or is another server than
#: the one that was written to, gateways that are not back yet may hold any share.
RESTORE: Final = Script(
    COMMON
    + f"""
local part, dropped = ask.part, false
if ask.first then
    local life = KEYS[4]
    replace(life, 'string')
    local lost = redis.call('EXISTS', seen) == 0 or (ask.fresh and (redis.call('GET', life) or '') == ask.life)
    dropped = not lost and not redis.call('ZSCORE', seen, ask.id)
    if lost then
        redis.call('SET', life, ask.next_life)
        for _, id in ipairs(redis.call('ZRANGE', seen, 0, -1)) do redis.call('HSET', parts, id, '?') end
        for _, id in ipairs(ask.gateways) do
            redis.call('ZADD', seen, 'NX', now - {SILENT_S} - 1, id)
            redis.call('HSET', parts, id, '?')
        end
    end
    redis.call('EXPIRE', life, {DAY_TTL_S})
    if dropped or not part_of(ask.id) then redis.call('HSET', parts, ask.id, '?') end
elseif not redis.call('ZSCORE', seen, ask.id) then
    return {{'lost', damaged}}  -- emptied meanwhile
end
report(ask.id)
local answer = {{}}
for number, book in ipairs(ask.books) do
    local key = KEYS[number + 4]
    replace(key, 'hash')
    for id, entry in pairs(book.entries) do
        local found = redis.call('HGET', key, id)
        local known = found and decoded(key, id, found)
        if not known or known[1] < entry[1] then keep(key, book.name, book.ttl, id, written(entry)) end
    end
    if book.share ~= cjson.null and redis.call('EXISTS', key) == 1 then
        redis.call('HSET', key, '~' .. ask.id, dropped and '[0,0]' or pair(book.share[1], book.share[2]))
    end
    answer[number] = redis.call('HGETALL', key)
end
if ask.last then
    redis.call('HSET', parts, ask.id, string.format('%.17g', dropped and 0 or part))
    redis.call('PUBLISH', ask.asking, '{{}}')
end
return {{string.format('%.17g', now), answer, damaged, dropped and 1 or 0}}
"""
)

#: Raises this gateway's part to what is fair and not another one's. In all books that there are it gets a share of nothing,
#: unless it has one: its part counts in later ones. Returns the part, and the names of the books.
RAISE: Final = Script(
    COMMON
    + """
local part = part_of(ask.id)
if not redis.call('ZSCORE', seen, ask.id) or not part then return {'-1', {}} end
local gateways, spare = 0, 1
for _, id in ipairs(redis.call('ZRANGE', seen, 0, -1)) do
    gateways = gateways + 1
    if id ~= ask.id then spare = spare - (part_of(id) or 1) end
end
local raised, names = math.min(1 / gateways, spare), {}
if raised > part then
    part = raised
    redis.call('HSET', parts, ask.id, string.format('%.17g', part))
    names = redis.call('ZRANGE', index, 0, -1)
    for _, name in ipairs(names) do
        local key = ask.prefix .. name
        if redis.call('TYPE', key).ok == 'hash' then redis.call('HSETNX', key, '~' .. ask.id, '[0,0]') end
    end
end
return {string.format('%.17g', part), names}
"""
)

#: This gateway stops, and leaves its share to the others.
LEAVE: Final = Script(
    """
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('PUBLISH', ARGV[2], '{}')
return redis.call('ZREM', KEYS[1], ARGV[1])
""",
    types=("zset", "hash"),
)

#: The store's life, and the names of all books. Something else at the place of their index is removed.
NAMES: Final = Script("""
local life = redis.call('TYPE', KEYS[2]).ok == 'string' and redis.call('GET', KEYS[2]) or ''
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'zset' then
    redis.call('DEL', KEYS[1])
    return {life, {}}
end
return {life, redis.call('ZRANGE', KEYS[1], 0, -1)}
""")
