--[[
cache/drop: delete an entry, all generations of its class, and the leases of whoever computes it: what they store is refused.

KEYS
  keys...        string  entry and lease of each generation, by turns

ARGV

RETURNS {dropped}
  dropped        int     entries that were there

COMPLEXITY  O(keys)
ATOMICITY   one slot
EXPIRY      the keys are deleted
RETRY       safe
]]
local dropped = 0
for index = 1, #KEYS, 2 do
  dropped = dropped + redis.call('DEL', KEYS[index])
  redis.call('DEL', KEYS[index + 1])
end
return {dropped}
