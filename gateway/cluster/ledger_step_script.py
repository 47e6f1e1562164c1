"""The step in Lua that writes a gateway's figures, and admits what fits together with those of all others."""

from __future__ import annotations

from typing import Final

from hostler.gateway.cluster.ledger_layout import COMMON, SILENT_S
from hostler.gateway.cluster.store import Script

#: What a step says of a request that would fit if other gateways gave up what they may use without the store: they are asked.
ASKED: Final = 3

#: Writes own entries and shares, and admits what fits: KEYS are the gateways seen, the index, the parts, and the books.
STEP: Final = Script(
    COMMON
    + f"""
local part = part_of(ask.id)
if not redis.call('ZSCORE', seen, ask.id) or not part then return {{'lost', damaged, 'marked'}} end
if ask.part < part then
    part = ask.part
    redis.call('HSET', parts, ask.id, string.format('%.17g', part))
    redis.call('PUBLISH', ask.asking, '{{}}')
end
report(ask.id)
redis.call('ZREMRANGEBYSCORE', index, '-inf', now)
local gateways, last, part_by, spare, unsure = 0, {{}}, {{}}, 1, false
local ids = redis.call('ZRANGE', seen, 0, -1, 'WITHSCORES')
for i = 1, #ids, 2 do
    local id = ids[i]
    if not is_id(id) then
        redis.call('ZREM', seen, id)
        damaged[#damaged + 1] = seen .. ' ' .. id
    else
        gateways, last[id] = gateways + 1, tonumber(ids[i + 1])
    end
    if last[id] and id ~= ask.id then
        part_by[id] = part_of(id)
        unsure = unsure or not part_by[id]
        spare = spare - (part_by[id] or 0)
    end
end
for _, id in ipairs(redis.call('HKEYS', parts)) do
    if not last[id] then redis.call('HDEL', parts, id) end
end

local books, results = {{}}, {{}}

local function add(book, entry, with_reserved)
    for measure = 1, 2 do
        book.used[measure] = book.used[measure] + entry[1 + measure]
        if with_reserved then book.reserved[measure] = book.reserved[measure] + entry[3 + measure] end
    end
    for _, part in ipairs(entry[7]) do
        if part[1] > now - 60 then
            for measure = 1, 2 do book.used[measure] = book.used[measure] + part[1 + measure] end
        end
    end
end

-- Whether it is of minutes that are over for every gateway.
local function is_over(entry)
    for _, part in ipairs(entry[7]) do
        if part[1] > now - 120 then return false end
    end
    return true
end

local function left(book, measure)
    return book.limits[measure] - book.used[measure] - book.reserved[measure]
end

for number, asked in ipairs(ask.books) do
    local key = KEYS[number + 3]
    local book = {{key = key, asked = asked, limits = asked.limits, by_minute = asked.by_minute, own = asked.entry,
        used = {{0, 0}}, reserved = {{0, 0}}, open = 0, others = {{}}, promised = {{0, 0}}, absent = {{0, 0}}, present = {{}},
        granted = {{0, 0}}, wanted = nil}}
    replace(key, 'hash')
    local missing = {{}}
    for _, id in ipairs(asked.known) do missing[id] = true end
    for _, id in ipairs(asked.holding) do missing[id] = last[id] and true end
    local fields, held, sequence = redis.call('HGETALL', key), {{}}, 0
    for i = 1, #fields, 2 do
        local id, value = fields[i], fields[i + 1]
        local entry = decoded(key, id, value)
        if entry and string.sub(id, 1, 1) == '~' then
            held[string.sub(id, 2)] = entry
        elseif entry and id == ask.id then
            sequence = entry[1]
        elseif entry and asked.by_minute and not last[id] and is_over(entry) then
            redis.call('HDEL', key, id)
        elseif entry then
            -- What an ended gateway has reserved counts for a minute in the minute, and as used in the day.
            add(book, entry, not asked.by_minute or (last[id] or 0) > now - 60)
            if last[id] then book.open = book.open + entry[6] end
            book.others[#book.others + 1] = id
            book.others[#book.others + 1] = value
            missing[id] = nil
        end
    end
    if next(missing) or sequence < asked.acknowledged then return {{'lost', damaged, 'entries'}} end
    add(book, book.own, true)
    book.open = book.open + book.own[6]
    for id, at in pairs(last) do
        if id ~= ask.id then
            local share, is_present = held[id] or {{}}, at >= now - {SILENT_S}
            for measure = 1, 2 do
                local amount = share[measure] or (part_by[id] or 0) * math.max(0, book.limits[measure])
                book.promised[measure] = book.promised[measure] + amount
                if is_present then
                    book.present[id] = book.present[id] or {{}}
                    book.present[id][measure] = amount
                else
                    book.absent[measure] = book.absent[measure] + amount
                end
            end
        end
    end
    for id in pairs(held) do
        if not last[id] then redis.call('HDEL', key, '~' .. id) end
    end
    for measure = 1, 2 do
        if unsure then  -- Only what this gateway may use without the store is certainly not used elsewhere.
            local elsewhere = math.max(0, left(book, measure) - asked.share[measure])
            book.promised[measure] = math.max(book.promised[measure], elsewhere)
            book.absent[measure] = math.max(book.absent[measure], elsewhere)
        end
        book.used[measure] = book.used[measure] + book.promised[measure]
    end
    books[number] = book
end

-- Whether it fits; `given`: if the gateways that are there gave up their shares.
local function fits(part, given)
    local book = books[part.book + 1]
    for measure = 1, 2 do
        local rule, amount, limit = part.rules[measure], part.amounts[measure], book.limits[measure]
        local used = book.used[measure]
        if given then used = used - book.promised[measure] + book.absent[measure] end
        local total = used + book.reserved[measure]
        if limit >= 0 then
            local fit = total + amount <= limit + 1e-9
            if rule == 'fit' and not fit then return false end
            if rule == 'some' and total >= limit - 1e-9 then return false end
            if rule == 'alone' and amount > 0 and not fit and not (total <= 1e-9 and limit > 0) then return false end
            if rule == 'lone' and (book.open > 0 or used >= limit - 1e-9) then return false end
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
    for measure = 1, 2 do book.granted[measure] = book.granted[measure] + amounts[measure] end
    if amounts[1] > 0 then book.open, own[6] = book.open + 1, own[6] + 1 end
end

local function fit_all(wanted, given)
    for _, part in ipairs(wanted) do
        if not fits(part, given) then return false end
    end
    return true
end

local function ask_others(wanted)
    for _, part in ipairs(wanted) do
        local book = books[part.book + 1]
        if not fits(part, false) then
            book.wanted = book.wanted or {{0, 0}}
            for measure = 1, 2 do book.wanted[measure] = book.wanted[measure] + part.amounts[measure] end
        end
    end
end

for number, want in ipairs(ask.wants) do
    local may_ask = not unsure and not want.again
    if fit_all(want.required, false) then
        if may_ask and not fit_all(want.optional, false) and fit_all(want.optional, true) then
            results[number] = {ASKED}
            ask_others(want.optional)
        else
            results[number] = 1
            for _, part in ipairs(want.required) do reserve(part) end
            if fit_all(want.optional, false) then
                results[number] = 2
                for _, part in ipairs(want.optional) do reserve(part) end
            end
        end
    elseif may_ask and fit_all(want.required, true) then
        results[number] = {ASKED}
        ask_others(want.required)
    else
        results[number] = 0
    end
end

local answer = {{}}
for number, book in ipairs(books) do
    local asked, share, waited, targets = book.asked, {{}}, {{}}, {{}}
    for measure = 1, 2 do
        local rest = left(book, measure)
        local fair = math.min(rest, part * (rest + book.promised[measure]), asked.most[measure])
        -- Without what was granted: this gateway may not get to know of it.
        share[measure] = math.max(0, asked.share[measure] - book.granted[measure], fair)
        if book.limits[measure] < 0 then share[measure] = 0 end
    end
    local value, kept = written(book.own), pair(share[1], share[2])
    keep(book.key, asked.name, asked.ttl, ask.id, value)
    redis.call('HSET', book.key, '~' .. ask.id, kept)
    redis.call('PUBLISH', ask.channel, table.concat({{ask.id, value, kept, asked.rules, asked.name}}, ' '))
    for id, amounts in pairs(book.wanted and book.present or {{}}) do
        local target, lower = {{0, 0}}, false
        for measure = 1, 2 do
            local rest = left(book, measure) + book.promised[measure] - book.absent[measure] - book.wanted[measure]
            target[measure] = math.min(amounts[measure], part_by[id] * math.max(0, rest))
            lower = lower or target[measure] < amounts[measure]
        end
        if lower then
            targets[id] = target
            waited[#waited + 1], waited[#waited + 2] = id, pair(target[1], target[2])
        end
    end
    if next(targets) then
        redis.call('PUBLISH', ask.asking, cjson.encode({{name = asked.name, rules = asked.rules, shares = targets}}))
    end
    answer[number] = {{value, kept, pair(book.absent[1], book.absent[2]), book.others, waited}}
end
local known = {{}}
for id in pairs(last) do known[#known + 1] = id end
return {{string.format('%.17g', now), known, results, answer, damaged, string.format('%.17g', unsure and -1 or spare)}}
"""
)
