--[[
Taking, and giving back: holds with a deadline, reaped by whoever comes by; what is given back is what has not grown back.

  :holds      hash    id -> "cost,part,denominator,opened us": what is held and not yet settled
  :deadlines  zset    id, by the moment (us) at which its hold is reaped
  :reaped     zset    id, by the moment (us) at which it is forgotten: reaped, not yet settled; also what was merged by id

What a hold took from a bucket grows back by itself while it is open, but only while the bucket is not full: of what was taken, as
much is left as the least debt since then. That is why low-water marks are kept: giving back more would admit more than the limit.
]]
local REMEMBERED_US = 3600000000
local MOST_REAPED = 1000

-- A moment at which the debt was low: whoever has held since before it gets no more than this back, the rest has grown back.
-- The newest comes first; going back they fall. "+" before them: a hold was opened after the newest, so that the next one counts.
local function mark_low(s)
  if s.limit[1] ~= 'b' then
    return
  end
  local moment, debt = match(s.lows, '(%d+):(%d+)')
  if moment and tonumber(debt) <= s.debt and (string.sub(s.lows, 1, 1) ~= '+' or tonumber(moment) == s.now) then
    return
  end
  local kept = {{s.now, s.debt}}
  for older, low in string.gmatch(s.lows, '(%d+):(%d+)') do
    if tonumber(low) < s.debt then
      kept[#kept + 1] = {tonumber(older), tonumber(low)}
    end
  end
  if #kept > 8 then
    -- Two become one, to the disadvantage of who has held since between them: those that differ least.
    local least, gap = 1, math.huge
    for i = 1, #kept - 1 do
      if kept[i][2] - kept[i + 1][2] < gap then
        least, gap = i, kept[i][2] - kept[i + 1][2]
      end
    end
    kept[least][2] = kept[least + 1][2]
    table.remove(kept, least + 1)
  end
  for i, one in ipairs(kept) do
    kept[i] = format('%d:%d', one[1], one[2])
  end
  s.lows = table.concat(kept, '/')
end

local function charge(s, cost, part)
  if s.reap_at > 0 then
    mark_low(s)
  end
  s.debt, s.part = s.debt + cost, s.part + part
  if s.part > 0 and s.part >= s.limit[4] then
    s.debt, s.part = s.debt + 1, s.part - s.limit[4]
  end
  s.dirty = true
end

-- Give back what was taken at `opened`, as far as it has not grown back since.
local function give_back(s, cost, part, opened, fenced_at)
  local kind = s.limit[1]
  s.dirty = true
  if kind ~= 'c' and s.limit[7] == 0 and opened < fenced_at then
    return
  end
  if kind == 'b' then
    local low = s.debt
    for moment, debt in string.gmatch(s.lows, '(%d+):(%d+)') do
      if tonumber(moment) <= opened then
        break
      end
      low = math.min(low, tonumber(debt))
    end
    if cost >= low then
      cost, part = low, (low == s.debt and math.min(part, s.part) or 0)
    end
    s.debt, s.part = s.debt - cost, s.part - part
    if s.part < 0 then
      s.debt, s.part = s.debt - 1, s.part + s.limit[4]
    end
    if s.debt < 0 then
      s.debt, s.part = 0, 0
    end
  elseif kind == 'c' or opened >= s.start then
    s.debt = math.max(s.debt - cost, 0)
  elseif kind == 's' and opened >= s.start - s.limit[6] then
    s.before = math.max(s.before - cost, 0)
  end
end

-- What a hold says, in the limit's present denominator. A fraction under another rate is dropped.
local function held_by(s, id)
  local text = call('HGET', s.key .. ':holds', id)
  if not text then
    return nil
  end
  local cost, part, denominator, opened = match(text, '^(%d+),(%d+),(%d+),(%d+)$')
  if tonumber(denominator) ~= s.limit[4] then
    part = '0'
  end
  return tonumber(cost), tonumber(part), tonumber(opened)
end

local function let_go(s, id)
  call('HDEL', s.key .. ':holds', id)
  call('ZREM', s.key .. ':deadlines', id)
  local first = call('ZRANGE', s.key .. ':deadlines', 0, 0, 'WITHSCORES')
  s.reap_at = first[2] and tonumber(first[2]) or 0
  s.dirty = true
end

local function hold(s, id, cost, part, deadline_us)
  if s.limit[1] == 'c' then
    -- Higher than any before, also after the state was forgotten: server time only goes forward.
    s.fence = math.max(s.fence + 1, s.now)
  end
  local holds, deadlines = s.key .. ':holds', s.key .. ':deadlines'
  call('HSET', holds, id, format('%d,%d,%d,%d', cost, part, s.limit[4], s.now))
  call('ZADD', deadlines, integer(deadline_us), id)
  call('PEXPIRE', holds, LONGEST_MS)
  call('PEXPIRE', deadlines, LONGEST_MS)
  if string.sub(s.lows, 1, 1) ~= '+' then
    s.lows = '+' .. s.lows
  end
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
    local cost, part, opened = held_by(s, id)
    if cost then
      give_back(s, cost, part, opened, fenced_at)
    end
    remember(s, id)
    let_go(s, id)
  end
end
