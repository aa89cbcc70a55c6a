--[[
rate_limiter/charged: remember that an identity of a budget was charged, and the numbers that its limit has.

KEYS
  charged        zset    identity of this limit, by the moment (us) at which a process last told of it
  limits         hash    limit -> JSON of all of it

ARGV
  now_us         int us  the caller's clock; 0 = ask Redis
  limit          string  its name
  identity       string  whose bucket; "" the limit's one
  spec           JSON    the limit as the caller has it
  most           int     identities of the limit that are remembered, and limits; the one told of longest ago goes first
  keep_ms        int ms  how long after the last charge all of it stays

RETURNS {forgotten}
  forgotten      int     identities that had to go

COMPLEXITY  O(log N) in the number of identities
ATOMICITY   one slot
EXPIRY      keep_ms after the last charge
RETRY       safe
]]
local charged = KEYS[1]
local limits = KEYS[2]
local now_us = tonumber(ARGV[1])
local limit = ARGV[2]
local identity = ARGV[3]
local spec = ARGV[4]
local most = tonumber(ARGV[5])
local keep_ms = tonumber(ARGV[6])

if now_us == 0 then
  local time = redis.call('TIME')
  now_us = time[1] * 1000000 + time[2]
end

local known = redis.call('HLEN', limits)
redis.call('ZADD', charged, string.format('%.0f', now_us), identity)
local forgotten = redis.call('ZREMRANGEBYRANK', charged, 0, -most - 1)
redis.call('PEXPIRE', charged, keep_ms)
if known < most or redis.call('HEXISTS', limits, limit) == 1 then
  redis.call('HSET', limits, limit, spec)
end
redis.call('PEXPIRE', limits, keep_ms)
return {forgotten}
