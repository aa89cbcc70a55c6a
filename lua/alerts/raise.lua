--[[
alerts/raise: tell of something once: who is first puts it into the outbox, in the same step.

KEYS
  claim          string  the id of what was told
  outbox         stream  what waits for its receivers: id, type, body

ARGV
  id             string  the same for everybody who would tell of this
  type           string  what is told
  body           string  as it is sent
  claim_ms       int ms  how long it is not told again
  most           int     entries that the outbox keeps; the oldest goes first
  keep_ms        int ms  how long the outbox stays after the last

RETURNS {told, dropped}
  told           0 | 1   0: it had been told
  dropped        int     entries that had to go

COMPLEXITY  O(1)
ATOMICITY   one slot
EXPIRY      claim_ms, and keep_ms
RETRY       safe (of an answer that is lost nobody knows who told it; it is told once)
]]
local claim = KEYS[1]
local outbox = KEYS[2]
local id = ARGV[1]
local type = ARGV[2]
local body = ARGV[3]
local claim_ms = ARGV[4]
local most = tonumber(ARGV[5])
local keep_ms = ARGV[6]

local there = redis.call('XLEN', outbox)
if not redis.call('SET', claim, id, 'NX', 'PX', claim_ms) then
  return {0, 0}
end
redis.call('XADD', outbox, 'MAXLEN', most, '*', 'id', id, 'type', type, 'body', body)
redis.call('PEXPIRE', outbox, keep_ms)
return {1, math.max(there + 1 - most, 0)}
