--[[
metrics/flush: add one writer's batch, exactly once.

A batch counts iff its number is the writer's watermark + 1. A lower one is a duplicate; a higher one, or any but the first when
the watermark is absent, is a gap: the store lost batches (failover), and the writer sends them again from there.

KEYS
  watermark      string  the last batch of this writer that was added
  names          hash    metric -> JSON of its definition
  flushes        string  how many batches were added, by whomever; less than before: the store went back
  gauge_writers  zset    writers that have gauges, by the moment they last wrote
  gauges         hash    this writer's gauges: metric + series -> value
  targets...     hash    per metric two: its lifetime totals, and its 10 s window; series|part -> integer

ARGV
  now_us         int us  the caller's clock; 0 = ask Redis
  writer         string  who writes
  batch          int     1, 2, 3 …
  keep_ms        int ms  how long a window is kept
  gauge_keep_ms  int ms  how long gauges outlive their writer
  gauge_count    int     how many gauge pairs follow; -1 leaves the gauges as they are
  deltas...      string  gauge pairs (field, value); then per metric: its name, its definition, how many pairs, pairs (field, int)

RETURNS {verdict, watermark, refused}
  verdict        0 | 1 | 2   0 duplicate, 1 added, 2 gap
  watermark      int     the last batch that is added now
  refused        int     additions that the store refused (overflow, foreign key, another kind), each by itself

COMPLEXITY  O(pairs)
ATOMICITY   one slot; the watermark moves with the data, so both are lost or kept together in a failover
EXPIRY      windows keep_ms after their first write, gauges gauge_keep_ms after the last, watermark seven days; totals, names and flushes stay
RETRY       safe
]]
local watermark = KEYS[1]
local names = KEYS[2]
local flushes = KEYS[3]
local gauge_writers = KEYS[4]
local gauges = KEYS[5]
local now_us = tonumber(ARGV[1])
local writer = ARGV[2]
local batch = tonumber(ARGV[3])
local keep_ms = tonumber(ARGV[4])
local gauge_keep_ms = tonumber(ARGV[5])
local gauge_count = tonumber(ARGV[6])

local last = tonumber(redis.call('GET', watermark) or 0)
if batch <= last then
  return {0, last, 0}
end
if batch > last + 1 then
  return {2, last, 0}
end

if now_us == 0 then
  local time = redis.call('TIME')
  now_us = time[1] * 1000000 + time[2]
end

redis.call('SET', watermark, string.format('%.0f', batch), 'PX', 604800000)
redis.call('INCR', flushes)

local at = 7
local gone_before = string.format('(%.0f', now_us - gauge_keep_ms * 1000)
redis.call('ZREMRANGEBYSCORE', gauge_writers, '-inf', gone_before)
if gauge_count > 0 then
  for _ = 1, gauge_count do
    redis.call('HSET', gauges, ARGV[at], ARGV[at + 1])
    at = at + 2
  end
  redis.call('PEXPIRE', gauges, gauge_keep_ms)
  redis.call('ZADD', gauge_writers, string.format('%.0f', now_us), writer)
  redis.call('PEXPIRE', gauge_writers, gauge_keep_ms)
elseif gauge_count == 0 then
  redis.call('ZREM', gauge_writers, writer)
end

local refused = 0
for target = 6, #KEYS, 2 do
  local total, window = KEYS[target], KEYS[target + 1]
  local metric, definition, pairs_left = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local of_one_kind = true
  if redis.call('HSETNX', names, metric, definition) == 0 then
    -- The fields of two kinds in one hash would be neither's.
    local known = string.match(redis.call('HGET', names, metric), '"kind":"(%a+)"')
    of_one_kind = not known or known == string.match(definition, '"kind":"(%a+)"')
  end
  at = at + 3
  for _ = 1, pairs_left do
    for _, key in ipairs({total, window}) do
      -- One that cannot be added must not take the others with it: a script is not rolled back.
      local added = of_one_kind and redis.pcall('HINCRBY', key, ARGV[at], ARGV[at + 1])
      if not added or type(added) == 'table' and added.err then
        refused = refused + 1
      end
    end
    at = at + 2
  end
  redis.call('PEXPIRE', window, keep_ms, 'NX')
end
return {1, batch, refused}
