--[[
cache/renew: go on computing an entry, if the lease is still held; a lease that was taken away is not taken again.

KEYS
  lease          string  the token of who computes

ARGV
  token          string  who asks
  lease_ms       int ms  for how long, >= 1

RETURNS {held}
  held           0 | 1   0: what is computed cannot be stored any more

COMPLEXITY  O(1)
ATOMICITY   one key
EXPIRY      the lease's end is its TTL
RETRY       safe
]]
local lease = KEYS[1]
local token = ARGV[1]
local lease_ms = tonumber(ARGV[2])

if redis.pcall('GET', lease) ~= token then
  return {0}
end
redis.call('PEXPIRE', lease, lease_ms)
return {1}
