--[[
presence/leave: say goodbye, so that nobody has to wait for our silence.

KEYS
  members        zset    every instance
  peers          zset    the instances of the caller's role
  instances      hash    instance -> what it says of itself

ARGV
  instance       string  who leaves

RETURNS {left}
  left           0 | 1   1 when it was there

COMPLEXITY  O(log N)
ATOMICITY   one slot
EXPIRY      nothing new is kept
RETRY       safe
]]
local members = KEYS[1]
local peers = KEYS[2]
local instances = KEYS[3]
local instance = ARGV[1]

redis.call('ZREM', peers, instance)
redis.call('HDEL', instances, instance)
return {redis.call('ZREM', members, instance)}
