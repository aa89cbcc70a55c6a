-- How a stream stays bounded, in entries and in bytes of payload. Field `bytes` of the ledger says what lies there; it begins again
-- whenever the stream is empty, so what somebody took by hand does not stay in it.
local MOST_AT_ONCE, MOST_FREED = 100, 2000000 -- entries, and about how many bytes, that make room in one step

local function bytes_of(fields)
  local sum = 0
  for at = 2, #fields, 2 do
    sum = sum + #fields[at]
  end
  return sum
end

-- What cannot be done must fail before anything is done: a script is not rolled back. Harmless, and each needs the right and the
-- type that is needed later.
local function probe(stream, ledger, fields)
  redis.call('XLEN', stream)
  redis.call('HINCRBY', ledger, 'bytes', 0)
  for _, field in ipairs(fields) do
    redis.call('HINCRBY', ledger, field, 0)
  end
end

local function less(ledger, bytes)
  if redis.call('HINCRBY', ledger, 'bytes', -bytes) < 0 then
    redis.call('HSET', ledger, 'bytes', 0)
  end
end

-- The oldest go until both bounds hold; returns how many events they were.
local function make_room(stream, ledger, max_entries, max_bytes)
  local dropped, freed, entries, bytes = 0, 0, redis.call('XLEN', stream), tonumber(redis.call('HGET', ledger, 'bytes'))
  for _ = 1, MOST_AT_ONCE do
    if entries <= 1 or freed > MOST_FREED or entries <= max_entries and bytes - freed <= max_bytes then
      break
    end
    local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
    dropped, freed, entries = dropped + #oldest[2] / 2, freed + bytes_of(oldest[2]), entries - 1
    redis.call('XDEL', stream, oldest[1])
  end
  if dropped > 0 then
    redis.call('HINCRBY', ledger, 'dropped', dropped)
    less(ledger, freed)
  end
  return dropped
end

