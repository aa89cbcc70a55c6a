--[[
breaker/pause: nobody of the fleet calls this provider with this key for a while; or end that.

USES  breaker/_state

KEYS
  pauses         zset    whose calls pause (a digest), by the moment until which
  version        string  changes with every change of a breaker or a pause

ARGV
  now_us         int us  the caller's clock; 0 = ask Redis
  whose          string  a digest of provider, model and key
  pause_us       int us  for how long from now; 0: it is over
  most           int     pauses that are kept; beyond, those that end soonest are dropped

RETURNS {left_us}
  left_us        int us  how long it lasts now: never less than what somebody else was told

COMPLEXITY  O(log N)
ATOMICITY   one slot
EXPIRY      pauses: with the last of them; version: a week
RETRY       safe (never shortened by repeating; longer by as much as the repetition is late)
]]
local pauses = KEYS[1]
local version = KEYS[2]
local now_us = tonumber(ARGV[1])
local whose = ARGV[2]
local pause_us = tonumber(ARGV[3])
local most = tonumber(ARGV[4])

if now_us == 0 then
  local time = redis.call('TIME')
  now_us = time[1] * 1000000 + time[2]
end

redis.call('ZREMRANGEBYSCORE', pauses, '-inf', whole(now_us))
local until_us = tonumber(redis.call('ZSCORE', pauses, whose) or '0')
if pause_us == 0 then
  if redis.call('ZREM', pauses, whose) == 1 then
    tell(version, now_us)
  end
  return {0}
end
if now_us + pause_us > until_us then
  until_us = now_us + pause_us
  redis.call('ZADD', pauses, whole(until_us), whose)
  redis.call('ZREMRANGEBYRANK', pauses, 0, whole(-most - 1))
  local last_us = tonumber(redis.call('ZRANGE', pauses, 0, 0, 'REV', 'WITHSCORES')[2])
  redis.call('PEXPIRE', pauses, whole(math.ceil((last_us - now_us) / 1000) + 60000))
  tell(version, now_us)
end
return {until_us - now_us}
