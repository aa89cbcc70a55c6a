--[[
metrics/exemplify: keep examples of recorded values, of series that there are.

KEYS
  examples       hash    metric + series -> JSON of one call to look at; of one generation
  totals...      hash    of each example: the lifetime totals of its metric

ARGV
  most           int     fields of `examples`; beyond, only known ones are replaced
  keep_ms        int ms  how long the generation is kept
  told...        string  of each example three: its series, its field in `examples`, the JSON

RETURNS {kept}
  kept           int     how many of them

COMPLEXITY  O(examples)
ATOMICITY   one slot
EXPIRY      keep_ms after the last example
RETRY       safe
]]
local examples = KEYS[1]
local most = tonumber(ARGV[1])
local keep_ms = tonumber(ARGV[2])

-- Where the total is somebody else's key, there is no series to be an example of.
local function is_known(total, series)
  for _, part in ipairs({'s', 't', 'z'}) do
    if redis.pcall('HEXISTS', total, string.format('%s|%s', part, series)) == 1 then
      return true
    end
  end
  return false
end

local size, kept = redis.call('HLEN', examples), 0
for i = 2, #KEYS do
  local at = 3 * i - 3
  local series, field, told = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  if is_known(KEYS[i], series) then
    if redis.call('HEXISTS', examples, field) == 1 then
      redis.call('HSET', examples, field, told)
      kept = kept + 1
    elseif size < most then
      redis.call('HSET', examples, field, told)
      size, kept = size + 1, kept + 1
    end
  end
end
if kept > 0 then
  redis.call('PEXPIRE', examples, keep_ms)
end
return {kept}
