--[[
cache/store: write an entry, if nobody has come between; whoever computes it meanwhile has lost the lease.

KEYS
  entry          string  the entry
  lease          string  the token of who computes it
  others...      string  entries and leases of other generations of the class, which end with this write

ARGV
  payload        string  the entry's bytes
  ttl_ms         int ms  its time to live, >= 1; 0: as it was
  token          string  who computed it: must hold the lease still; empty: a write that needs none
  expected       string  how the entry must begin; empty: it must not be there; "*": whatever it is

RETURNS {written}
  written        0 | 1   0: the lease was lost, or the entry was another one

COMPLEXITY  O(others)
ATOMICITY   one slot
EXPIRY      the entry's time to live
RETRY       unsafe for what was computed or expected (the second time says 0), safe otherwise
]]
local entry = KEYS[1]
local lease = KEYS[2]
local payload = ARGV[1]
local ttl_ms = tonumber(ARGV[2])
local token = ARGV[3]
local expected = ARGV[4]

if token ~= '' and redis.pcall('GET', lease) ~= token then
  return {0}
end
if expected ~= '*' then
  local value = redis.pcall('GET', entry)
  if type(value) ~= 'string' then -- nothing, or a key of another type: nobody's entry
    value = ''
  end
  if (expected == '' and value ~= '') or string.sub(value, 1, #expected) ~= expected then
    return {0}
  end
end
if ttl_ms > 0 then
  redis.call('SET', entry, payload, 'PX', ttl_ms)
else
  redis.call('SET', entry, payload, 'KEEPTTL')
end
redis.call('DEL', lease)
for index = 3, #KEYS do
  redis.call('UNLINK', KEYS[index])
end
return {1}
