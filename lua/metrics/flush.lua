--[[
metrics/flush: add one writer's batch, exactly once.

A batch counts iff its number is the writer's watermark + 1. A lower one is a duplicate; a higher one, or any but the first when
the watermark is absent, is a gap: the store lost batches (failover), and the writer sends them again from there.

USES metrics/_add

KEYS
  watermark      string  the last batch of this writer that was added
  names          hash    metric -> JSON of its definition
  flushes        string  batches added here, ever: steps back only when the store lost some
  sizes          hash    metric -> how many series it has
  open           zset    "window:metric" by window: those that no block holds yet
  gauge_writers  zset    writers that have gauges, by the moment until which they stand
  gauges         hash    this writer's gauges: metric + series -> value
  targets...             per group three: a metric's lifetime totals, one of its open windows, the list of those (_add.lua)

ARGV
  now_us         int us  the caller's clock; 0 = ask Redis
  writer         string  who writes
  batch          int     1, 2, 3 …
  max_series     int     series of one metric; what comes beyond shares one
  gauge_keep_ms  int ms  how long gauges outlive their writer
  gauge_count    int     how many gauge pairs follow, at most 1000; 0: they stand nowhere any more; -1 leaves them as they are
  deltas...      string  gauge pairs (field, value); then the groups (_add.lua)

RETURNS {verdict, watermark, refused, misplaced, folded...}
  verdict        0 | 1 | 2   0 duplicate, 1 added, 2 gap
  watermark      int     the last batch that is added now
  refused        int     additions that the store refused (overflow, foreign key, another kind), each by itself
  misplaced      int     additions to the totals alone: their window is more than a day ago
  folded         list    metric, additions, metric, additions …: into the series that a metric's further ones share

COMPLEXITY  O(pairs)
ATOMICITY   one slot; the watermark moves with the data, so both are lost or kept together in a failover
EXPIRY      windows and their list seven days after the last write, gauges gauge_keep_ms, watermark seven days; the rest stays
RETRY       safe
]]
local watermark = KEYS[1]
local names = KEYS[2]
local flushes = KEYS[3]
local sizes = KEYS[4]
local open = KEYS[5]
local gauge_writers = KEYS[6]
local gauges = KEYS[7]
local now_us = tonumber(ARGV[1])
local writer = ARGV[2]
local batch = tonumber(ARGV[3])
local max_series = tonumber(ARGV[4])
local gauge_keep_ms = tonumber(ARGV[5])
local gauge_count = tonumber(ARGV[6])

local last = tonumber(redis.call('GET', watermark) or 0)
if batch <= last then
  return {0, last, 0, 0}
end
if batch > last + 1 then
  return {2, last, 0, 0}
end

if now_us == 0 then
  local time = redis.call('TIME')
  now_us = time[1] * 1000000 + time[2]
end

prove_additions(names, sizes, open)
redis.call('HLEN', gauges)
redis.call('ZCARD', gauge_writers)
redis.call('INCR', flushes)
redis.call('SET', watermark, string.format('%.0f', batch), 'PX', 604800000)

local at = 7
redis.call('ZREMRANGEBYSCORE', gauge_writers, '-inf', string.format('%.0f', now_us))
if gauge_count > 0 then
  redis.call('HSET', gauges, unpack(ARGV, at, at + 2 * gauge_count - 1))
  at = at + 2 * gauge_count
  redis.call('PEXPIRE', gauges, gauge_keep_ms)
  redis.call('ZADD', gauge_writers, string.format('%.0f', now_us + gauge_keep_ms * 1000), writer)
  -- Another's may stand for longer.
  if redis.call('PTTL', gauge_writers) < gauge_keep_ms then
    redis.call('PEXPIRE', gauge_writers, gauge_keep_ms)
  end
elseif gauge_count == 0 then
  redis.call('ZREM', gauge_writers, writer)
end

local refused, misplaced, folded = add_groups(8, at, names, sizes, open, now_us, max_series)
return {1, batch, refused, misplaced, unpack(folded)}
