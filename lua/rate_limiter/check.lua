--[[
rate_limiter/check: take a cost from one token bucket, or say how long to wait.

The bucket is kept as debt: the time until it is full again, in whole microseconds plus a numerator over `denominator`. That is
exact for every amount and period, and a changed limit keeps the time to full.

KEYS
  bucket         string  "<whole us>,<numerator>,<denominator>,<moment us>": the debt, and when that was true

ARGV
  now_us         int us  the caller's clock; 0 = ask Redis (always 0 in production)
  capacity_us    int us  time in which an empty bucket fills: whole part, 0 .. 2^52
  capacity_part  int     and numerator, 0 .. denominator - 1
  cost_us        int us  time in which the cost grows back: whole part, >= 0; with cost_part 0 it only looks
  cost_part      int     and numerator, 0 .. denominator - 1
  denominator    int     units of the limit per its reduced period, 1 .. 2^52

RETURNS {allowed, debt_us, debt_part, wait_us}
  allowed        0 | 1
  debt_us        int us  debt after this call: whole part
  debt_part      int     and numerator
  wait_us        int us  0 when allowed; else the least wait after which the same call, alone, succeeds

COMPLEXITY  O(1): one GET, at most one SET, at most one TIME
ATOMICITY   one key; reads first, writes last; a refusal writes nothing (but a new moment after the clock jumped back)
EXPIRY      a minute after the bucket is full; the TTL sweeps, it never decides
RETRY       unsafe (a retry would take twice)
]]
local bucket = KEYS[1]
local now_us = tonumber(ARGV[1])
local capacity_us = tonumber(ARGV[2])
local capacity_part = tonumber(ARGV[3])
local cost_us = tonumber(ARGV[4])
local cost_part = tonumber(ARGV[5])
local denominator = tonumber(ARGV[6])

if now_us == 0 then
  local time = redis.call('TIME')
  now_us = time[1] * 1000000 + time[2]
end

local debt_us, debt_part, lag_us = 0, 0, 0
local state = redis.call('GET', bucket)
if state then
  local whole, numerator, over, moment = string.match(state, '^(%d+),(%d+),(%d+),(%d+)$')
  debt_us, debt_part, moment = tonumber(whole), tonumber(numerator), tonumber(moment)
  if tonumber(over) ~= denominator and debt_part > 0 then
    -- The limit's rate was changed: a fraction of a microsecond is rounded against the caller.
    debt_us, debt_part = debt_us + 1, 0
  end
  if moment > now_us then
    -- The server's clock stepped back. Up to a second it stands still for us. A larger jump is believed, and written down at
    -- once, also when the answer is no: else the debt would not begin to shrink before the old moment comes again.
    if moment - now_us <= 1000000 then
      lag_us = moment - now_us
      now_us = moment
    else
      local value = string.format('%.0f,%.0f,%.0f,%.0f', debt_us, debt_part, denominator, now_us)
      redis.call('SET', bucket, value, 'PX', string.format('%.0f', math.ceil(debt_us / 1000) + 60000))
    end
  else
    debt_us = debt_us - (now_us - moment)
    if debt_us < 0 then
      debt_us, debt_part = 0, 0
    end
  end
end

local after_us, after_part = debt_us + cost_us, debt_part + cost_part
if after_part >= denominator then
  after_us, after_part = after_us + 1, after_part - denominator
end

local over_us, over_part = after_us - capacity_us, after_part - capacity_part
if over_us > 0 or (over_us == 0 and over_part > 0) then
  if over_part > 0 then
    over_us = over_us + 1
  end
  return {0, debt_us, debt_part, over_us + lag_us}
end

if cost_us > 0 or cost_part > 0 then
  local ttl_ms = math.ceil(after_us / 1000) + 60000
  local value = string.format('%.0f,%.0f,%.0f,%.0f', after_us, after_part, denominator, now_us)
  redis.call('SET', bucket, value, 'PX', string.format('%.0f', ttl_ms))
end
return {1, after_us, after_part, 0}
