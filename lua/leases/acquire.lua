#!lua flags=allow-oom
--[[
leases/acquire: become the owner of a name until a moment, or stay it; every new owner gets a higher fence.

Runs also when the server is out of memory: it keeps two short entries, and whoever frees memory needs it.

KEYS
  lease          string  "<owner> <fence>"; gone when nobody owns the name
  fences         hash    name -> the last fence given out

ARGV
  name           string  what is owned
  owner          string  who asks; no spaces
  lease_ms       int ms  for how long, >= 1

RETURNS {owned, fence, left_ms}
  owned          0 | 1
  fence          int     the owner's fence, whoever it is
  left_ms        int ms  until the lease ends unless renewed

COMPLEXITY  O(1)
ATOMICITY   one slot
EXPIRY      the lease's end is its TTL: on expiry nobody owns the name; the fence stays, since it must never step back
RETRY       safe (the owner keeps its fence)
]]
local lease = KEYS[1]
local fences = KEYS[2]
local name = ARGV[1]
local owner = ARGV[2]
local lease_ms = tonumber(ARGV[3])

local holder = redis.call('GET', lease)
if holder then
  local held_by, fence = string.match(holder, '^(%S+) (%d+)$')
  if held_by ~= owner then
    return {0, tonumber(fence), redis.call('PTTL', lease)}
  end
  redis.call('PEXPIRE', lease, lease_ms)
  return {1, tonumber(fence), lease_ms}
end
local fence = redis.call('HINCRBY', fences, name, 1)
redis.call('SET', lease, owner .. ' ' .. string.format('%.0f', fence), 'PX', lease_ms)
return {1, fence, lease_ms}
