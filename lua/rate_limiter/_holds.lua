--[[
Taking, and giving back: holds with a deadline, reaped by whoever comes by; what is given back is what has not grown back.

  :holds      hash    id -> "cost,part,denominator,opened us,share,era": what is held and not yet settled
  :deadlines  zset    id, by the moment (us) at which its hold is reaped
  :reaped     zset    id, by the moment (us) at which it is forgotten: reaped, not yet settled; also what was merged by id

Beside the fence, for all limits and identities of its slot, the ledger of holds: each is in it once, and ends once, in one way.

  :holds:open    zset    "state|id", by the moment (us) at which the hold is reaped
  :holds:ledger  hash    reserved; settled, cancelled, reaped: how many holds, ever

What a hold took from a bucket grows back by itself while it is open, but only while the bucket is not full: what all holds took and
has not grown back, `held`, is never more than the debt. When the debt falls below it, each hold loses the same share: `share` is the
product of those, and a hold remembers it as it was. Giving back more than a hold's part would admit more than the limit.
]]
local REMEMBERED_US = 3600000000
local MOST_REAPED = 1000
-- A bucket that nobody asks any more reaps nothing: after so long its holds are reaped in the ledger by whoever comes by.
local FORGOTTEN_US = 60000000

local function sweep(now_us, most)
  local open = KEYS[1] .. ':holds:open'
  local gone = call('ZRANGEBYSCORE', open, '-inf', integer(now_us - FORGOTTEN_US), 'LIMIT', 0, most)
  if #gone > 0 then
    call('ZREM', open, unpack(gone))
    call('HINCRBY', KEYS[1] .. ':holds:ledger', 'reaped', #gone)
  end
  return #gone
end

-- The debt is as low as it gets before the next charge: what of the holds has grown back is lost to them, to all by the same share.
local function shrink(s)
  local owed = s.debt + (s.part > 0 and 1 or 0)
  if s.held <= owed or s.limit[1] ~= 'b' then
    return
  end
  s.share = math.floor(s.share * (owed / s.held))
  s.held = owed
  if s.share < 1000000 then
    -- As good as nothing: who holds since before has no part any more.
    s.held, s.share, s.era = 0, WHOLE, s.era + 1
  end
end

local function charge(s, cost, part)
  shrink(s)
  s.debt, s.part = s.debt + cost, s.part + part
  if s.part > 0 and s.part >= s.limit[4] then
    s.debt, s.part = s.debt + 1, s.part - s.limit[4]
  end
  s.dirty = true
end

-- Give back what was taken at `opened`: of a bucket at most `most`, which has not grown back since.
local function give_back(s, cost, part, opened, fenced_at, most)
  local kind = s.limit[1]
  s.dirty = true
  if kind ~= 'c' and s.limit[7] == 0 and opened < fenced_at then
    return
  end
  if kind == 'b' then
    if cost + (part > 0 and 1 or 0) > most then
      cost, part = most, 0
    end
    s.debt, s.part = s.debt - cost, s.part - part
    if s.part < 0 then
      s.debt, s.part = s.debt - 1, s.part + s.limit[4]
    end
    if s.debt < 0 then
      s.debt, s.part = 0, 0
    end
  elseif kind == 'c' or (opened >= s.start and opened < s.ends) then
    s.debt = math.max(s.debt - cost, 0)
  elseif kind == 's' and opened >= s.start - s.limit[6] and opened < s.start then
    s.before = math.max(s.before - cost, 0)
  end
end

-- What a hold says, in the limit's present denominator (a fraction under another rate is dropped), and its part of what is held.
local function held_by(s, id)
  local text = call('HGET', s.key .. ':holds', id)
  if not text then
    return nil
  end
  local cost, part, denominator, opened, share, era = match(text, '^(%d+),(%d+),(%d+),(%d+),(%d+),(%d+)$')
  if tonumber(denominator) ~= s.limit[4] then
    part = '0'
  end
  cost, part = tonumber(cost), tonumber(part)
  local mine = tonumber(era) == s.era and cost + (part > 0 and 1 or 0) or 0
  if tonumber(share) ~= s.share then
    mine = math.ceil(mine * (s.share / tonumber(share)))
  end
  -- Rounded up, and together never more than is held.
  return cost, part, tonumber(opened), math.min(mine, s.held)
end

-- outcome: settled, cancelled or reaped.
local function let_go(s, id, mine, outcome)
  if call('ZREM', KEYS[1] .. ':holds:open', format('%s|%s', s.key, id)) == 1 then
    call('HINCRBY', KEYS[1] .. ':holds:ledger', outcome, 1)
  end
  call('HDEL', s.key .. ':holds', id)
  call('ZREM', s.key .. ':deadlines', id)
  local first = call('ZRANGE', s.key .. ':deadlines', 0, 0, 'WITHSCORES')
  s.reap_at = first[2] and tonumber(first[2]) or 0
  s.held = s.reap_at > 0 and math.max(s.held - mine, 0) or 0
  s.dirty = true
end

local function hold(s, id, cost, part, deadline_us)
  if s.limit[1] == 'c' then
    -- Higher than any before, also after the state was forgotten: server time only goes forward.
    s.fence = math.max(s.fence + 1, s.now)
  end
  local holds, deadlines = s.key .. ':holds', s.key .. ':deadlines'
  call('HSET', holds, id, format('%d,%d,%d,%d,%d,%d', cost, part, s.limit[4], s.now, s.share, s.era))
  if s.limit[1] == 'b' then
    s.held = s.held + cost + (part > 0 and 1 or 0)
  end
  call('ZADD', deadlines, integer(deadline_us), id)
  if call('ZADD', KEYS[1] .. ':holds:open', integer(deadline_us), format('%s|%s', s.key, id)) == 1 then
    call('HINCRBY', KEYS[1] .. ':holds:ledger', 'reserved', 1)
  end
  sweep(s.now, 4)
  call('PEXPIRE', holds, LONGEST_MS)
  call('PEXPIRE', deadlines, LONGEST_MS)
  s.reap_at = s.reap_at == 0 and deadline_us or math.min(s.reap_at, deadline_us)
  s.dirty = true
end

local function remember(s, id)
  local reaped = s.key .. ':reaped'
  call('ZREMRANGEBYSCORE', reaped, '-inf', integer(s.now))
  local new = call('ZADD', reaped, 'NX', integer(s.now + REMEMBERED_US), id)
  call('ZREMRANGEBYRANK', reaped, 0, -MOST_REAPED - 1)
  call('PEXPIRE', reaped, LONGEST_MS)
  return new == 1
end

-- Holds whose owner fell silent are given back; a few per call, so that no caller pays for many.
local function reap(s, fenced_at)
  if s.reap_at == 0 or s.now < s.reap_at then
    return
  end
  for _, id in ipairs(call('ZRANGEBYSCORE', s.key .. ':deadlines', '-inf', integer(s.now), 'LIMIT', 0, 8)) do
    shrink(s)
    local cost, part, opened, mine = held_by(s, id)
    if cost then
      give_back(s, cost, part, opened, fenced_at, mine)
    end
    remember(s, id)
    let_go(s, id, mine or 0, 'reaped')
  end
end
