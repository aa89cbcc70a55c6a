--[[
tracing/exchange: tell which unsampled traces are sent all the same, and hear which others are.

KEYS
  kept           zset    trace ids that some process sends, by the moment it was told (us)

ARGV
  now_us         int us  the caller's clock; 0 = ask Redis
  since_us       int us  what the caller has heard up to; 0 = nothing
  keep_for_us    int us  how long an id is told to others
  most           int     ids in one answer
  traces...      string  ids that the caller sends

RETURNS {heard_us, ids...}
  heard_us       string  the moment up to which the caller has heard now, us
  ids            string  what was told since since_us, at most `most`, the oldest first

COMPLEXITY  O((told + heard) log N), N = ids told in keep_for_us
ATOMICITY   one slot; an id that was told keeps its moment
EXPIRY      kept: keep_for_us after the last one was told
RETRY       safe
]]
local kept = KEYS[1]
local now_us = tonumber(ARGV[1])
local since_us = tonumber(ARGV[2])
local keep_for_us = tonumber(ARGV[3])
local most = tonumber(ARGV[4])

if now_us == 0 then
  local time = redis.call('TIME')
  now_us = time[1] * 1000000 + time[2]
end
if since_us > now_us then
  since_us = 0 -- another server's clock
end

local moment = string.format('%.0f', now_us)
for slot = 5, #ARGV do
  redis.call('ZADD', kept, 'NX', moment, ARGV[slot])
end
redis.call('ZREMRANGEBYSCORE', kept, '-inf', string.format('(%.0f', now_us - keep_for_us))
if #ARGV > 4 then
  redis.call('PEXPIRE', kept, string.format('%.0f', keep_for_us / 1000))
end

local found = redis.call(
  'ZRANGEBYSCORE', kept, string.format('%.0f', since_us), '+inf', 'WITHSCORES', 'LIMIT', 0, most
)
local answer = {moment}
for place = 1, #found, 2 do
  answer[#answer + 1] = found[place]
end
if #answer > most then
  answer[1] = string.format('%.0f', found[#found])
end
return answer
