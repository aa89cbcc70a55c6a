--[[
answers/append: tell the followers of a stream what has come of it; without parts, that it still comes.

KEYS
  log            hash    "run": whose stream it is; "0", "1", ...: what has come of it
  followed       string  there while somebody reads the log
  lease          string  the token of who computes the entry

ARGV
  run            string  the call to the provider: the token under which it is made
  at             int     how many parts the log has, as the caller knows; 0: begin the log, in the place of any other
  ttl_ms         int ms  its time to live from now, >= 1
  parts...       string  what has come since

RETURNS {written, followed}
  written        0 | 1   0: the lease was lost, or the log
  followed       0 | 1   whether somebody reads it

COMPLEXITY  O(parts)
ATOMICITY   one slot
EXPIRY      the writer renews it; a log that ends early costs its followers time and nothing else
RETRY       safe with the same parts (each has its number)
]]
local log = KEYS[1]
local followed = KEYS[2]
local lease = KEYS[3]
local run = ARGV[1]
local at = tonumber(ARGV[2])
local ttl_ms = tonumber(ARGV[3])

local read = redis.call('EXISTS', followed)
if redis.call('GET', lease) ~= run then
  return {0, read}
end
local own = redis.call('HGET', log, 'run') == run
if not own then
  if at > 0 then
    return {0, read}
  end
  redis.call('DEL', log)
  redis.call('HSET', log, 'run', run)
end
for index = 4, #ARGV do
  redis.call('HSET', log, string.format('%d', at + index - 4), ARGV[index])
end
redis.call('PEXPIRE', log, ttl_ms)
return {1, read}
