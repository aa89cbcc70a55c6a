--[[
rate_limiter/survey: what became of the holds of one slot, by their ledger, and how many are open.

KEYS
  fence          string  "<replication id>,<run id>,<fenced since us>"; beside it, by suffix, the ledger of holds (_holds.lua)

ARGV
  now_us         int us  the caller's clock; 0 = ask Redis (always 0 in production)

RETURNS {reserved, settled, cancelled, reaped, open}
  reserved       int     holds, ever; settled, cancelled, reaped: how those ended that did
  open           int     holds that are there

COMPLEXITY  O(1), and up to 1,000 holds that ran out a minute ago and that nobody has come by to reap
ATOMICITY   one slot
EXPIRY      none: the ledger stays
RETRY       safe
USES        rate_limiter/_state rate_limiter/_holds
]]
local fence = KEYS[1]
local now_us = clock(tonumber(ARGV[1]))

sweep(now_us, 1000)
local found = call('HMGET', fence .. ':holds:ledger', 'reserved', 'settled', 'cancelled', 'reaped')
for at = 1, 4 do
  found[at] = tonumber(found[at] or 0)
end
found[5] = call('ZCARD', fence .. ':holds:open')
return found
