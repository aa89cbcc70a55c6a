--[[
breaker/force: hold a breaker open or closed by hand, or let it go again.

USES  breaker/_state

KEYS
  state          hash    the breaker (_state.lua)
  forced         hash    name -> "open|closed <since us> <reason>"
  version        string  changes with every change of a breaker
  known          zset    names, by the moment of the last report

ARGV
  now_us         int us  the caller's clock; 0 = ask Redis
  name           string  the breaker's
  to             string  open | closed | auto: let go
  reason         string  why; kept with it; one line

RETURNS {open, epoch, left_us, forced, calls, failures, probing_us, since_us}
  open           0 | 1   1: open or half open, whatever is forced
  epoch          int     of what is returned
  left_us        int us  until a probe is let through; 0: now, or closed
  forced         string  as in forced; empty: nobody holds it
  calls          int     in the window: none
  failures       int     in the window: none
  probing_us     int us  how long nobody else may probe; 0: anybody may
  since_us       int us  the moment of the last change

COMPLEXITY  O(1)
ATOMICITY   one slot
EXPIRY      forced stays until it is let go; state: a week; version, known: a week
RETRY       safe (the epoch grows again)
]]
local state = KEYS[1]
local forced = KEYS[2]
local version = KEYS[3]
local known = KEYS[4]
local now_us = tonumber(ARGV[1])
local name = ARGV[2]
local to = ARGV[3]
local reason = ARGV[4]

if now_us == 0 then
  local time = redis.call('TIME')
  now_us = time[1] * 1000000 + time[2]
end

if to == 'auto' then
  redis.call('HDEL', forced, name)
else
  redis.call('HSET', forced, name, string.format('%s %.0f %s', to, now_us, reason))
end
-- What was counted before says nothing of what comes now.
local breaker = read(state, forced, name)
breaker.epoch = breaker.epoch + 1
breaker.since_us = now_us
breaker.probe = ''
local written = {'epoch', whole(breaker.epoch), 'since_us', whole(now_us), 'run', '0', 'probe', ''}
for number, slice in ipairs(breaker.slices) do
  slice[1], slice[2], slice[3] = 0, 0, 0
  written[#written + 1] = SLICE_NAMES[number]
  written[#written + 1] = ''
end
redis.call('HSET', state, unpack(written))
redis.call('PEXPIRE', state, 604800000)
redis.call('ZADD', known, whole(now_us), name)
redis.call('PEXPIRE', known, 604800000)
tell(version, now_us)
return view(breaker, now_us)
