--[[
answers/follow: read on in the log of a stream, while it may still become the entry, and say that somebody does.

KEYS
  log            hash    "run": whose stream it is; "0", "1", ...: what has come of it
  followed       string  there while somebody reads the log
  lease          string  the token of who computes the entry

ARGV
  run            string  the call to the provider that the caller has read of; empty: of none
  at             int     how many of its parts
  most           int     how many parts to answer at once, 1..1000
  mark_ms        int ms  for how long it counts as followed from now, >= 1; 0: the caller wants it though its lease has ended

RETURNS {run, parts}
  run            string  whose log it is; empty: there is none, or what it tells was deleted or given up meanwhile
  parts          array   those from `at`, or from the first where it is another run's

COMPLEXITY  O(parts)
ATOMICITY   one slot
EXPIRY      of the mark: its end is its TTL
RETRY       safe
]]
local log = KEYS[1]
local followed = KEYS[2]
local lease = KEYS[3]
local run = ARGV[1]
local at = tonumber(ARGV[2])
local most = tonumber(ARGV[3])
local mark_ms = tonumber(ARGV[4])

local found = redis.call('HGET', log, 'run')
if mark_ms > 0 then
  if redis.call('PTTL', followed) * 2 < mark_ms then
    redis.call('SET', followed, '1', 'PX', mark_ms)
  end
  found = found == redis.call('GET', lease) and found
end
if not found then
  return {'', {}}
end
if found ~= run then
  at = 0
end
local last = math.min(redis.call('HLEN', log) - 2, at + most - 1)
if last < at then
  return {found, {}}
end
local fields = {}
for index = at, last do
  fields[#fields + 1] = string.format('%d', index)
end
return {found, redis.call('HMGET', log, unpack(fields))}
