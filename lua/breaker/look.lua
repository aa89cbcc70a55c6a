--[[
breaker/look: how some breakers stand, and which pauses there are; nothing when nothing has changed.

USES  breaker/_state

KEYS
  version        string  changes with every change of a breaker or a pause
  forced         hash    name -> "open|closed <since us> <reason>"
  pauses         zset    whose calls pause (a digest), by the moment until which
  states...      hash    the breakers (_state.lua)

ARGV
  now_us         int us  the caller's clock; 0 = ask Redis
  seen           string  the version that the caller has seen; empty: none
  names...       string  of the breakers, one for each state

RETURNS {version, pauses, views...}
  version        string  "0" when there is none; alone when it is the one that was seen
  pauses         list    digest, how much longer (us), and so on: 5000 of them at most, those that last longest
  views          list    of each breaker {open, epoch, left_us, forced, calls, failures, probing_us, since_us}

COMPLEXITY  O(breakers + pauses); O(1) when nothing has changed
ATOMICITY   one slot
EXPIRY      nothing is written
RETRY       safe
]]
local version = KEYS[1]
local forced = KEYS[2]
local pauses = KEYS[3]
local now_us = tonumber(ARGV[1])
local seen = ARGV[2]

local current = redis.call('GET', version) or '0'
if current == seen then
  return {current}
end
if now_us == 0 then
  local time = redis.call('TIME')
  now_us = time[1] * 1000000 + time[2]
end
local lasting = redis.call(
  'ZRANGE', pauses, '+inf', string.format('(%.0f', now_us), 'BYSCORE', 'REV', 'LIMIT', 0, 5000, 'WITHSCORES'
)
for number = 2, #lasting, 2 do
  lasting[number] = tonumber(lasting[number]) - now_us
end
local answer = {current, lasting}
for number = 4, #KEYS do
  answer[#answer + 1] = view(read(KEYS[number], forced, ARGV[number - 1]), now_us)
end
return answer
