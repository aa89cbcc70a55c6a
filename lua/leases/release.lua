--[[
leases/release: stop being the owner, if still the owner.

KEYS
  lease          string  "<owner> <fence>"

ARGV
  owner          string  who lets go

RETURNS {released}
  released       0 | 1   0 when it was not the owner any more

COMPLEXITY  O(1)
ATOMICITY   one key
EXPIRY      the key is deleted
RETRY       safe
]]
local lease = KEYS[1]
local owner = ARGV[1]

local holder = redis.call('GET', lease)
if holder and string.match(holder, '^(%S+) ') == owner then
  return {redis.call('DEL', lease)}
end
return {0}
