#!lua flags=allow-oom
--[[
rate_limiter/settle: end holds with what was really used, keep them longer, give back, and record what was used elsewhere.

Runs also when the server is out of memory: it frees more than it takes.

KEYS
  fence          string  "<replication id>,<run id>,<fenced since us>"
  states...      string  one for every request, in their order (_state.lua)

ARGV
  now_us         int us  the caller's clock; 0 = ask Redis (always 0 in production)
  known          0|1|2   does the caller know this store's fence; 2: it needs none (_state.lua)
  limits         JSON    list of limits (_state.lua)
  requests       JSON    list of [verb, id, lease_us, limit, cost, part, held, held_part, opened_us]
                         "settle": cost was used of what is held since opened_us. "renew": hold for lease_us from now.
                         "return": give back cost, which was taken at opened_us without a hold. "debit": cost was used
                         while this store was away; once per id

RETURNS {now_us, fenced_at, answer...}, flat: an answer per request being status, excess, excess_part
  status         int     1 done; 2 done late (the hold had been reaped; the use is recorded); 3 nothing to do (no such hold: settled
                         before, or never made); -1 the state could not be read; -3 now_us lies outside of a window that the
                         caller named
  excess         int     what was not recorded because the debt would have been above ten times the capacity
  excess_part    int     and its numerator

COMPLEXITY  O(requests): per request one GET, at most one SET, and the holds
ATOMICITY   one slot; an id is settled once
EXPIRY      as in decide
RETRY       safe (settle, renew, debit: by id; a "return" may be lost, never resent)
USES        rate_limiter/_state rate_limiter/_holds
]]
local fence = KEYS[1]
local now_us = clock(tonumber(ARGV[1]))
local known = tonumber(ARGV[2])
local limits = cjson.decode(ARGV[3])
local requests = cjson.decode(ARGV[4])

local MOST_DEBT = 10
local fenced_at = fenced(fence, known, now_us)
local replies = {now_us, fenced_at}

-- Record a use that nobody could refuse. Above the bound it is not recorded: a runaway number must not lock an identity for years.
local function record(s, cost, part)
  local capacity = s.limit[2]
  local room = math.max(math.max(capacity, 1) * MOST_DEBT - s.debt, 0)
  if cost <= room then
    charge(s, cost, part)
    return 0, 0
  end
  charge(s, room, 0)
  return cost - room, part
end

local function settle(s, id, cost, part, held, held_part, opened)
  local kind = s.limit[1]
  shrink(s)
  local was, was_part, since, mine = held_by(s, id)
  if was then
    let_go(s, id, mine, cost == 0 and part == 0 and 'cancelled' or 'settled')
    held, held_part, opened = was, was_part, since
  elseif call('ZREM', s.key .. ':reaped', id) == 1 then
    if kind == 'c' then
      return 2, 0, 0
    end
    return 2, record(s, cost, part)
  elseif fenced_at > opened and opened > 0 and kind ~= 'c' then
    -- Held on a server that is gone. What was held counts as spent at the fence, unless the state is believed: then all is due.
    if not remember(s, format('settled-%s', id)) then
      return 3, 0, 0
    end
    if s.limit[7] == 1 then
      return 2, record(s, cost, part)
    end
  else
    return 3, 0, 0
  end
  if kind == 'c' then
    give_back(s, held, 0, opened, fenced_at, 0)
    return 1, 0, 0
  end
  local more, more_part = cost - held, part - held_part
  if more_part < 0 then
    more, more_part = more - 1, more_part + s.limit[4]
  end
  if more >= 0 then
    return 1, record(s, more, more_part)
  end
  local less, less_part = held - cost, held_part - part
  if less_part < 0 then
    less, less_part = less - 1, less_part + s.limit[4]
  end
  give_back(s, less, less_part, opened, fenced_at, mine or 0)
  return 1, 0, 0
end

local function renew(s, id, lease_us, held, held_part)
  if call('HEXISTS', s.key .. ':holds', id) == 1 then
    call('ZADD', s.key .. ':deadlines', integer(s.now + lease_us), id)
    call('ZADD', fence .. ':holds:open', 'XX', integer(s.now + lease_us), format('%s|%s', s.key, id))
    call('PEXPIRE', s.key .. ':holds', LONGEST_MS)
    call('PEXPIRE', s.key .. ':deadlines', LONGEST_MS)
    local first = call('ZRANGE', s.key .. ':deadlines', 0, 0, 'WITHSCORES')
    s.reap_at, s.dirty = tonumber(first[2]), true
    return 1, 0, 0
  end
  local reaped = call('ZSCORE', s.key .. ':reaped', id)
  if s.limit[1] == 'c' and s.now < s.unknown_until and not reaped and s.debt + held <= s.limit[2] then
    -- After a failover all slots count as taken until their holders have had time to say so.
    charge(s, held, held_part)
    hold(s, id, held, held_part, s.now + lease_us)
    return 1, 0, 0
  end
  return 3, 0, 0
end

for number, request in ipairs(requests) do
  local verb, id, lease_us, limit = request[1], request[2], request[3], limits[request[4]]
  local cost, part, held, held_part, opened = request[5], request[6], request[7], request[8], request[9]
  local s = read(limit, KEYS[number + 1], now_us, fenced_at)
  if not s or s.stale then
    replies[3 * number], replies[3 * number + 1], replies[3 * number + 2] = s and -3 or -1, 0, 0
  else
    local status, excess, excess_part = 1, 0, 0
    if verb == 'settle' then
      status, excess, excess_part = settle(s, id, cost, part, held, held_part, opened)
    elseif verb == 'renew' then
      status = renew(s, id, lease_us, held, held_part)
    elseif verb == 'return' then
      -- Without a hold nobody kept watch: as much as can have grown back by now, has.
      local grown = limit[1] == 'b' and s.now - opened or 0
      if cost > grown then
        give_back(s, cost - grown, part, opened, fenced_at, s.debt)
      end
    elseif remember(s, id) then
      excess, excess_part = record(s, cost, part)
    else
      status = 3
    end
    reap(s, fenced_at)
    write(s)
    replies[3 * number], replies[3 * number + 1], replies[3 * number + 2] = status, excess, excess_part
  end
end
return replies
