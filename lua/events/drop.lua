#!lua flags=allow-oom
--[[
events/drop: throw dead letters away, each once, and count them as dropped.

Runs also when the server is out of memory: it frees some.

KEYS
  ledger         hash    accepted, applied, dead, dropped: how many events, ever
  dead           stream  events that could not be applied: id, payload, reason

ARGV
  letters...     string  ids of entries in dead, at most 100

RETURNS {dropped, missing}
  dropped        int     letters that are gone now
  missing        int     letters that were not there

COMPLEXITY  O(letters)
ATOMICITY   one slot
EXPIRY      nothing new is kept
RETRY       safe (the second time they are missing)
]]
local ledger = KEYS[1]
local dead = KEYS[2]

-- What cannot be counted must not be thrown away.
for _, field in ipairs({'dead', 'dropped'}) do
  redis.call('HINCRBY', ledger, field, 0)
end
local dropped = redis.call('XDEL', dead, unpack(ARGV))
if dropped > 0 then
  redis.call('HINCRBY', ledger, 'dead', -dropped)
  redis.call('HINCRBY', ledger, 'dropped', dropped)
end
return {dropped, #ARGV - dropped}
