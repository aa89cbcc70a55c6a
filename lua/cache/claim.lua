--[[
cache/claim: on a miss, become the one who computes an entry, or hear who does, that it is there by now, or why it failed.

KEYS
  entry          string  the entry
  lease          string  the token of who computes it, or "!" and why the last one failed; gone when neither

ARGV
  token          string  who asks: unique for each computation, never begins with "!"
  lease_ms       int ms  for how long, >= 1
  seen           string  how the entry begins that the caller found and may not use; empty: it found none

RETURNS {state, detail, left_ms}
  state          0 wait | 1 leased: the caller computes | 2 there: read it again | 3 failed
  detail         string  why it failed (state 3); "spoilt": another type stood at the entry (state 1); else empty
  left_ms        int ms  how long lease or failure last (0: state 2)

COMPLEXITY  O(1)
ATOMICITY   one slot
EXPIRY      the lease's end is its TTL: on expiry the next who asks computes
RETRY       safe (a lease that nobody uses ends by itself)
]]
local entry = KEYS[1]
local lease = KEYS[2]
local token = ARGV[1]
local lease_ms = tonumber(ARGV[2])
local seen = ARGV[3]

local value = redis.pcall('GET', entry)
local spoilt = type(value) == 'table'
if value and not spoilt and #value > 0 and (seen == '' or string.sub(value, 1, #seen) ~= seen) then
  return {2, '', 0}
end
local holder = redis.pcall('GET', lease)
local left_ms = redis.call('PTTL', lease)
-- Whoever computes renews, and a failure ends: what has no end, or another type, is nobody's, and SET replaces it.
local ours = type(holder) == 'string' and left_ms >= 0
if ours and string.sub(holder, 1, 1) ~= '!' and left_ms > 10 * lease_ms then
  ours = false
end
if not ours or holder == token then
  redis.call('SET', lease, token, 'PX', lease_ms)
  return {1, spoilt and 'spoilt' or '', lease_ms}
end
if string.sub(holder, 1, 1) == '!' then
  return {3, string.sub(holder, 2), left_ms}
end
return {0, '', left_ms}
