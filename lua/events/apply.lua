--[[
events/apply: add what a run of events means, bury what cannot be read, and move the partition's offset past them.

Nothing happens unless the offset is where the worker read from: a worker that lost its lease, or was stopped and woke up, is
refused by this comparison alone. Offset, data and trimming are one step, so a failover rolls them back together.

KEYS
  stream         stream  what is being worked off
  offset         string  the last entry that was applied; absent = none yet
  ledger         hash    accepted, applied, dead, dropped: how many events, ever
  dead           stream  events that could not be applied: id, payload, reason
  names          hash    metric -> JSON of its definition
  targets...     hash    per delta group two: a metric's lifetime totals, and one of its 10 s windows

ARGV
  read_from      string  the offset that the worker read from; "0-0" = the beginning
  first          string  the first entry it read
  to             string  the last entry it read
  trim_to        string  the first entry id that stays
  applied        int     events that the deltas stand for
  keep_ms        int ms  how long a window is kept
  max_dead       int     buried events kept
  buried         int     how many triples follow
  deltas...      string  triples (id, payload, reason); then per group: metric, definition, how many pairs, pairs (field, int)

RETURNS {done, offset, refused, forgotten}
  done           0 | 1   0: somebody else was here, nothing was changed
  offset         string  where the partition stands now
  refused        int     additions that the store refused (overflow, foreign key, another kind), each by itself
  forgotten      int     dead letters that had to make room

COMPLEXITY  O(pairs + buried + trimmed); the run is read again when part of it had to make room meanwhile
ATOMICITY   one slot
EXPIRY      windows keep_ms after their first write; the rest stays, bounded
RETRY       safe (the second time the offset has moved)
]]
local stream = KEYS[1]
local offset = KEYS[2]
local ledger = KEYS[3]
local dead = KEYS[4]
local names = KEYS[5]
local read_from = ARGV[1]
local first = ARGV[2]
local to = ARGV[3]
local trim_to = ARGV[4]
local applied = tonumber(ARGV[5])
local keep_ms = tonumber(ARGV[6])
local max_dead = tonumber(ARGV[7])
local buried = tonumber(ARGV[8])

local stands_at = redis.call('GET', offset) or '0-0'
if stands_at ~= read_from then
  return {0, stands_at, 0, 0}
end

-- The additions come first: what a key of another type stops must not have moved anything yet.
local at = 9 + 3 * buried
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
      local added = of_one_kind and redis.pcall('HINCRBY', key, ARGV[at], ARGV[at + 1])
      if not added or type(added) == 'table' and added.err then
        refused = refused + 1
      end
    end
    at = at + 2
  end
  redis.call('PEXPIRE', window, keep_ms, 'NX')
end

-- What had to make room while the worker had it in hand was counted as dropped; it is not lost after all.
local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
if not oldest or oldest[1] ~= first then
  local saved = applied + buried
  for _, entry in ipairs(redis.call('XRANGE', stream, first, to)) do
    saved = saved - #entry[2] / 2
  end
  redis.call('HINCRBY', ledger, 'dropped', -saved)
end

at = 9
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
return {1, to, refused, forgotten}
