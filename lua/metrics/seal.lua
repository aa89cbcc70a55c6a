#!lua flags=allow-oom
--[[
metrics/seal: put the open windows of one metric's minute (or, long after, hour) into blocks, exactly once.

Whoever calls has read the windows and the blocks, and has made new blocks of both. It counts only if nobody changed either since:
then a window's numbers stand in the open window or in a block, never in both and never in neither.

KEYS
  open           zset    "window:metric" by window: those that no block holds yet
  listed         zset    those of this metric
  due            zset    "level:index:metric" by their end: hours and days that do not hold all of their minutes
  rolled         hash    metric -> token of the last change of its blocks
  fine           hash    minute -> block of its 10 s windows
  minutes        hash    minute -> block; hour -> block for what came when the minutes had expired
  windows...     hash    the open windows; field "#" counts how often one was added to

ARGV
  metric         string
  expected       string  the token that was read before anything else; "" = none
  token          string  a new one, never used before
  minute         int     minutes since 1970; hours likewise
  fine_block     bytes   "" = too old for them
  minute_block   bytes   "" = there was nothing in the windows
  fine_until_ms  int ms  when the hour's 10 s windows expire
  keep_until_ms  int ms  when the hour's minutes expire, if nobody makes an hour of them before
  due_hour       string  member of `due`; again due_day where an hour is made
  due_day        string  member of `due`
  hour_ends_us   int us  score of due_hour
  day_ends_us    int us  score of due_day
  read...        string  per window: its member of `open`, and its "#" when it was read ("" = none)

RETURNS {done}
  done           0 | 1   0: something changed meanwhile, nothing was done

COMPLEXITY  O(fields of the windows), to free them
ATOMICITY   one slot
EXPIRY      as the arguments say; due and rolled stay, bounded by the metrics
RETRY       safe (the second time the token has changed)
]]
local open = KEYS[1]
local listed = KEYS[2]
local due = KEYS[3]
local rolled = KEYS[4]
local fine = KEYS[5]
local minutes = KEYS[6]
local metric = ARGV[1]
local expected = ARGV[2]
local token = ARGV[3]
local minute = ARGV[4]
local fine_block = ARGV[5]
local minute_block = ARGV[6]
local fine_until_ms = ARGV[7]
local keep_until_ms = ARGV[8]
local due_hour = ARGV[9]
local due_day = ARGV[10]
local hour_ends_us = ARGV[11]
local day_ends_us = ARGV[12]

if (redis.call('HGET', rolled, metric) or '') ~= expected then
  return {0}
end
for i = 7, #KEYS do
  local times = redis.pcall('HGET', KEYS[i], '#')
  if type(times) ~= 'table' and (times or '') ~= ARGV[14 + 2 * (i - 7)] then
    return {0}
  end
end

-- What cannot be done (a key of another type, a right that is missing) must fail before anything is: a script is not rolled back.
redis.call('ZCARD', listed)
if fine_block ~= '' then
  redis.call('HEXISTS', fine, minute)
end
if minute_block ~= '' then
  redis.call('HEXISTS', minutes, minute)
  redis.call('PEXPIREAT', minutes, keep_until_ms)
  redis.call('ZADD', due, hour_ends_us, due_hour, day_ends_us, due_day)
end

redis.call('HSET', rolled, metric, token)
if fine_block ~= '' then
  redis.call('HSET', fine, minute, fine_block)
  redis.call('PEXPIREAT', fine, fine_until_ms)
end
if minute_block ~= '' then
  redis.call('HSET', minutes, minute, minute_block)
  redis.call('PEXPIREAT', minutes, keep_until_ms)
end
for i = 7, #KEYS do
  redis.call('UNLINK', KEYS[i])
  local member = ARGV[13 + 2 * (i - 7)]
  redis.call('ZREM', open, member)
  redis.call('ZREM', listed, string.match(member, '^%d+'))
end
return {1}
