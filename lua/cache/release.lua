--[[
cache/release: stop computing an entry, if the lease is still held; and tell everybody for a while why, if it failed.

KEYS
  lease          string  the token of who computes

ARGV
  token          string  who lets go
  failure        string  why, beginning with "!"; empty: it did not fail
  keep_ms        int ms  how long that is told; 0: not at all

RETURNS {released}
  released       0 | 1   0 when the lease was lost before

COMPLEXITY  O(1)
ATOMICITY   one key
EXPIRY      the failure's end is its TTL
RETRY       safe
]]
local lease = KEYS[1]
local token = ARGV[1]
local failure = ARGV[2]
local keep_ms = tonumber(ARGV[3])

if redis.pcall('GET', lease) ~= token then
  return {0}
end
if keep_ms > 0 and failure ~= '' then
  redis.call('SET', lease, failure, 'PX', keep_ms)
else
  redis.call('DEL', lease)
end
return {1}
