--[[
What every verb of this room knows: the fence, and how the state of one limit and identity is read, drained, reaped, written.

The state is a string "a,b,c,moment" at the key, and beside it, by suffix and so in the same slot, what only some need.

  kind     a            b                c            the moment (us) is when that was true
  bucket   debt in us   its numerator    denominator  debt is the time until the bucket is full again
  window   used         used before      start in us  units; "used before" is of the window before, for sliding alone
  slots    taken        the last fence   0

  ",reap_at,line_until,queued,leased_until,lease,held,share,era" follows while one of them is needed: the earliest deadline of a
  hold; a line that nobody may overtake stands until then, and asks for so much; tokens that were lent may be spent until then, for
  so long; what holds have taken and has not grown back, and how it is divided among them (_holds.lua).

A limit comes as [kind, capacity, part, denominator, start, length, keep, shadow], kind "b", "w", "s" or "c": of a bucket the
capacity is time (us, and numerator), of the others units. start: of the window that the caller believes in, 0 when windows follow
from the length alone; sliding: the tick. length: of the window; of slots: how long a holder may be unknown after a failover.
keep 1: state from before a failover is believed. shadow 1: it watches and never refuses.
]]
-- A hold lasts an hour at most, and must find the state that it was taken from.
local LONGEST_MS = 3720000
local WHOLE = 1000000000000000

local call = redis.call
local format, match = string.format, string.match

-- Whole numbers below 2^53 are exact in %d, and in nothing that writes them by itself.
local function integer(number)
  return format('%d', number)
end

local function clock(now_us)
  if now_us ~= 0 then
    return now_us
  end
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end

-- The moment before which nothing may be believed: 0, or when this server was found to have been restarted or promoted.
-- known: 0 the caller never saw a record of this store, 1 it did, 2 the store loses nothing that it has acknowledged.
local function fenced(fence, known, now_us)
  if known == 2 then
    return 0
  end
  local said = redis.pcall('INFO', 'replication')
  local at = type(said) == 'string' and string.find(said, 'master_replid:', 1, true)
  if not at then
    return 0
  end
  local history = string.sub(said, at + 14, at + 53)
  local record = call('GET', fence)
  local was, run, since
  if record then
    was, run, since = match(record, '^(%w+),(%w*),(%d+)$')
    since = tonumber(since)
    if was == history and since <= now_us + 1000000 then
      return since
    end
  end
  local server = redis.pcall('INFO', 'server')
  local running = type(server) == 'string' and match(server, 'run_id:(%w+)') or ''
  local second = match(said, 'master_replid2:(%w+)') or ''
  if not record then
    since = known == 1 and now_us or 0
  elseif run ~= running or string.find(second, '[^0]') or since > now_us then
    -- In the future: the clock stepped back. What was fenced then is fenced now, else all would wait until that moment comes again.
    since = now_us
  end
  call('SET', fence, format('%s,%s,%d', history, running, since))
  return since
end

local function drain(s, elapsed_us)
  if elapsed_us > 0 then
    s.debt = s.debt - elapsed_us
    if s.debt < 0 then
      s.debt, s.part = 0, 0
    end
  end
end

-- At least full of debt: nothing may be taken.
local function exhaust(s)
  local capacity, part = s.limit[2], s.limit[3]
  if s.debt < capacity or (s.debt == capacity and s.part < part) then
    s.debt, s.part = capacity, part
  end
end

local function read_bucket(s, debt, part, denominator, moment, fenced_at)
  local limit = s.limit
  s.debt, s.part = debt, part
  if denominator ~= limit[4] and part > 0 then
    -- The limit's rate was changed: a fraction of a microsecond is rounded against the caller.
    s.debt, s.part = debt + 1, 0
  end
  if fenced_at > moment and limit[7] == 0 then
    drain(s, fenced_at - moment)
    exhaust(s)
    moment = fenced_at
  end
  if s.leased_until > 0 and s.leased_until <= s.now then
    -- What was lent may have been spent as late as now. Until here it was kept free; from here it drains like any debt.
    drain(s, s.leased_until - moment)
    s.debt = s.debt + s.lease
    moment = math.max(moment, s.leased_until)
    s.leased_until, s.lease = 0, 0
  end
  drain(s, s.now - moment)
end

local function read_window(s, used, before, start, moment, fenced_at)
  local limit = s.limit
  local length = limit[6]
  local begins = limit[1] == 'w' and limit[5] or 0
  if begins == 0 then
    begins = s.now - s.now % length
  elseif start > begins and start <= s.now then
    -- Others have seen the next window begin already.
    begins = start
  end
  s.start, s.ends = begins, begins + length
  s.stale = s.now < begins or s.now >= s.ends
  if start == begins then
    s.debt, s.before = used, before
  elseif start > begins then
    -- The clock stepped back over the edge of a window: what was used there was used a moment ago.
    s.debt = used
  elseif start == begins - length then
    s.before = used
  end
  if fenced_at > moment and limit[7] == 0 then
    if fenced_at >= begins then
      s.debt = math.max(s.debt, limit[2])
    elseif fenced_at >= begins - length then
      s.before = math.max(s.before, limit[2])
    end
  end
end

-- The state of a limit at a key, as it is now. nil when it cannot be read.
local function read(limit, key, now_us, fenced_at)
  local s = {
    limit = limit, key = key, now = now_us, lag = 0, debt = 0, part = 0, before = 0, fence = 0,
    reap_at = 0, line_until = 0, queued = 0, leased_until = 0, lease = 0, held = 0, share = WHOLE, era = 0,
  }
  local text = redis.pcall('GET', key)
  local a, b, c, moment = 0, 0, 0, 0
  if text then
    if type(text) ~= 'string' then
      return nil
    end
    local rest
    a, b, c, moment = match(text, '^(%d+),(%d+),(%d+),(%d+)$')
    rest = ''
    if not a then
      a, b, c, moment, rest = match(text, '^(%d+),(%d+),(%d+),(%d+)(.*)$')
      if not a then
        return nil
      end
    end
    a, b, c, moment = tonumber(a), tonumber(b), tonumber(c), tonumber(moment)
    if rest ~= '' then
      local reap_at, line_until, queued, leased_until, lease, held, share, era =
        match(rest, '^,(%d+),(%d+),(%d+),(%d+),(%d+),(%d+),(%d+),(%d+)$')
      if not reap_at then
        return nil
      end
      s.reap_at, s.line_until, s.queued = tonumber(reap_at), tonumber(line_until), tonumber(queued)
      s.leased_until, s.lease = tonumber(leased_until), tonumber(lease)
      s.held, s.share, s.era = tonumber(held), tonumber(share), tonumber(era)
    end
    if moment > now_us then
      -- The server's clock stepped back. Up to a second it stands still for us. A larger jump is believed, and written down at
      -- once, also when the answer is no: else the debt would not begin to shrink before the old moment comes again.
      if moment - now_us <= 1000000 then
        s.lag, s.now = moment - now_us, moment
      else
        local back = moment - now_us
        s.dirty, moment = true, now_us
        s.reap_at, s.line_until = math.max(s.reap_at - back, 0), 0
        s.leased_until = math.max(s.leased_until - back, 0)
        s.held, s.share, s.era = 0, WHOLE, s.era + 1
        if s.reap_at > 0 then
          local held = call('ZRANGE', key .. ':deadlines', 0, 9999, 'WITHSCORES')
          for i = 1, #held, 2 do
            call('ZADD', key .. ':deadlines', integer(held[i + 1] - back), held[i])
          end
        end
      end
    end
  end
  local kind = limit[1]
  if kind == 'b' then
    read_bucket(s, a, b, c, moment, fenced_at)
  elseif kind == 'c' then
    s.debt, s.fence = a, b
    s.unknown_until = limit[7] == 0 and fenced_at > 0 and fenced_at + limit[6] or 0
  else
    read_window(s, a, b, c, moment, fenced_at)
  end
  return s
end

-- 0 when the cost fits (besides what others have been promised), else the least wait in us. Debt may stand above the capacity.
local function wait_for(s, cost, part, promised)
  local limit = s.limit
  local kind = limit[1]
  local after = s.debt + cost + promised
  if kind == 'b' then
    local after_part = s.part + part
    if after_part >= limit[4] and after_part > 0 then
      after, after_part = after + 1, after_part - limit[4]
    end
    local over, over_part = after - limit[2], after_part - limit[3]
    if s.leased_until > s.now then
      over = over + s.lease
      if over > s.debt then
        -- What is lent does not drain before it has come back.
        over = math.max(over, s.leased_until - s.now + over - s.debt)
      end
    end
    if over > 0 or (over == 0 and over_part > 0) then
      return over + (over_part > 0 and 1 or 0) + s.lag
    end
    return 0
  end
  if kind == 'c' then
    if s.now < s.unknown_until then
      return s.unknown_until - s.now + s.lag
    end
    return after <= limit[2] and 0 or math.max(s.reap_at - s.now, 1000) + s.lag
  end
  if kind == 'w' then
    return after <= limit[2] and 0 or s.ends - s.now + s.lag
  end
  -- Sliding: the share of the window before that still counts falls by one tick after the other, rounded against the caller.
  local tick, ticks = limit[5], math.ceil(limit[6] / limit[5])
  local left = ticks - math.floor((s.now - s.start) / tick)
  if after + math.ceil(s.before * left / ticks) <= limit[2] then
    return 0
  end
  local function clears(from, room, counted)
    if counted == 0 then
      return from
    end
    local fits = math.floor(room * ticks / counted)
    return math.min(from + (ticks - math.min(fits, ticks)) * tick, from + limit[6])
  end
  local room = limit[2] - after
  if room >= 0 then
    return clears(s.start, room, s.before) - s.now + s.lag
  end
  room = limit[2] - cost - promised
  return clears(s.ends, math.max(room, 0), s.debt) - s.now + s.lag
end

-- What counts against the capacity now, as the caller sees it: whole and part (of a bucket), whole and time to reset (others).
local function shown(s)
  local kind = s.limit[1]
  if kind == 'b' then
    return s.debt + (s.leased_until > s.now and s.lease or 0), s.part
  elseif kind == 'c' then
    return s.now < s.unknown_until and math.max(s.debt, s.limit[2]) or s.debt, s.fence
  elseif kind == 'w' then
    return s.debt, s.ends - s.now
  end
  local tick, ticks = s.limit[5], math.ceil(s.limit[6] / s.limit[5])
  local left = ticks - math.floor((s.now - s.start) / tick)
  local counted = math.ceil(s.before * left / ticks)
  return s.debt + counted, (s.debt > 0 and s.limit[6] or 0) + s.ends - s.now
end

local function write(s)
  if not s.dirty then
    return
  end
  s.dirty = false
  local kind = s.limit[1]
  local text, lasts_us
  if kind == 'b' then
    text, lasts_us = format('%d,%d,%d,%d', s.debt, s.part, s.limit[4], s.now), s.debt
  elseif kind == 'c' then
    text, lasts_us = format('%d,%d,0,%d', s.debt, s.fence, s.now), 0
  else
    text = format('%d,%d,%d,%d', s.debt, s.before, s.start, s.now)
    lasts_us = s.ends - s.now + (kind == 's' and s.limit[6] or 0)
  end
  local ttl_ms = math.ceil(lasts_us / 1000) + 60000
  if s.reap_at > 0 or s.line_until > s.now or s.leased_until > s.now then
    text = format(
      '%s,%d,%d,%d,%d,%d,%d,%d,%d', text, s.reap_at, s.line_until, s.queued, s.leased_until, s.lease, s.held, s.share, s.era
    )
    ttl_ms = s.reap_at > 0 and math.max(ttl_ms, LONGEST_MS) or ttl_ms + math.ceil(s.lease / 1000)
  end
  call('SET', s.key, text, 'PX', integer(ttl_ms))
end
