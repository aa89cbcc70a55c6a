#!lua flags=allow-oom
--[[
metrics/roll: put the blocks of one metric's hour (or day) into one, exactly once.

Whoever calls has read the finer blocks and made one of them; it counts only if none has changed since.

KEYS
  due            zset    "level:index:metric" by their end: hours and days that do not hold all of their minutes
  rolled         hash    metric -> token of the last change of its blocks
  finer          hash    what was read
  coarser        hash    index -> block

ARGV
  metric         string
  member         string  of `due`
  expected       string  the token that was read before anything else; "" = none
  token          string  a new one, never used before
  index          int     hours or days since 1970
  block          bytes   "" = the finer ones are gone
  finer_until_ms  int ms  when the finer ones expire
  until_ms       int ms  when the coarser ones expire

RETURNS {done}
  done           0 | 1   0: something changed meanwhile, nothing was done

COMPLEXITY  O(1)
ATOMICITY   one slot
EXPIRY      as the arguments say; due and rolled stay, bounded by the metrics
RETRY       safe (the second time the token has changed)
]]
local due = KEYS[1]
local rolled = KEYS[2]
local finer = KEYS[3]
local coarser = KEYS[4]
local metric = ARGV[1]
local member = ARGV[2]
local expected = ARGV[3]
local token = ARGV[4]
local index = ARGV[5]
local block = ARGV[6]
local finer_until_ms = ARGV[7]
local until_ms = ARGV[8]

if (redis.call('HGET', rolled, metric) or '') ~= expected or not redis.call('ZSCORE', due, member) then
  return {0}
end
-- What cannot be done must fail before anything is.
redis.call('HEXISTS', coarser, index)
redis.call('PEXPIREAT', coarser, until_ms)

redis.call('HSET', rolled, metric, token)
if block ~= '' then
  redis.call('HSET', coarser, index, block)
  redis.call('PEXPIREAT', coarser, until_ms)
  redis.call('PEXPIREAT', finer, finer_until_ms)
end
redis.call('ZREM', due, member)
return {1}
