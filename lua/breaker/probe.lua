--[[
breaker/probe: of an open breaker whose time is over, become the one who tries whether it works again.

USES  breaker/_state

KEYS
  state          hash    the breaker (_state.lua)
  forced         hash    name -> "open|closed <since us> <reason>"

ARGV
  now_us         int us  the caller's clock; 0 = ask Redis
  name           string  the breaker's
  token          string  who asks: unique for each probe
  lease_us       int us  for how long nobody else may, >= 1

RETURNS {granted, open, epoch, left_us, forced, calls, failures, probing_us, since_us}
  granted        0 | 1   1: the caller's call is the probe
  open           0 | 1   1: open or half open
  epoch          int     of what is returned
  left_us        int us  until a probe is let through; 0: now, or closed
  forced         string  as in forced; empty: nobody holds it
  calls          int     in the window
  failures       int     in the window
  probing_us     int us  how long nobody else may probe; 0: anybody may
  since_us       int us  the moment of the last change; 0: never

COMPLEXITY  O(1)
ATOMICITY   one slot
EXPIRY      the lease's end stands in the state, which is written and renewed by breaker/report
RETRY       safe (the same token keeps its probe)
]]
local state = KEYS[1]
local forced = KEYS[2]
local now_us = tonumber(ARGV[1])
local name = ARGV[2]
local token = ARGV[3]
local lease_us = tonumber(ARGV[4])

if now_us == 0 then
  local time = redis.call('TIME')
  now_us = time[1] * 1000000 + time[2]
end

local breaker = read(state, forced, name)
local granted = 0
if breaker.open and breaker.forced == '' and now_us >= breaker.reopen_us then
  if breaker.probe == '' or breaker.probe == token or now_us >= breaker.probe_until_us then
    granted = 1
    breaker.probe = token
    breaker.probe_until_us = now_us + lease_us
    redis.call('HSET', state, 'probe', token, 'probe_until_us', whole(breaker.probe_until_us))
  end
end
return {granted, unpack(view(breaker, now_us))}
