#!lua flags=allow-oom
--[[
events/apply: add what a run of events means, bury what cannot be read, and move the partition's offset past them.

Nothing happens unless the offset is where the worker read from: a worker that lost its lease, or was stopped and woke up, is
refused by this comparison alone. Offset, data and trimming are one step, so a failover rolls them back together.
Runs also when the server is out of memory: it frees more than it takes.

USES events/_room metrics/_add

KEYS
  stream         stream  what is being worked off
  offset         string  the last entry that was applied; absent = none yet
  ledger         hash    accepted, applied, dead, dropped: how many events, ever; bytes (_room.lua)
  dead           stream  events that could not be applied: id, payload, reason
  names          hash    metric -> JSON of its definition
  sizes          hash    metric -> how many series it has
  open           zset    "window:metric" by window: those that no block holds yet
  targets...             per group three: a metric's lifetime totals, one of its open windows, the list of those (_add.lua)

ARGV
  now_us         int us  the caller's clock; 0 = ask Redis
  read_from      string  the offset that the worker read from; "0-0" = the beginning
  first          string  the first entry it read
  to             string  the last entry it read
  trim_to        string  the first entry id that stays
  bytes          int     of payload, in the entries it read
  applied        int     events that the deltas stand for
  max_series     int     series of one metric; what comes beyond shares one
  max_dead       int     buried events kept
  buried         int     how many triples follow
  deltas...      string  triples (id, payload, reason); then the groups (_add.lua)

RETURNS {done, offset, forgotten, saved, refused, misplaced, folded...}
  done           0 | 1   0: somebody else was here, nothing was changed
  offset         string  where the partition stands now
  forgotten      int     dead letters that had to make room
  saved          int     events that had to make room while the worker had them in hand: applied or buried, not dropped after all
  refused        int     additions that the store refused (overflow, foreign key, another kind), each by itself
  misplaced      int     additions to the totals alone: their window is more than a day ago
  folded         list    metric, additions, metric, additions …: into the series that a metric's further ones share

COMPLEXITY  O(pairs + buried + trimmed); the run is read again when part of it had to make room meanwhile
ATOMICITY   one slot
EXPIRY      windows and their list seven days after the last write; the rest stays, bounded
RETRY       safe (the second time the offset has moved)
]]
local stream = KEYS[1]
local offset = KEYS[2]
local ledger = KEYS[3]
local dead = KEYS[4]
local names = KEYS[5]
local sizes = KEYS[6]
local open = KEYS[7]
local now_us = tonumber(ARGV[1])
local read_from = ARGV[2]
local first = ARGV[3]
local to = ARGV[4]
local trim_to = ARGV[5]
local bytes = tonumber(ARGV[6])
local applied = tonumber(ARGV[7])
local max_series = tonumber(ARGV[8])
local max_dead = tonumber(ARGV[9])
local buried = tonumber(ARGV[10])

local stands_at = redis.call('GET', offset) or '0-0'
if stands_at ~= read_from then
  return {0, stands_at, 0, 0, 0, 0}
end

if now_us == 0 then
  local time = redis.call('TIME')
  now_us = time[1] * 1000000 + time[2]
end

-- The worker reads again what has raised: had anything been added before, it would be added each time.
probe(stream, ledger, {'applied', 'dead', 'dropped'})
redis.call('XLEN', dead)
redis.call('HLEN', names)
redis.call('HLEN', sizes)
redis.call('ZCARD', open)

local at = 11 + 3 * buried
local refused, misplaced, folded = add_groups(8, at, names, sizes, open, now_us, max_series)

-- What had to make room while the worker had it in hand was counted as dropped; it is not lost after all.
local saved = 0
local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
if not oldest or oldest[1] ~= first then
  saved, bytes = applied + buried, 0
  for _, entry in ipairs(redis.call('XRANGE', stream, first, to)) do
    saved, bytes = saved - #entry[2] / 2, bytes + bytes_of(entry[2])
  end
  redis.call('HINCRBY', ledger, 'dropped', -saved)
end

at = 11
for _ = 1, buried do
  redis.call('XADD', dead, '*', 'id', ARGV[at], 'payload', ARGV[at + 1], 'reason', ARGV[at + 2])
  at = at + 3
end
-- The oldest dead make room for the newest: `dead` is what is there, and what is not there any more was dropped.
local forgotten = buried > 0 and redis.call('XTRIM', dead, 'MAXLEN', max_dead) or 0
redis.call('HINCRBY', ledger, 'applied', applied)
redis.call('HINCRBY', ledger, 'dead', buried - forgotten)
redis.call('HINCRBY', ledger, 'dropped', forgotten)
redis.call('SET', offset, to)
redis.call('XTRIM', stream, 'MINID', trim_to)
if redis.call('XLEN', stream) == 0 then
  redis.call('HSET', ledger, 'bytes', 0)
else
  less(ledger, bytes)
end
return {1, to, forgotten, saved, refused, misplaced, unpack(folded)}
