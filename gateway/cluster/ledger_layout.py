"""Where the ledger of budgets is in the store, for how long, and what its steps in Lua have in common."""

from __future__ import annotations

from typing import Final

#: After which silence another gateway is not expected to answer, and after which its share is no longer kept for it, in
#: seconds.
SILENT_S: Final = 3.0
GONE_S: Final = 600.0
#: How long entries are kept, in seconds: those of a day, and those of a minute.
DAY_TTL_S: Final = 2 * 24 * 3600
MINUTE_TTL_S: Final = 180

#: Channels on which figures are published, and shares are asked for.
CHANNEL: Final = "budgets"
ASKING: Final = "budgets:asking"
#: Keys: gateways by when they were last there, names of books by when they end, `parts` (see below), and a word that is new
#: whenever the store has lost something.
SEEN: Final = "budgets:seen"
INDEX: Final = "budgets:index"
PARTS: Final = "budgets:parts"
LIFE: Final = "budgets:life"
#: How the answer of a step begins if the store lacks anything that this gateway knows of: it has to be restored before.
LOST: Final = b"lost"


def key_of(book: str) -> str:
    """The key of a book."""
    return f"budget:{book}"


# An entry is [sequence, used a, used b, reserved a, reserved b, open, window]; the window's parts are [moment, a, b].
# A book is a hash: a gateway's id -> its entry, and `~` and its id -> its share: what it may use without the store beyond its
# entry, [a, b]. Nothing but the gateway itself lowers that, since an answer that does may be lost. In books without a share of
# a gateway it is the gateway's part of the limit. `parts` is a hash: a gateway's id -> its part, from 0 to 1, or `?` if the store
# has lost what the gateway holds, until the gateway has said it again.
# What something else has written at one of these places is removed, and its name added to `damaged`.
COMMON: Final = f"""
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local ask = cjson.decode(ARGV[1])
local seen, index, parts = KEYS[1], KEYS[2], KEYS[3]
local damaged = {{}}

local function replace(key, kind)
    local found = redis.call('TYPE', key).ok
    if found ~= 'none' and found ~= kind then
        redis.call('DEL', key)
        damaged[#damaged + 1] = key
    end
end

local function amounts(value, count)
    if type(value) ~= 'table' or #value < count then return false end
    for place = 1, count do
        local each = value[place]
        if type(each) ~= 'number' or not (each >= 0 and each < 1e300) then return false end
    end
    return true
end

local function is_id(name)
    return #name <= 64 and string.find(name, '^[%w_-]+$') ~= nil
end

local function decoded(key, field, value)
    local ok, found = pcall(cjson.decode, value)
    ok = ok and is_id((string.gsub(field, '^~', '')))
    if ok then
        if string.sub(field, 1, 1) == '~' then
            ok = amounts(found, 2)
        else
            ok = amounts(found, 6) and type(found[7]) == 'table'
            for _, part in ipairs(ok and found[7] or {{}}) do ok = ok and amounts(part, 3) end
        end
    end
    if ok then return found end
    redis.call('HDEL', key, field)
    damaged[#damaged + 1] = key .. ' ' .. field
    return nil
end

replace(seen, 'zset')
replace(index, 'zset')
replace(parts, 'hash')
redis.call('ZREMRANGEBYSCORE', seen, '-inf', now - {GONE_S})
for _, id in ipairs(redis.call('ZRANGEBYSCORE', seen, now + 1, '+inf')) do redis.call('ZADD', seen, now, id) end

local function part_of(id)
    local part = tonumber(redis.call('HGET', parts, id) or '')
    return part and part >= 0 and part <= 1 and part or nil
end

local function report(id)
    redis.call('ZADD', seen, now, id)
    redis.call('EXPIRE', seen, {GONE_S:.0f})
    redis.call('EXPIRE', parts, {GONE_S:.0f})
end

local function pair(a, b)
    return string.format('[%.17g,%.17g]', a, b)
end

local function written(entry)
    local window = {{}}
    for _, part in ipairs(entry[7]) do
        if part[1] > now - 60 then window[#window + 1] = string.format('[%.17g,%.17g,%.17g]', part[1], part[2], part[3]) end
    end
    return string.format('[%.17g,%.17g,%.17g,%.17g,%.17g,%d,[%s]]', entry[1], entry[2], entry[3], entry[4], entry[5], entry[6],
        table.concat(window, ','))
end

local function keep(key, name, ttl, field, value)
    redis.call('HSET', key, field, value)
    redis.call('EXPIRE', key, ttl)
    redis.call('ZADD', index, now + ttl, name)
    redis.call('EXPIRE', index, {DAY_TTL_S})
end
"""
