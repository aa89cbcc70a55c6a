--[[
retry/exchange: tell how many calls were made, and ask for retries: in the fleet they are at most a share of the calls.

KEYS
  budget         hash    w0 .. w9: "<start us> <calls> <retries>", each of a tenth of the window

ARGV
  now_us         int us  the caller's clock; 0 = ask Redis
  calls          int     first attempts since the caller told last, >= 0
  want           int     retries that wait for an answer, >= 0
  share_ppm      int     retries for a million calls
  reserve        int     retries that need no calls
  window_us      int us  over how long both are counted, >= 10

RETURNS {granted, calls, retries}
  granted        int     0 .. want
  calls          int     in the window, these included
  retries        int     in the window, these included

COMPLEXITY  O(1)
ATOMICITY   one key
EXPIRY      two windows after the last call
RETRY       unsafe (calls count twice; what was granted and never heard of is spent)
]]
local budget = KEYS[1]
local now_us = tonumber(ARGV[1])
local calls = tonumber(ARGV[2])
local want = tonumber(ARGV[3])
local share_ppm = tonumber(ARGV[4])
local reserve = tonumber(ARGV[5])
local window_us = tonumber(ARGV[6])

if now_us == 0 then
  local time = redis.call('TIME')
  now_us = time[1] * 1000000 + time[2]
end

local length_us = math.floor(window_us / 10)
local start_us = now_us - now_us % length_us
local current = start_us / length_us % 10
local made, tried = calls, 0
local here = {0, 0}
for number, slice in ipairs(redis.call('HMGET', budget, 'w0', 'w1', 'w2', 'w3', 'w4', 'w5', 'w6', 'w7', 'w8', 'w9')) do
  local began_us, its_calls, its_retries = string.match(slice or '', '^(%d+) (%d+) (%d+)$')
  began_us = tonumber(began_us or '0')
  if began_us > now_us - window_us and began_us <= now_us then
    made = made + tonumber(its_calls)
    tried = tried + tonumber(its_retries)
    if number - 1 == current and began_us == start_us then
      here = {tonumber(its_calls), tonumber(its_retries)}
    end
  end
end

local granted = math.max(math.min(want, math.floor(made * share_ppm / 1000000) + reserve - tried), 0)
if calls > 0 or granted > 0 then
  redis.call(
    'HSET', budget, string.format('w%.0f', current),
    string.format('%.0f %.0f %.0f', start_us, here[1] + calls, here[2] + granted)
  )
  redis.call('PEXPIRE', budget, string.format('%.0f', math.ceil(window_us / 500)))
end
return {granted, made, tried + granted}
