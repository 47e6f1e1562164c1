"""The steps in Lua of the ledger of budgets. Each runs in the store as a whole, on the store's clock."""

from __future__ import annotations

from typing import Final

from hostler.gateway.cluster.store import Script

#: After which silence another gateway may be without the store and use its share, and after which it is gone, in seconds.
SILENT_S: Final = 3.0
GONE_S: Final = 600.0
#: How long entries are kept, in seconds: those of a day, and those of a minute.
DAY_TTL_S: Final = 2 * 24 * 3600
MINUTE_TTL_S: Final = 180

# An entry is [sequence, used a, used b, reserved a, reserved b, open, window]; the window's parts are [moment, a, b].
# A book is a hash: a gateway's id -> its entry, and `~` and its id -> what is withheld for it while it is silent.
# What something else has written at one of these places is removed, and its name added to `damaged`.
_COMMON: Final = f"""
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local ask = cjson.decode(ARGV[1])
local seen, index = KEYS[1], KEYS[2]
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

local function decoded(key, field, value)
    local ok, found = pcall(cjson.decode, value)
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
redis.call('ZREMRANGEBYSCORE', seen, '-inf', now - {GONE_S})

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

#: How the answer of a step begins if the store has lost anything that this gateway knows of: it has to be restored before.
LOST: Final = b"lost"

#: Writes own entries and admits what fits: KEYS are the gateways seen, the index, and the books.
STEP: Final = Script(
    _COMMON
    + f"""
if not redis.call('ZSCORE', seen, ask.id) then return {{'lost', damaged}} end
redis.call('ZADD', seen, now, ask.id)
redis.call('EXPIRE', seen, {GONE_S:.0f})
redis.call('ZREMRANGEBYSCORE', index, '-inf', now)
local gateways, last, silent = 0, {{}}, {{}}
local ids = redis.call('ZRANGE', seen, 0, -1, 'WITHSCORES')
for i = 1, #ids, 2 do
    gateways = gateways + 1
    last[ids[i]] = tonumber(ids[i + 1])
    if ids[i] ~= ask.id and last[ids[i]] < now - {SILENT_S} then silent[#silent + 1] = ids[i] end
end

local books, results = {{}}, {{}}

local function add(book, entry, with_reserved)
    for measure = 1, 2 do
        book.used[measure] = book.used[measure] + entry[1 + measure]
        if with_reserved then book.reserved[measure] = book.reserved[measure] + entry[3 + measure] end
    end
    if with_reserved then book.open = book.open + entry[6] end
    for _, part in ipairs(entry[7]) do
        if part[1] > now - 60 then
            for measure = 1, 2 do book.used[measure] = book.used[measure] + part[1 + measure] end
        end
    end
end

for number, asked in ipairs(ask.books) do
    local key = KEYS[number + 2]
    local book = {{key = key, name = asked.name, ttl = asked.ttl, limits = asked.limits, by_minute = asked.by_minute, own = asked.entry,
        used = {{0, 0}}, reserved = {{0, 0}}, open = 0, others = {{}}}}
    replace(key, 'hash')
    local missing = {{}}
    for _, id in ipairs(asked.known) do missing[id] = true end
    local fields, held = redis.call('HGETALL', key), {{}}
    for i = 1, #fields, 2 do
        local id, value = fields[i], fields[i + 1]
        local entry = id ~= ask.id and decoded(key, id, value)
        if entry and string.sub(id, 1, 1) == '~' then
            held[string.sub(id, 2)] = entry
        elseif entry then
            -- What an ended gateway has reserved counts for a minute in the minute, and as used in the day.
            add(book, entry, not asked.by_minute or (last[id] or 0) > now - 60)
            book.others[#book.others + 1] = id
            book.others[#book.others + 1] = value
            missing[id] = nil
        end
    end
    if next(missing) then return {{'lost', damaged}} end
    add(book, book.own, true)
    local withheld = {{0, 0}}
    for _, id in ipairs(silent) do
        local share = {{0, 0}}
        if held[id] then
            share = held[id]
        else
            for measure = 1, 2 do
                local rest = book.limits[measure] - book.used[measure] - book.reserved[measure]
                if book.limits[measure] >= 0 and rest > 0 then share[measure] = rest / gateways end
            end
            if book.limits[1] >= 0 or book.limits[2] >= 0 then
                redis.call('HSET', key, '~' .. id, string.format('[%.17g,%.17g]', share[1], share[2]))
            end
        end
        held[id] = nil
        for measure = 1, 2 do withheld[measure] = withheld[measure] + share[measure] end
    end
    for id in pairs(held) do redis.call('HDEL', key, '~' .. id) end
    for measure = 1, 2 do
        -- Whole requests and tokens: a part of one that is withheld is none.
        if asked.whole[measure] then withheld[measure] = math.floor(withheld[measure]) end
        book.used[measure] = book.used[measure] + withheld[measure]
    end
    book.withheld = withheld
    books[number] = book
end

local function fits(part)
    local book = books[part.book + 1]
    for measure = 1, 2 do
        local rule, amount, limit = part.rules[measure], part.amounts[measure], book.limits[measure]
        local total = book.used[measure] + book.reserved[measure]
        if limit >= 0 then
            local fit = total + amount <= limit + 1e-9
            if rule == 'fit' and not fit then return false end
            if rule == 'some' and total >= limit then return false end
            if rule == 'alone' and amount > 0 and not fit and not (total <= 1e-9 and limit > 0) then return false end
            if rule == 'lone' and (book.open > 0 or book.used[measure] >= limit) then return false end
        end
    end
    return true
end

local function reserve(part)
    local book = books[part.book + 1]
    local amounts, own = part.amounts, book.own
    local first = 1
    if book.by_minute then  -- requests count at once
        first = 2
        book.used[1] = book.used[1] + amounts[1]
        own[7][#own[7] + 1] = {{math.floor(now) + 1, amounts[1], 0}}
    end
    for measure = first, 2 do
        book.reserved[measure] = book.reserved[measure] + amounts[measure]
        own[3 + measure] = own[3 + measure] + amounts[measure]
    end
    if amounts[1] > 0 then book.open, own[6] = book.open + 1, own[6] + 1 end
end

local function try(parts)
    for _, part in ipairs(parts) do
        if not fits(part) then return false end
    end
    for _, part in ipairs(parts) do reserve(part) end
    return true
end

for number, want in ipairs(ask.wants) do
    results[number] = 0
    if try(want.required) then
        results[number] = 1
        if try(want.optional) then results[number] = 2 end
    end
end

local answer = {{}}
for number, book in ipairs(books) do
    local value = written(book.own)
    keep(book.key, book.name, book.ttl, ask.id, value)
    redis.call('PUBLISH', ask.channel, ask.id .. ' ' .. value .. ' ' .. book.name)
    answer[number] = {{value, string.format('[%.17g,%.17g]', book.withheld[1], book.withheld[2]), book.others}}
end
local known = {{}}
for id in pairs(last) do known[#known + 1] = id end
return {{string.format('%.17g', now), known, results, answer, damaged}}
"""
)

#: Brings entries back to a store that may have lost them, and returns those of other gateways. Gateways that are not back yet
#: may still use the shares that they had.
RESTORE: Final = Script(
    _COMMON
    + f"""
local absent, lost = {{}}, redis.call('EXISTS', seen) == 0
for _, id in ipairs(ask.gateways) do
    local score = redis.call('ZSCORE', seen, id)
    -- What kept this gateway from the store may still keep the others from it. Those that have it report each second.
    if id ~= ask.id and (lost or (score and (ask.returns or tonumber(score) < now - {SILENT_S}))) then
        redis.call('ZADD', seen, math.min(now - {SILENT_S} - 1, tonumber(score or now)), id)
        absent[#absent + 1] = id
    end
end
redis.call('ZADD', seen, now, ask.id)
redis.call('EXPIRE', seen, {GONE_S:.0f})
local answer = {{}}
for number, book in ipairs(ask.books) do
    local key = KEYS[number + 2]
    replace(key, 'hash')
    for id, entry in pairs(book.entries) do
        local found = redis.call('HGET', key, id)
        local known = found and decoded(key, id, found)
        if not known or known[1] < entry[1] then keep(key, book.name, book.ttl, id, written(entry)) end
    end
    for _, id in ipairs(absent) do
        if book.share[1] + book.share[2] > 0 then
            redis.call('HSETNX', key, '~' .. id, string.format('[%.17g,%.17g]', book.share[1], book.share[2]))
            redis.call('EXPIRE', key, book.ttl)
        end
    end
    answer[number] = redis.call('HGETALL', key)
end
return {{string.format('%.17g', now), answer, damaged}}
"""
)

#: This gateway stops, and leaves its share to the others.
LEAVE: Final = Script("return redis.call('ZREM', KEYS[1], ARGV[1])", types=("zset",))

#: The names of all books. Something else at the place of their index is removed.
NAMES: Final = Script("""
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'zset' then
    redis.call('DEL', KEYS[1])
    return {}
end
return redis.call('ZRANGE', KEYS[1], 0, -1)
""")
